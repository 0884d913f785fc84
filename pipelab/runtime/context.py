"""What the micro-batches of one step share: threads, devices, streams, checks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError
from pipelab.runtime.compiled import compiled_modules
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.deferral import WeightGradients
from pipelab.runtime.interception import set_current
from pipelab.runtime.thread_state import ThreadState
from pipelab.runtime.traffic import crossings

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch


class StepContext:
    """What the micro-batches of one step share that run on the same model.

    Args:
        cut_model: the model and what is known about it.
        in_flight: the most micro-batches whose forward has begun and whose backward has not ended.
        split: the (stage, micro-batch) pairs whose weight gradients have an action of their own.
        rehearsal: whether this is one micro-batch before a first step, to learn from.

    Attributes:
        counting: whether the bytes that a micro-batch keeps are counted.
        entered: the stages that any micro-batch has entered.
    """

    def __init__(
        self,
        cut_model: CutModel,
        in_flight: int,
        split: frozenset[tuple[int, int]] = frozenset(),
        rehearsal: bool = False,
    ) -> None:
        self._cut_model = cut_model
        self._in_flight = in_flight
        self.split = split
        self.model, self.cuts, self.flow = cut_model.model, cut_model.cuts, cut_model.flow
        self.parameters, self.randomness, self.pool = (
            cut_model.parameters,
            cut_model.randomness,
            cut_model.pool,
        )
        self.thread_state = ThreadState()
        self.grad, self.variables = self.thread_state.grad, self.thread_state.variables
        self.weight_gradients = {pair: WeightGradients() for pair in split} if self.grad else {}
        self._writing = [threading.Lock() for _ in range(cut_model.num_stages)]
        self.rehearsal = rehearsal
        self.learning = self.counting = self.grad not in self.flow.learnt
        self.leaks: list[str] = []
        self.kept_values = cut_model.kept_values
        self.changed_in_place = cut_model.changed_in_place
        self.names = cut_model.names
        self.entered: set[int] = set()
        self._most_entered = 0
        self._noting = threading.Lock()
        self.births: Callable[[MicroBatch], contextlib.AbstractContextManager[Any]] | None = None

    # -- threads and devices ------------------------------------------------------------------------------------

    def enter_thread(self, microbatch: MicroBatch, stack: contextlib.ExitStack) -> None:
        """Hands the caller's state to the micro-batch's thread."""
        torch.set_num_threads(self._cut_model.threads)
        self.thread_state.enter(stack)
        if self.births is not None:
            stack.enter_context(self.births(microbatch))
        set_current(microbatch)

    def leave_thread(self) -> None:
        set_current(None)

    def run_plain(self, watched: Iterable[nn.Module]) -> list[nn.Module]:
        """The modules that went through torch.compile and run in this step as if they had not."""
        return compiled_modules(self.model) if self.learning else self._cut_model.not_compiled(watched)

    @contextlib.contextmanager
    def keeping_apart(self) -> Iterator[None]:
        """Around a step: what forwards keep on modules is kept apart for each micro-batch, or refused."""
        with (
            self.kept_values.apart(self._in_flight, self.learning),
            self.changed_in_place.minded(self._in_flight, self.learning),
        ):
            yield

    def dropping_activations(self) -> contextlib.AbstractContextManager[None]:
        """Around a step: the modules of `recompute=` run again in the backward."""
        return self._cut_model.recompute.wrapped(self)

    def activate(self, stage: int, microbatch: int) -> None:
        self._cut_model.streams[stage].activate(microbatch)

    def place(self, stage: int, thread: int) -> None:
        """Lets a thread that sleeps wake where the stage runs."""
        self._cut_model.streams[stage].place(thread)

    def device(self, stage: int) -> torch.device | None:
        """The device of a stage; None when all stages share one and nothing ever moves."""
        return None if self._cut_model.same_device else self._cut_model.devices[stage]

    def stage_device(self, stage: int) -> torch.device:
        return self._cut_model.devices[stage]

    def in_checkpoint(self) -> bool:
        """Whether the running code is inside torch.utils.checkpoint (or another user of saved-tensor hooks)."""
        return self.thread_state.in_checkpoint()

    @contextlib.contextmanager
    def recomputing(self, microbatch: MicroBatch) -> Iterator[None]:
        """Around a backward: a checkpoint's second forward puts the global generator back for a while.

        No stage may draw in the meantime, nor be looked at for draws: what is put back would pass for one. (What is
        recomputed for `recompute=` minds that itself.)
        """
        if not self.flow.checkpoints or not self._may_be_drawing():
            yield
            return
        with self.randomness.lock:
            microbatch.alone = True
            try:
                yield
            finally:
                microbatch.alone = False

    def _may_be_drawing(self) -> bool:
        stages = range(self._cut_model.num_stages)
        return bool(self._cut_model.recompute.stages) or any(map(self.randomness.may_draw, stages))

    @contextlib.contextmanager
    def writing(self, stages: Iterable[int]) -> Iterator[None]:
        """Around what adds to the weights' gradients of `stages`: two threads that do so at a time lose updates.

        torch keeps its own backwards apart; this keeps the action W out of a backward that leaks into its stage.
        """
        with contextlib.ExitStack() as stack:
            for stage in stages:
                stack.enter_context(self._writing[stage])
            yield

    def elsewhere(self, value: Tensor, stage: int) -> bool:
        """Whether `value` lies on another device than the stage's. Scalars on the CPU work everywhere."""
        device = self.device(stage)
        return (
            device is not None and value.device != device and (value.dim() > 0 or value.device.type != "cpu")
        )

    def copying(self, value: Tensor, stage: int) -> contextlib.AbstractContextManager[None]:
        """Around a copy of `value` to where `stage` runs."""
        return self._cut_model.copies.copying(value, self._cut_model.devices[stage])

    # -- checks while learning ----------------------------------------------------------------------------------

    def note_left(self, stage: int, left: WeightGradients) -> None:
        """Counts what one backward has left to W."""
        if self.counting:
            self._cut_model.kept.count_left(stage, left.tensors(), self.parameters)

    def check_finished(self, microbatch: MicroBatch) -> None:
        """Notes where a micro-batch came to, and refuses cuts that are out of order.

        Raises:
            PipelabError: gives the order in which the model calls them.
        """
        if self.learning and any(stage not in microbatch.stages for stage in microbatch.passed):
            order = ", ".join(repr(self._cut_model.names[stage - 1]) for stage in microbatch.passed)
            raise PipelabError(
                f"The cuts are not in the order in which the model calls them: it calls {order}. "
                f"Write Split([{order}])."
            )
        with self._noting:
            most = len(microbatch.stages) > self._most_entered
            if most:
                self._most_entered = len(microbatch.stages)
            self.entered.update(microbatch.stages)
            if self.grad and self.counting and most:
                self._cut_model.kept.count(microbatch, self.parameters)
                self._cut_model.shared = self.parameters.shared()
                self._cut_model.crossings = crossings(microbatch, self.parameters, self._cut_model.devices)


def check_entered(contexts: Sequence[StepContext]) -> None:
    """Refuses cuts that no micro-batch of a step came to. A branch that only some take may hold a stage.

    Raises:
        PipelabError: names the first of them.
    """
    first = contexts[0]
    if first.rehearsal or first.flow.cuts_reached or not first.grad:
        return
    entered = set().union(*(context.entered for context in contexts))
    for stage, name in enumerate(first.names, start=1):
        if stage not in entered:
            raise PipelabError(
                f"A stage begins at {name!r}, but the model's forward never calls that module (no micro-batch came to "
                f"it), or calls it in a thread of its own, which is not seen. Cut at a module that is called: "
                f"pp.layers(model, inputs) lists them."
            )
    first.flow.cuts_reached = True
