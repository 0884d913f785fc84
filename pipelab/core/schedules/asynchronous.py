"""Asynchronous schedules: 1F1B that never drains, because later micro-batches run on older weights.

    p = 2, every micro-batch a mini-batch (PipeDream)
    rank 0:  F0 F1    B0 U F2 B1 U F3 B2 U ...      F2 is run after one update, F1 before any
    rank 1:     F0 B0 U F1 B1 U F2 B2 U ...

The backward of a mini-batch uses the weights of its forward, so a rank keeps several versions of them;
`schedule.weight_versions()` says which action sees which. What it buys is a bubble that is paid once, not at
every step; what it costs is memory for the versions, and gradients of weights that are no longer the newest.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import CODES, ActionTable, Kind, as_index
from pipelab.core.closed_form import Assumption, ClosedForm
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.linear import hops_of_1f1b
from pipelab.core.schedules.warmup import alternate, one_stage
from pipelab.core.validation import check_size
from pipelab.errors import PipelabError

__all__ = ["FAMILY"]

_MINIBATCHES = 3
"""How many mini-batches there are where that is left out: a first, one in the steady state, a last."""

_B, _U = CODES[Kind.B], CODES[Kind.U]


def _build(name: str, num_ranks: int, per_minibatch: int, num_minibatches: int) -> Schedule:
    """1F1B over all mini-batches without a flush, with an update of each stage after each mini-batch."""
    total = per_minibatch * num_minibatches
    check_size(name, num_ranks * (2 * total + num_minibatches))
    stream = one_stage(num_ranks, np.arange(total))
    table = alternate(np.arange(num_ranks)[::-1], stream, stream)
    is_last = (table.kind == _B) & (table.microbatch % per_minibatch == per_minibatch - 1)
    after = np.flatnonzero(is_last)
    updated = ActionTable(
        np.insert(table.kind, after + 1, _U),
        np.insert(table.stage, after + 1, table.stage[after]),
        np.insert(table.microbatch, after + 1, table.microbatch[after]),
        np.insert(table.rank, after + 1, table.rank[after]),
    )
    placement = Placement.linear(num_ranks)
    return Schedule.from_table(updated, placement, name=name, minibatches=num_minibatches)


def _pipedream(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("pipedream", num_ranks, 1, num_microbatches)


def _two_buffered(
    num_ranks: int, num_microbatches: int, stages_per_rank: int, *, num_minibatches: int = _MINIBATCHES
) -> Schedule:
    count = as_index("num_minibatches", num_minibatches)
    if count < 1:
        raise PipelabError(f"num_minibatches is {count}; it must be at least 1.")
    if num_microbatches < num_ranks:
        raise PipelabError(
            f"pipedream-2bw with {num_microbatches} micro-batches a mini-batch on {num_ranks} ranks would need more "
            f"than two versions of the weights. Give it num_microbatches={num_ranks} or more, or use pipedream."
        )
    return _build("pipedream-2bw", num_ranks, num_microbatches, count)


FAMILY = (
    ScheduleInfo(
        name="pipedream",
        family="asynchronous",
        paper="PipeDream, SOSP 2019, doi 10.1145/3341301.3359646",
        constraint="",
        formulas="idle (p-1)(F+B) once; in steady state no bubble, peak p-r, p-r versions of the weights, "
        "staleness p-1-r",
        description="1F1B without a flush: every micro-batch is a mini-batch and updates the weights at once.",
        builder=_pipedream,
        is_step=False,
        form=ClosedForm.where(
            also="equal stages, updates that take no time",
            idle=lambda t: (t.p - 1) * (t.F + t.B) + hops_of_1f1b(t) * t.c,
            peak=lambda t, r: min(t.m, t.p - r),
        ),
    ),
    ScheduleInfo(
        name="pipedream-2bw",
        family="asynchronous",
        paper="PipeDream-2BW, arXiv 2006.09503",
        constraint="m >= p",
        formulas="idle (p-1)(F+B) once; in steady state no bubble, peak p-r, 2 versions of the weights, staleness 1",
        description="1F1B without a flush: num_minibatches mini-batches of m micro-batches on two weight versions.",
        builder=_two_buffered,
        keywords=("num_minibatches",),
        is_step=False,
        form=ClosedForm.where(
            Assumption("m >= p", lambda t: t.m >= t.p),
            Assumption("c = 0", lambda t: t.c == 0),
            also=f"equal stages, updates that take no time, num_minibatches={_MINIBATCHES}",
            idle=lambda t: (t.p - 1) * (t.F + t.B),
            peak=lambda t, r: min(_MINIBATCHES * t.m, t.p - r),
            work=lambda t: _MINIBATCHES * t.m * (t.F + t.B),
        ),
    ),
)
