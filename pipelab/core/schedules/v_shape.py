"""Schedules on a V: rank r holds the stages r and 2p-1-r, so the first and the last stage share rank 0.

A micro-batch goes down and comes back up, so a rank that begins it early also ends it early, and the peak is the
same on every rank.

    ZB-V, p = 2      rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 ...
                     rank 1 |  .  1F0 2F0 1F1 2F1 2I0 2W0 ...

Both are written as phases for at least as many micro-batches as the warm-up takes; with fewer, the actions of
those that there are not are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from pipelab.core.closed_form import EQUAL_SECONDS, Assumption, ClosedForm, Terms, at_most
from pipelab.core.costs import Costs
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.automatic import search_from
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.linear import hops_of_1f1b
from pipelab.core.schedules.phases import Phase, late_weights, lay_out
from pipelab.core.validation import check_size

__all__ = ["FAMILY"]


def _zb_v(
    num_ranks: int,
    num_microbatches: int,
    stages_per_rank: int,
    *,
    costs: Costs | None = None,
    max_in_flight: int | Iterable[int] | None = None,
    max_bytes: float | Iterable[float] | None = None,
) -> Schedule:
    """The closed form of arXiv 2401.10241, section 6; with costs or caps, what a search finds from there on.

    2(p-r)-1 forwards fill the way down and back; r rounds of both chunks and p-r of the second with its backward
    follow; then a rank repeats all six actions (its steady state). Once the forwards are done, r rounds hold W back,
    since the ranks above wait for I.
    """
    p, m, r = num_ranks, num_microbatches, np.arange(num_ranks)
    check_size("zb-v", 6 * p * m)
    n = max(m, 2 * p - 1)
    phases = (
        Phase("F0", 2 * (p - r) - 1),
        Phase("F1 F0", r),
        Phase("F1 I1 W1", p - r),
        Phase("F0 I0 W0 F1 I1 W1", np.full(p, n - p)),
        Phase("I0 I1", r),
        Phase("I0 W0", p - r),
        Phase("W1", r),
        Phase("W0", r),
    )
    rows, _ = lay_out(phases, p, m)
    placement = Placement.v(p)
    closed = Schedule.from_table(rows.table(placement), placement, name="zb-v")
    if costs is None and max_in_flight is None and max_bytes is None:
        return closed
    return search_from(closed, costs, max_in_flight, max_bytes)


def _dualpipev(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    """DualPipe folded into a V, as in DeepSeek's repository DualPipe: the same eight phases.

    The backwards are whole while a forward runs beside them, and cut in the phases where the pipeline fills and drains.
    Half of the last backwards of both chunks are cut already; their p W run last, oldest first: p-1-r of them before
    another I, the rest at the end.
    """
    p, m, r = num_ranks, num_microbatches, np.arange(num_ranks)
    check_size("dualpipev", 4 * p * m)
    n, last = max(m, 2 * p), r == p - 1
    even, odd = (r + 1) // 2, (r + 1) % 2
    phases = (
        Phase("F0", 2 * (p - 1 - r)),
        Phase("F0 F1", r + 1),
        Phase("I1 W1 F1", p - 1 - r),
        Phase(
            "F0 B1 F1;B0", 1 * last
        ),  # the last rank has its own output at once: nothing to overlap with yet
        Phase("F0;B1 F1;B0", n - 2 * p + r + 1 - last),
        Phase("B1 F1;B0", p - 1 - r),
        Phase("B1 B0", even),
        Phase("B1 I0", odd),
        Phase("I1 I0", even),
        Phase(". I0", p - 1 - r),
        Phase(".", r + 1),
    )
    rows, begins = lay_out(phases, p, m)
    rows += late_weights(rows, begins[7] + odd, begins[9], p - 1 - r)
    placement = Placement.v(p)
    return Schedule.from_table(rows.table(placement), placement, name="dualpipev")


def _work_dualpipev(t: Terms) -> float:
    """Seconds that the ranks with the most overlaps are busy: the last two, with 2(m-p)-1 of them."""
    return 2 * t.m * (t.F + t.B) - (2 * (t.m - t.p) - 1) * (t.F + t.B - t.overlap)


FAMILY = (
    ScheduleInfo(
        name="zb-v",
        family="V-shaped",
        paper="Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 6",
        constraint="",
        formulas="at F = I = W and m >= 2p-1: no bubble in span, idle (p-1)F in the step; peak 2p chunks on every rank",
        description="At F = I = W no bubble in span, at the memory of 1F1B's first rank, on a V of two stages a rank; "
        "where they differ, give it costs= to search on from there.",
        builder=_zb_v,
        keywords=("costs", "max_in_flight", "max_bytes"),
        stages_per_rank=(2, 2),
        form=ClosedForm.where(
            EQUAL_SECONDS,
            Assumption("m >= 2p-1", lambda t: t.m >= 2 * t.p - 1),
            Assumption("c <= F/2", lambda t: at_most(2 * t.c, t.F)),
            idle=lambda t: (t.p - 1) * t.F + max(0, 5 * t.p - 7) * t.c,
            peak=lambda t, r: 2 * min(t.m, t.p),
            work=lambda t: 2 * t.m * (t.F + t.I + t.W),
        ),
    ),
    ScheduleInfo(
        name="dualpipev",
        family="V-shaped",
        paper="DualPipe, arXiv 2412.19437, folded as in its repository",
        constraint="",
        formulas="at m >= 2p, F = I, W <= I and F&B >= max(F, B): idle of the worst rank (p-1)(F&B + B - 3W); peak "
        "2p+1 chunks on every rank",
        description="DualPipe folded into a V, with one copy of the weights: forwards and backwards overlap.",
        builder=_dualpipev,
        stages_per_rank=(2, 2),
        form=ClosedForm.where(
            Assumption("F = I", lambda t: math.isclose(t.F, t.I)),
            Assumption("W <= I", lambda t: at_most(t.W, t.I)),
            Assumption("B = I+W", lambda t: math.isclose(t.B, t.I + t.W)),
            Assumption("m >= 2p", lambda t: t.m >= 2 * t.p),
            Assumption("F&B >= F and F&B >= B", lambda t: at_most(max(t.F, t.B), t.overlap)),
            Assumption("2(p-1)c <= F", lambda t: at_most(2 * (t.p - 1) * t.c, t.F)),
            idle=lambda t: (t.p - 1) * (t.overlap + t.B - 3 * t.W) + hops_of_1f1b(t) * t.c,
            peak=lambda t, r: min(2 * t.m, 2 * t.p + 1),
            work=_work_dualpipev,
            also="equal stages; the idle time is that of the worst rank where F&B saves time",
        ),
    ),
)
