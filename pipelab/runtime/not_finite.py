"""Where a loss stopped being a number: the first stage and module with a value that is not finite.

Nothing is looked at while a step runs, so a step whose loss is finite pays nothing. When a loss is not, the first
micro-batch with such a loss runs forward once more, on the same weights, with the same random state and without
gradients, and every module's values are looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.interception import Cancelled, current
from pipelab.runtime.loss import Call, loss_modules
from pipelab.runtime.preserve import preserved
from pipelab.runtime.stages import SuspendedStages


@dataclass(frozen=True)
class NotFinite:
    """The first value of a step that was not finite.

    Attributes:
        microbatch: the first whose loss is not finite.
        stage: where it first happened; None if a second forward did not show it.
        place: what it was there: the output of a module, what came to one, the loss.
    """

    microbatch: int
    stage: int | None = None
    place: str = ""

    def __str__(self) -> str:
        where = "" if self.stage is None else f": stage {self.stage}, {self.place}"
        return f"not finite, first in micro-batch {self.microbatch}{where}"


class Search:
    """One more forward of a micro-batch, to see where it goes wrong.

    Args:
        cut: the model.
        loss_fn: its gradients and buffers are put back, as the model's are.
        call: runs the model and the loss of the micro-batch.
        microbatch: its index, to which its random state belongs.
    """

    def __init__(self, cut: CutModel, loss_fn: Any, call: Call, microbatch: int) -> None:
        self._cut, self._loss_fn, self._microbatch = cut, loss_fn, microbatch
        with torch.no_grad():
            self._stages = SuspendedStages([StepContext(cut, 1)], [call], [0])
        self._stages.microbatches[0].index = microbatch
        self._found: tuple[int, str] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Gives up; safe from any thread."""
        self._stopped = True
        self._stages.cancel()

    def run(self, random_state: Tensor) -> NotFinite:
        """Runs that forward; the model is afterwards as it was.

        Args:
            random_state: of torch's default generator when the step began.

        Raises:
            KeyboardInterrupt: after `stop`.
        """
        host_threads = torch.get_num_threads()
        randomness = self._cut.randomness
        try:
            with preserved(self._cut.model, *loss_modules(self._loss_fn)), torch.no_grad():
                torch.set_rng_state(random_state)
                randomness.begin_step()
                try:
                    self._forward()
                finally:
                    randomness.end_step()
        except Cancelled:
            raise KeyboardInterrupt from None
        except Exception:  # what went well in the step fails here: then this cannot tell
            self._found = None
        finally:
            torch.set_num_threads(host_threads)
        return NotFinite(self._microbatch, *(self._found or ()))

    def _forward(self) -> None:
        with self._stages.running(), self._watching():
            for stage, rank in enumerate(self._cut.streams):
                if self._stopped:
                    raise KeyboardInterrupt
                self._stages.forward(stage, 0)
                rank.finish()
        microbatch = self._stages.microbatches[0]
        loss = microbatch.result.loss if microbatch.result is not None else None
        if self._found is None and loss is not None and not loss.isfinite():
            self._found = microbatch.stages[-1], "the loss"

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        handles = []
        try:
            for name, module in self._cut.model.named_modules():
                handles += [
                    # Before the hook that waits for the next stage: what comes to a cut was made in the stage before.
                    module.register_forward_pre_hook(self._before(name), prepend=True, with_kwargs=True),
                    module.register_forward_hook(self._after(name)),
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            # A mask is full of -inf, and right.
            if any(value.isnan().any() or value.isposinf().any() for value in _numbers((args, kwargs))):
                self._note("the inputs" if not name else f"what comes to {name!r}")

        return look

    def _after(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not all(value.isfinite().all() for value in _numbers(output)):
                self._note("the model's output" if not name else f"the output of {name!r}")

        return look

    def _note(self, place: str) -> None:
        microbatch = current()
        if self._found is None and microbatch is not None:
            self._found = microbatch.stage, place


def _numbers(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
