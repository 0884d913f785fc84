"""What holds around every step: one at a time, interrupts at rest, and never half a result in `.grad`."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from pipelab.errors import PipelabError, annotate
from pipelab.runtime.interrupt import Interrupts
from pipelab.runtime.preserve import WrittenGradients

# Models with a step under way, by identity, and what stops it: two pipelines would hook into each other's forwards.
_running: dict[int, Callable[[], None]] = {}
_running_lock = threading.Lock()
_SECONDS_AT_EXIT = 5.0


@atexit.register
def _bring_to_rest() -> None:
    """An interpreter that ended while a thread computes in torch would abort: a step that still runs is stopped."""
    for interrupt in list(_running.values()):
        interrupt()
    deadline = time.monotonic() + _SECONDS_AT_EXIT
    while _running and time.monotonic() < deadline:
        time.sleep(0.01)


class StepGuard:
    """The guard of one pipeline's steps.

    Args:
        model: its gradients are cleared when a step fails.
        others: modules whose gradients are cleared too: those of the loss.
    """

    def __init__(self, model: nn.Module, others: Sequence[nn.Module] = ()) -> None:
        self._model = model
        self._others = others
        self._busy = threading.Lock()

    @contextmanager
    def step(self, interrupt: Callable[[], None]) -> Iterator[tuple[WrittenGradients, Interrupts]]:
        """Around a step, from the look at its data to its result.

        Args:
            interrupt: stops the step; called by Ctrl-C, so it must not block.

        Yields:
            The gradients that are cleared when the step fails, and what knows whether an interrupt has come.

        Raises:
            PipelabError: a step of this pipeline, or of this model, is running already.
            KeyboardInterrupt: on an interrupt, once what is inside has come to rest.
        """
        written = WrittenGradients(self._model, *self._others)
        with Interrupts(interrupt, written.clear) as interrupts, self._alone(interrupt):
            try:
                yield written, interrupts
                if interrupts.caught:
                    raise KeyboardInterrupt
            except BaseException as error:
                if cleared := written.clear():
                    annotate(
                        error,
                        f"pipelab: the gradients that this step had written to ({cleared} tensors) are now None.",
                    )
                raise

    def wait(self, timeout: float) -> bool:
        """Waits until no step is running; says whether that is so."""
        if not self._busy.acquire(timeout=timeout):
            return False
        self._busy.release()
        return True

    @contextmanager
    def _alone(self, interrupt: Callable[[], None]) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise PipelabError(
                "This pipeline is running a step already. Wait for it, or stop it: pipe.interrupt()."
            )
        try:
            with _running_lock:
                if id(self._model) in _running:
                    raise PipelabError(
                        "Another pipeline is running a step of this model. Wait for it, or give each its own copy."
                    )
                _running[id(self._model)] = interrupt
            try:
                yield
            finally:
                with _running_lock:
                    del _running[id(self._model)]
        finally:
            self._busy.release()
