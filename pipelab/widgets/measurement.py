"""One real run of a plan that leaves the user's model as it was, and that another thread can stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipelab.core.plan import Plan
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from torch import nn

    from pipelab.runtime.pipeline import Pipeline

NO_MODEL = "This Lab was made from a profile alone, so there is nothing to run. Use pp.Lab(model, x, y, loss_fn=...)."
WARMUP_STEPS = 2  # the first learns how values flow, the second fills caches

Progress = Callable[[int, int], None]


class Measurement:
    """Warm-up steps and a measured one of a plan. Gradients, buffers, random state and devices are put back.

    Attributes:
        plan: what runs.
        clock: on which clock and devices, as a line for people; known once it runs.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        inputs: Any,
        target: Any,
        *,
        loss_fn: Callable[..., Any] | None,
        reduction: str,
        batch_dim: int | tuple[int, int, int] = 0,
    ) -> None:
        self.plan = plan
        self.clock = ""
        self._model = model
        self._data = inputs, target
        self._how: dict[str, Any] = {"loss_fn": loss_fn, "reduction": reduction, "batch_dim": batch_dim}
        self._stopped = threading.Event()
        self._pipeline: Pipeline | None = None

    def run(self, progress: Progress) -> Trace:
        """Run it in this thread.

        Args:
            progress: called with (actions done, actions in all), warm-up included.

        Raises:
            KeyboardInterrupt: it was stopped, by `stop` or by the user's own interrupt.
            PipelabError: the plan cannot run here, or has no backward.
        """
        from pipelab.runtime.devices import describe, resolve
        from pipelab.runtime.pipeline import Pipeline
        from pipelab.runtime.preserve import preserved

        schedule = self.plan.schedule
        if not schedule.has_backward:
            raise PipelabError(
                f"{schedule.name} has no backward, and a run here is a training step. Choose another schedule, or call "
                f"Pipeline.forward."
            )
        devices = resolve(self.plan.devices, schedule.num_ranks)
        self.clock = describe(devices)
        steps = WARMUP_STEPS + 1
        with (
            preserved(self._model),
            _at_home(self._model),
            Pipeline(self._model, self.plan, devices=devices, **self._how) as pipeline,
        ):
            self._pipeline = pipeline
            try:
                for number in range(steps):
                    trace = self._step(pipeline, number, steps, progress)
            finally:
                self._pipeline = None
        return trace

    def stop(self) -> None:
        """Ask the run to stop; it raises KeyboardInterrupt in its own thread. Safe from any thread."""
        self._stopped.set()
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.interrupt()

    def _step(self, pipeline: Pipeline, number: int, steps: int, progress: Progress) -> Trace:
        actions = self.plan.schedule.table.num_cells

        def advance(done: int, total: int) -> None:
            if self._stopped.is_set():  # it was asked between two steps, when there was nothing to interrupt
                pipeline.interrupt()
            # `total` is not the same for all steps: the virtual clock runs some of them several times.
            progress(number * actions + done * actions // total, steps * actions)

        if self._stopped.is_set():
            raise KeyboardInterrupt
        return pipeline.step(*self._data, outputs=False, progress=advance).trace


@contextlib.contextmanager
def _at_home(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers that the code inside moved to other devices are moved back."""
    tensors = [*model.parameters(), *model.buffers()]
    homes = [tensor.device for tensor in tensors]
    try:
        yield
    finally:
        for tensor, home in zip(tensors, homes, strict=True):
            if tensor.device != home:
                tensor.grad = None  # `preserved` puts back the one that was there
                tensor.data = tensor.data.to(home)
