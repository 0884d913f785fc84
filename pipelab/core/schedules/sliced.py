"""Schedules of slices: a sequence is cut along its tokens, and the slices go through the pipeline one by one.

Attention is causal, so a slice needs the keys and values of the slices before it, and the gradients of the
slices after it. Slice q of micro-batch i has the number i*k + q.

    p = 2, k = 2, one micro-batch    rank 0:  F0 F1 .  .  B1 B0
                                     rank 1:  .  F0 F1 B1 B0

One can simulate it; a `Pipeline` never runs slices as if they were micro-batches, which share nothing.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import as_index
from pipelab.core.closed_form import Assumption, ClosedForm
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.warmup import alternate, one_stage
from pipelab.core.validation import check_size
from pipelab.errors import PipelabError

__all__ = ["FAMILY"]

_SLICES = 2
"""How many slices there are where that is left out."""


def _seq_1f1b(
    num_ranks: int, num_microbatches: int, stages_per_rank: int, *, num_slices: int = _SLICES
) -> Schedule:
    k = as_index("num_slices", num_slices)
    if k < 1:
        raise PipelabError(f"num_slices is {k}; it must be at least 1. With 1 slice it is 1f1b.")
    total = num_microbatches * k
    check_size("seq-1f1b", 2 * num_ranks * total)
    number = np.arange(total)
    forward = one_stage(num_ranks, number)
    backward = one_stage(num_ranks, number // k * k + (k - 1 - number % k))
    table = alternate(np.arange(num_ranks)[::-1] + k - 1, forward, backward)
    return Schedule.from_table(table, Placement.linear(num_ranks), name="seq-1f1b", slices=k)


FAMILY = (
    ScheduleInfo(
        name="seq-1f1b",
        family="sliced",
        paper="Seq1F1B, arXiv 2406.03488; TeraPipe, arXiv 2102.07988",
        constraint="simulated only",
        formulas="with F and B of one of k equal slices: idle (p-1)(F+B) per rank, a k-th of 1F1B's where a slice "
        "takes a k-th of its sequence; peak min(m k, p-1-r+k) slices",
        description="1F1B over num_slices causal slices of each sequence; costs are those of one slice.",
        builder=_seq_1f1b,
        keywords=("num_slices",),
        is_step=False,
        form=ClosedForm.where(
            Assumption("c = 0", lambda t: t.c == 0),
            also=f"equal stages and slices; F and B of one slice, num_slices={_SLICES}, the peak in slices",
            idle=lambda t: (t.p - 1) * (t.F + t.B),
            peak=lambda t, r: min(_SLICES * t.m, t.p - 1 - r + _SLICES),
            work=lambda t: _SLICES * t.m * (t.F + t.B),
        ),
    ),
)
