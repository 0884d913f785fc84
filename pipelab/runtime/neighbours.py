"""Ranks of one machine slow each other down: copies of a model that train beside it while it is measured."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipelab.errors import PipelabError, annotate
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss import loss_call
from pipelab.runtime.loss_weights import Weight
from pipelab.runtime.rank_device import RankDevice


class Neighbours:
    """Threads that run forward and backward of a copy of a model each, over and over, from `begin` to `end`.

    Args:
        ranks: whose places they take, a thread each.
        model: what is copied. The copies are in evaluation mode: what they drew would be missing elsewhere.
        loss_fn: as for `Pipeline`.
        threads: intra-op threads of each.

    Raises:
        PipelabError: the model cannot be copied.
    """

    def __init__(
        self, ranks: Sequence[RankDevice], model: nn.Module, loss_fn: Callable[..., Any] | None, threads: int
    ) -> None:
        self._ranks = ranks
        try:
            self._copies = [copy.deepcopy(model).eval() for _ in ranks]
        except Exception as error:
            raise PipelabError(
                f"The model cannot be copied ({type(error).__name__}: {error}), so there is nothing to run beside it. "
                f"Measure it alone: ranks=1."
            ) from error
        self._loss_fn, self._intra_op = loss_fn, threads
        self._stop = threading.Event()
        self._running: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def begin(self, batch: Batch, weight: Weight) -> None:
        """Starts the threads on one micro-batch; those of another one end.

        Args:
            batch: of a single micro-batch.
            weight: what it counts for.
        """
        self.end()
        self._stop.clear()
        for rank, model in zip(self._ranks, self._copies, strict=True):
            call = loss_call(model, self._loss_fn, batch, 0, weight, [torch.device("cpu")])
            thread = threading.Thread(target=self._train, args=(rank, model, call), daemon=True)
            self._running.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stops the threads, each after the backward that it is in."""
        self._stop.set()
        for thread in self._running:
            thread.join()
        self._running = []

    def end(self) -> None:
        """Stops the threads and says whether they ran all the time.

        Raises:
            Exception: what a copy raised; the measurement beside it was one of a model alone.
        """
        self.stop()
        if self._errors:
            error, self._errors = self._errors[0], []
            annotate(error, "pipelab: raised by a copy of the model that ran beside the measurement.")
            try:
                raise error
            finally:
                del error  # or it and this frame would keep each other alive

    def _train(self, rank: RankDevice, model: nn.Module, call: Callable[[Callable[[], int]], Any]) -> None:
        try:
            torch.set_num_threads(self._intra_op)
            rank.activate()
            while not self._stop.is_set():
                model.zero_grad()
                root = call(lambda: 0).root
                if root is not None and root.requires_grad:
                    root.backward()
        except BaseException as error:
            self._errors.append(error)
