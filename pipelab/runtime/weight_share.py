"""How much of its stage's weight gradients a W really holds: the rest is made in I, which then lasts longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pipelab.core.quantities import as_percent, counted

if TYPE_CHECKING:
    from pipelab.runtime.context import StepContext
    from pipelab.runtime.microbatch import MicroBatch

SMALL = 0.5
"""The share of a stage's parameter bytes below which its W is said to hold little."""


def share_notes(context: StepContext, microbatches: Sequence[MicroBatch]) -> list[str]:
    """What the trace of a step with split backwards must say: the stages whose W holds little.

    Args:
        context: of a step whose backwards have all run, with the replicas of parameters still there.
        microbatches: that ran in it.
    """
    notes = []
    for stage in sorted({stage for stage, _ in context.weight_gradients}):
        if not any(stage in run.stages for run in microbatches if run.context is context):
            continue
        used = _parameters(context, stage)
        stores = [store for (own, _), store in context.weight_gradients.items() if own == stage]
        held = [parameter for parameter in used if any(id(parameter) in store.computed for store in stores)]
        of = _bytes(used)
        if of and _bytes(held) < SMALL * of:
            notes.append(
                f"stage {stage}: W holds the gradients of {len(held)} of {counted(len(used), 'parameter')} "
                f"({as_percent(_bytes(held) / of)} of the bytes); the others are made in I"
            )
    return notes


def _parameters(context: StepContext, stage: int) -> list[Tensor]:
    """What gets a gradient from a stage: its own parameters, and its copies of others'."""
    own = [one for one in context.model.parameters() if context.parameters.home(one) == stage]
    copies = [copy for _, where, copy in context.parameters.replicas() if where == stage]
    return [one for one in [*own, *copies] if one.requires_grad]


def _bytes(parameters: Sequence[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)
