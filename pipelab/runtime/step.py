"""What a step of a pipeline leaves besides the gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipelab.core.measured_memory import MeasuredMemory
from pipelab.core.tables import pretty
from pipelab.core.trace import Trace
from pipelab.runtime.not_finite import NotFinite


@dataclass(frozen=True)
class Step:
    """What a step did. The gradients are in the model's parameters.

    Attributes:
        loss: the loss of the whole batch, a detached scalar, without `scale`.
        outputs: the model's outputs for the whole batch, detached; None with `outputs=False`.
        trace: when each action ran.
        losses: each micro-batch's own loss, shape (micro-batches,), on the CPU.
        not_finite: where the loss stopped being a number: `microbatch`, `stage` and `place`; None where it is one.
        memory: what each stage held over time, measured; None unless the step was asked for it.
    """

    loss: Tensor
    outputs: Any = field(repr=False)
    trace: Trace = field(repr=False)
    losses: Tensor = field(repr=False)
    not_finite: NotFinite | None = None
    memory: MeasuredMemory | None = field(default=None, repr=False)

    def __str__(self) -> str:
        line = f"loss {float(self.loss):.6g}"
        if self.not_finite is not None:
            line += f" ({self.not_finite})"
        return f"{line}\n{self.trace}"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return f"<div>{str(self).splitlines()[0]}</div>{self.trace._repr_html_()}"
