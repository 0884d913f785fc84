"""Two copies of the model in opposite directions: Chimera and DualPipe.

Rank r holds stage r of the chain that runs upwards and stage p-1-r of the one that runs downwards, so that while
one chain fills, the other one fills from the far end. The price is two copies of the weights.

    chimera, p = m = 4    rank 0 | 0F0 0F1  .  7F2 7B2 7F3 7B3 0B0  .  0B1    stages 4 to 7 are the copies of
    at F = B = 1          rank 1 |  .  1F0 6F2 1F1 6F3 6B2 1B0 6B3 1B1  .     0 to 3; micro-batches 0 and 1 run
                          rank 2 |  .  5F2 2F0 5F3 2F1 2B0 5B2 2B1 5B3  .     upwards, 2 and 3 downwards
                          rank 3 | 4F2 4F3  .  3F0 3B0 3F1 3B1 4B2  .  4B3
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pipelab.core.actions import CODES, Kind
from pipelab.core.closed_form import Assumption, ClosedForm, at_most
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.phases import Phase, Rows, late_weights, lay_out
from pipelab.core.validation import check_size
from pipelab.errors import PipelabError

__all__ = ["FAMILY"]

_F, _B = CODES[Kind.F], CODES[Kind.B]


def _check_even(name: str, num_ranks: int) -> None:
    """Refuse an odd p, and name those next to it."""
    p = num_ranks
    if p % 2:
        options = " and ".join(f"num_ranks={q}" for q in (p - 1, p + 1) if q)
        raise PipelabError(
            f"{name} takes an even num_ranks, not num_ranks={p} (the rank in the middle would hold both copies of its "
            f"stage). Nearest that work: {options}."
        )


def _both_ways(name: str, rows: Rows, num_ranks: int, num_microbatches: int) -> Schedule:
    """The schedule of rows whose chunk is the direction, each direction with micro-batches of its own from 0.

    Micro-batches that there are not are left out: of an odd number one more runs upwards.
    """
    p, m = num_ranks, num_microbatches
    upwards = m - m // 2
    rows = rows.where(rows.microbatch < np.where(rows.chunk, m // 2, upwards))
    rows = replace(rows, microbatch=rows.microbatch + rows.chunk * upwards)
    placement = Placement.bidirectional(p)
    return Schedule.from_table(rows.table(placement), placement, name=name)


def _chimera(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    """Slots of one action each, in units of p micro-batches, half of them in each direction.

    In slots, the unit u begins at 2pu, and for i = 0 .. p/2 - 1 rank r runs

        upwards    F at r + 2i,       B at 2p-1-r + 2i
        downwards  F at p-1-r + 2i,   B at p+r + 2i

    Each of the two directions takes every second slot, and one unit fits into the gaps of the next: direct
    concatenation, the first of the paper's ways to run more than p micro-batches. Of the last unit only those
    micro-batches run that there are.
    """
    p, m = num_ranks, num_microbatches
    _check_even("chimera", p)
    check_size("chimera", 2 * p * m)
    rank, number = np.broadcast_arrays(*np.ogrid[:p, : m - m // 2])
    unit, i = np.divmod(number, p // 2)
    first = 2 * p * unit + 2 * i
    slots = (first + rank, first + p - 1 - rank, first + 2 * p - 1 - rank, first + p + rank)
    kind = np.repeat((_F, _F, _B, _B), number.size)
    rows = Rows(
        kind=kind,
        chunk=np.repeat((0, 1, 0, 1), number.size),
        microbatch=np.tile(number.ravel(), 4),
        rank=np.tile(rank.ravel(), 4),
        at=np.concatenate([slot.ravel() for slot in slots]),
        member=np.zeros_like(kind),
    )
    return _both_ways("chimera", rows, p, m)


def _dualpipe_phases(num_ranks: int, num_microbatches: int) -> tuple[Phase, ...]:
    """The eight phases of DualPipe.

    Digit 0 is the direction that begins at the rank's own end of the pipeline, 1 the other one; "." is a W that
    was put off. h counts ranks from the nearer end, k those to the middle.

    The first F0 and B1 of the two ranks in the middle do not overlap, as in DeepSeek's repository DualPipe: the
    neighbour has that F0 the sooner, which shortens the step where I is longer than F.
    """
    r = np.arange(num_ranks)
    h = np.minimum(r, r[::-1])
    k = num_ranks // 2 - 1 - h
    in_middle = (k == 0).astype(np.int64)
    overlapped = num_microbatches // 2 - num_ranks + h + 1
    return (
        Phase("F0", 2 * k),
        Phase("F0 F1", h + 1),
        Phase("I1 W1 F1", k),
        Phase("F0 B1", in_middle),
        Phase("F0;B1", 1 - in_middle),
        Phase("F1;B0", np.ones_like(r)),
        Phase("F0;B1 F1;B0", overlapped - 1),
        Phase("B1 F1;B0", k),
        # of these 2(h+1) backwards the later half puts its W off
        Phase("B1 B0", (h + 1) // 2),
        Phase("B1 I0", 1 - h % 2),
        Phase("I1 I0", (h + 1) // 2),
        Phase(". I0", k),
        Phase(".", h + 1),
    )


def _dualpipe(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    """The phases of an even number of at least 2p micro-batches, those left out that there are not."""
    p, m = num_ranks, num_microbatches
    _check_even("dualpipe", p)
    check_size("dualpipe", 2 * p * m)
    phases = _dualpipe_phases(p, max(2 * p, m + m % 2))
    rows, begins = lay_out(phases, p, m - m // 2)
    rows += late_weights(rows, begins[9] + phases[9].repeats, begins[11], phases[11].repeats)
    direction = rows.chunk ^ (rows.rank >= p // 2)
    return _both_ways("dualpipe", replace(rows, chunk=direction), p, m)


_FREE = Assumption("c = 0", lambda t: t.c == 0)
_EVEN = Assumption("p even", lambda t: t.p % 2 == 0)

# Derived from the slots and held by the tests at any F and B. The published (p-2)/(3m/2 + p-2) at B = 2F is its
# first unit alone: it forgets that between two units p-2 slots of F meet slots of B.
_CHIMERA = ClosedForm.where(
    _EVEN,
    Assumption("m mod p = 0", lambda t: t.m % t.p == 0),
    _FREE,
    idle=lambda t: (t.p - 2) * (max(t.F, t.B) + (t.m // t.p - 1) * abs(t.B - t.F)),
    peak=lambda t, r: t.p // 2 + 1 + min(r, t.p - 1 - r),
)

# The ranks with the most overlapped pairs, m - p - 1, are busy the shortest and idle the longest.
_DUALPIPE = ClosedForm.where(
    _EVEN,
    Assumption("m even, m >= 2p", lambda t: t.m % 2 == 0 and t.m >= 2 * t.p),
    Assumption("F = I", lambda t: math.isclose(t.F, t.I)),
    Assumption("W <= F", lambda t: at_most(t.W, t.F)),
    Assumption("B = I + W", lambda t: math.isclose(t.B, t.I + t.W)),
    Assumption("B <= F&B <= F + B", lambda t: at_most(t.B, t.overlap) and at_most(t.overlap, t.F + t.B)),
    _FREE,
    idle=lambda t: (t.p / 2 - 1) * (t.overlap + t.B - 3 * t.W),
    peak=lambda t, r: t.p + 1,
    work=lambda t: t.m * (t.F + t.B) - (t.m - t.p - 1) * (t.F + t.B - t.overlap),
    also="equal stages; idle time of the worst rank (of every rank, where F&B = F + B)",
)

FAMILY = (
    ScheduleInfo(
        name="dualpipe",
        family="bidirectional",
        paper="DualPipe, DeepSeek-V3, arXiv 2412.19437",
        constraint="p even",
        formulas="at even m >= 2p, F = I, W <= F and B <= F&B <= F+B: idle (p/2-1)(F&B + B - 3W) on the worst rank; "
        "peak p+1; two copies of the weights",
        description="Both directions at once, forward and backward overlapped, W put off where it fills gaps.",
        builder=_dualpipe,
        form=_DUALPIPE,
    ),
    ScheduleInfo(
        name="chimera",
        family="bidirectional",
        paper="Chimera, arXiv 2107.06925",
        constraint="p even",
        formulas="at m mod p = 0: idle (p-2)(max(F,B) + (m/p-1)|B-F|), p-2 slots at F = B; peak p/2+1 at the ends to p "
        "in the middle; two copies of the weights",
        description="Two pipelines in opposite directions that fill each other's gaps: less than half of 1F1B's bubble "
        "at F = B; where they differ it grows with m.",
        builder=_chimera,
        form=_CHIMERA,
    ),
)
