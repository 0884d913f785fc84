"""V-Min, V-Half, V-ZB: how long a micro-batch lives decides the memory (arXiv 2405.15362).

A building block says when one micro-batch runs each of its six actions on each rank, on a V of two stages a rank,
where F, I and W take 1 each. Repeated every 6, it fills every rank without a gap; all that differs is by how many
steps an action comes later on the next rank, on the four ways of a micro-batch: forward there and back, gradient
there and back.

    p = 3, one step a rank (V-Min)     rank 0 | 0F           5F 5I         0I      W W
                                       rank 1 |   1F      4F       4I   1I    W W
                                       rank 2 |     2F 3F            3I 2I W W

So rank r keeps its first chunk for (there + back)(p-1-r) steps on the outer ways and as many p-1 times on the inner
ones, and its second chunk for r times those: about 4, 6 and 12 (p-1) steps in all. A sixth of that is the peak in
chunks, and half of the chunks are micro-batches: p/3, p/2 and p.

Then the block is squeezed (only the order stays, idle time falls out) and reordered: in the warm-up forwards come as
early as the block's memory allows, in the cool-down W waits for the others. Whichever is shorter at unit costs is
taken; reordering is an event loop in plain Python. The order knows no other costs. V-Min has no slack: where F or I is
longer than W by a little, it waits in every step, so its bubble grows with m; V-Half's does where one is twice as long.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.closed_form import EQUAL_SECONDS, Assumption, ClosedForm
from pipelab.core.dispatch import dispatch
from pipelab.core.jobs import Jobs
from pipelab.core.list_schedule import plan_jobs
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.simulation import simulate
from pipelab.core.validation import check_size

__all__ = ["FAMILY"]

_PERIOD = 6
"""F, I and W of two chunks."""

Steps = tuple[int, int, int, int]
"""By how much later an action comes on the next rank: F there (first chunk), F back, I there (second chunk), I back."""

Waits = tuple[int, int, int]


def _block(num_ranks: int, steps: Steps, waits: Waits) -> IntArray | None:
    """When one micro-batch runs what; None where two micro-batches would meet.

    Args:
        num_ranks: p.
        steps: from rank to rank.
        waits: at the three turns, before the way goes on: F to F, F to I, I to I.

    Returns:
        Shape (3, 2, p): the start of F, I and W of each chunk on each rank.
    """
    up = np.arange(num_ranks)
    down = up[::-1]
    first = steps[0] * up
    second = first[-1] + 1 + waits[0] + steps[1] * down
    gradient = second[0] + 1 + waits[1] + steps[2] * up
    last = gradient[-1] + 1 + waits[2] + steps[3] * down
    starts = np.array([[first, second], [last, gradient]])
    taken = np.zeros((num_ranks, _PERIOD), dtype=np.int64)
    np.add.at(taken, (up, starts % _PERIOD), 1)
    if (taken > 1).any():
        return None
    free = np.nonzero(taken == 0)[1].reshape(num_ranks, 2).T
    ends = starts[1] + 1
    either = np.stack([ends + (slots - ends) % _PERIOD for slots in (free, free[::-1])])
    weights = np.where(either[0].sum(axis=0) <= either[1].sum(axis=0), either[0], either[1])
    return np.concatenate([starts, weights[None]])


def _held(block: IntArray) -> IntArray:
    """Shape (moments of a period, 2, p): how many micro-batches of each chunk a rank holds, as the block repeats."""
    time = np.arange(_PERIOD)[:, None, None]
    return np.asarray((time - block[0]) // _PERIOD - (time - block[2] - 1) // _PERIOD)


def _peak(block: IntArray) -> int:
    """The most chunks that any rank holds."""
    return int(_held(block).sum(axis=1).max())


def _best_block(num_ranks: int, steps: Steps) -> IntArray:
    """Of all ways to wait at the turns the one with the least memory, and of those the one that waits least."""
    turns = range(_PERIOD)
    ways: list[Waits] = sorted(product(turns, turns, turns), key=sum)
    blocks = (_block(num_ranks, steps, waits) for waits in ways)
    return min((block for block in blocks if block is not None), key=_peak)


def _urgency(jobs: Jobs, block: IntArray, *, reorder: bool) -> IntArray:
    """The numbers of all actions as the repeated block runs them; reordered, the W of the cool-down come last."""
    kind, stage, microbatch = jobs.columns
    rank, chunk = np.array(jobs.placement.ranks)[stage], stage // jobs.placement.num_ranks
    start = block[kind, chunk, rank] + _PERIOD * microbatch
    last_forward = block[0].max(axis=0) + _PERIOD * (jobs.num_microbatches - 1)
    return np.lexsort((stage, start, (kind == 2) & (start >= last_forward[rank]) & reorder))


def _build(
    num_ranks: int, num_microbatches: int, stages_per_rank: int, *, name: str, steps: Steps
) -> Schedule:
    check_size(name, 6 * num_ranks * num_microbatches)
    placement = Placement.v(num_ranks)
    block = _best_block(num_ranks, steps)
    jobs = plan_jobs(placement, num_microbatches, None, True, _peak(block), None)
    in_order = _urgency(jobs, block, reorder=False)
    rank = np.array(placement.ranks)[jobs.columns[1][in_order]]
    table = jobs.table([in_order[rank == r] for r in range(num_ranks)])
    squeezed = Schedule.from_table(table, placement, name=name)
    first, second = _held(block).max(axis=0)
    capped = replace(jobs, stage_caps=(*first.tolist(), *second[::-1].tolist()))
    reordered = dispatch(capped, _urgency(jobs, block, reorder=True))
    if simulate(squeezed, jobs.costs).makespan <= reordered.makespan:
        return squeezed
    return Schedule.from_table(jobs.table(reordered.orders), placement, name=name)


def _info(
    name: str, steps: Steps, peak: str, idle: str, description: str, form: ClosedForm | None = None
) -> ScheduleInfo:
    return ScheduleInfo(
        name=name,
        family="building block",
        paper="Pipeline Parallelism with Controllable Memory, arXiv 2405.15362",
        constraint="",
        formulas=f"at F = I = W and m >= 2p: idle {idle}; peak 2 {peak} chunks, that is {peak} micro-batches",
        description=description,
        builder=partial(_build, name=name, steps=steps),
        stages_per_rank=(2, 2),
        form=form,
    )


FAMILY = (
    _info(
        "v-min",
        (1, 1, 1, 1),
        "((p+4)//3)",
        "about 2/3 of 1F1B's at many ranks, less at few",
        "About a third of 1F1B's memory at many ranks; where F, I, W differ even a little, its bubble can grow with m.",
    ),
    _info(
        "v-half",
        (1, 2, 1, 2),
        "((p+2)//2)",
        "about 1/2 of 1F1B's at many ranks",
        "About half of 1F1B's memory and bubble at many ranks; where F or I is twice the others, its bubble "
        "grows with m.",
    ),
    _info(
        "v-zb",
        (2, 4, 2, 4),
        "p",
        "(p-1)F, the first fill (published as none, in span)",
        "The memory of 1F1B's first rank and, at F = I = W, no bubble beyond the first fill; else "
        "often longer than ZB-V.",
        ClosedForm.where(
            EQUAL_SECONDS,
            Assumption("m >= 2p", lambda t: t.m >= 2 * t.p),
            Assumption("c = 0", lambda t: t.c == 0),
            idle=lambda t: (t.p - 1) * t.F,
            peak=lambda t, r: 2 * min(t.m, t.p),
            work=lambda t: 2 * t.m * (t.F + t.I + t.W),
        ),
    ),
)
