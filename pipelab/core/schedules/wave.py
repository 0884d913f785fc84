"""Hanayo: 1F1B on a zig-zag of stages, so that a micro-batch runs through the ranks in waves.

Rank r holds stage r, then stage 2p-1-r of the way back, and again for each further wave: v = 2w stages. Every
micro-batch begins and ends on rank 0; where it turns, nothing is sent.

    p = m = 4, one wave     rank 0 | 0F0 0F1 0F2 0F3  .   .   .  7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 0B0  .  ...
    at F = B = 1            rank 1 |  .  1F0 1F1 1F2  .   .  6F0 1F3 6F1 6B0 6F2 6B1 6F3 6B2 1B0 6B3 1B1 ...
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import CODES, Kind
from pipelab.core.closed_form import Assumption, ClosedForm, Terms
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.interleaved import groups_of
from pipelab.core.schedules.phases import Rows
from pipelab.core.validation import check_size
from pipelab.errors import PipelabError

__all__ = ["FAMILY"]


def _hanayo(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    """Steps in each of which a rank has room for one F and then one B.

    Micro-batches follow each other two steps apart: the way there takes every second step of a rank, the way back
    the ones between. So the group of n micro-batches (n = p, if m is a multiple) fills a wave of 2n steps on each
    rank, its next wave follows at once, then the next group. Backwards mirror the forwards; the first of them
    runs in the step of the last forward of its micro-batch. No step is wanted twice, and while all steps are
    taken, a rank runs one F and one B in turn. The paper (arXiv 2308.15762) draws this for m = p.
    """
    p, m, v = num_ranks, num_microbatches, stages_per_rank
    if v % 2:
        raise PipelabError(
            f"hanayo takes an even stages_per_rank (a wave goes there and back), not {v}. "
            f"Nearest that work: {' and '.join(f'stages_per_rank={n}' for n in (v - 1, v + 1) if n)}."
        )
    check_size("hanayo", 2 * p * m * v)
    groups = groups_of(p, m)
    steps_of_wave = 2 * np.maximum(groups, p)
    group = np.repeat(np.arange(len(groups)), groups)
    begin = (np.cumsum(steps_of_wave) - steps_of_wave)[group] * (v // 2)
    begin += 2 * (np.arange(m) - (np.cumsum(groups) - groups)[group])

    rank, chunk, microbatch = np.ogrid[:p, :v, :m]
    way = np.where(chunk % 2, 2 * p - 1 - rank, rank)
    wave, length = chunk // 2, steps_of_wave[group]
    turn = 2 * p - 1 + (v // 2 - 1) * int(steps_of_wave[0])
    forward = begin + wave * length + way
    backward = begin + turn + (v // 2 - 1 - wave) * length + 2 * p - 1 - way

    columns = [np.broadcast_to(column, forward.shape).ravel() for column in (rank, chunk, microbatch)]
    ranks, chunks, microbatches = (np.tile(column, 2) for column in columns)
    rows = Rows(
        kind=np.repeat((CODES[Kind.F], CODES[Kind.B]), forward.size),
        chunk=chunks,
        microbatch=microbatches,
        rank=ranks,
        at=np.concatenate([2 * forward.ravel(), 2 * backward.ravel() + 1]),
        member=np.zeros_like(ranks),
    )
    placement = Placement.wave(p, v)
    return Schedule.from_table(rows.table(placement), placement, name="hanayo")


def _peak(t: Terms, rank: int) -> int:
    """The least of: all chunks; the forwards before a rank's first backward; what fills every step."""
    largest_group = int(groups_of(t.p, t.m)[0])
    return min(t.m * t.v, (t.v - 1) * t.m + 1 + rank, (t.v - 2) * largest_group + 2 * t.p)


# Derived here and held by the tests at every size and any F and B; it is not the formula of the paper.
_HANAYO = ClosedForm.where(
    Assumption("v even", lambda t: t.v % 2 == 0),
    Assumption("c = 0", lambda t: t.c == 0),
    idle=lambda t: (
        2 * (t.p - 1) * max(t.F, t.B) + max(0, t.p - t.m) * (2 * min(t.F, t.B) + (t.v - 2) * (t.F + t.B))
    ),
    peak=_peak,
)

FAMILY = (
    ScheduleInfo(
        name="hanayo",
        family="wave",
        paper="Hanayo, arXiv 2308.15762",
        constraint="v even",
        formulas="at m >= p: idle 2(p-1) max(F, B) of a chunk per rank; peak p v chunks where m mod p = 0; a small "
        "latency costs 2(v+1)(p-1)c at m = 2p, 3p, ...",
        description="1F1B over v/2 waves through the ranks: a bubble that shrinks with v, 1F1B's highest memory.",
        builder=_hanayo,
        stages_per_rank=(2, None),
        form=_HANAYO,
    ),
)
