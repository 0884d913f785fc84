"""How short a step could be at best, whatever the order: what no schedule can beat.

A rank cannot start before the first value reaches it, cannot compute less than its work, and after its last
action the rest of that micro-batch's way is still to go. So, with free links and for every rank,

    makespan >= shortest head of its cells + work + shortest tail of its cells

where head and tail are the longest chains of needs before and after a cell. The order of the ranks plays no
part. (For p equal stages the last rank gives (p-1) F + m (F+B) + 0 where backwards are split, since a W ends the
step anywhere, and (p-1) (F+B) + m (F+B) where they are whole.)
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError

__all__ = ["chains", "lower_bound"]


def chains(
    schedule: Schedule, durations: FloatArray, after: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """The longest chains of needs before and after each cell, through any rank, whatever the orders are.

    Args:
        schedule: any schedule.
        durations: shape (cells,): seconds of each cell, in table order.
        after: shape (ranks,): seconds that each rank goes on when all its cells have ended, such as its
            optimizer's; None for none.

    Returns:
        Seconds before and after each cell, both of shape (cells,), without the cell itself.

    Raises:
        PipelabError: durations of another shape.
    """
    cells = schedule.table.num_cells
    seconds = np.asarray(durations, dtype=np.float64)
    if seconds.shape != (cells,):
        raise PipelabError(
            f"durations must have shape ({cells},), one a cell of {schedule.name}; they have {seconds.shape}."
        )
    takers, givers = _needs(schedule)
    took = seconds.tolist()
    ending = np.zeros(cells) if after is None else after[schedule.table.cell_ranks]
    head = _longest(givers, takers, took, [0.0] * cells)
    return head, _longest(takers[::-1], givers[::-1], took, ending.tolist())


def lower_bound(schedule: Schedule, durations: FloatArray, after: FloatArray | None = None) -> float:
    """The least makespan that any order of the same cells on the same ranks could have, with free links.

    It is a bound, not a promise: the best order may be longer.

    Args:
        schedule: any schedule; only its cells and their places count, not their order.
        durations: shape (cells,): seconds of each cell, in table order.
        after: shape (ranks,): seconds that each rank goes on when all its cells have ended; None for none.

    Returns:
        Seconds: the maximum over ranks of (work + shortest head + shortest tail).

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> lower_bound(one, np.where(one.table.cell_kinds == 0, 1.0, 2.0))
        33.0

    Raises:
        PipelabError: durations of another shape.
    """
    head, tail = chains(schedule, durations, after)
    ranks = schedule.table.cell_ranks
    starts = np.flatnonzero(np.diff(ranks, prepend=-1))  # a rank has a cell, as every stage has a forward
    work = np.add.reduceat(np.asarray(durations, dtype=np.float64), starts)
    best = work + np.minimum.reduceat(head, starts) + np.minimum.reduceat(tail, starts)
    return float(best.max())


def _needs(schedule: Schedule) -> tuple[list[int], list[int]]:
    """Which cell waits for which, the waiting cells in topological order."""
    found = schedule._check  # the check has looked up every need, also those within a rank
    table = schedule.table
    takers, givers = table.cell[found.needs.row], table.cell[found.givers]
    place = np.empty(table.num_cells, dtype=np.int64)
    place[schedule.topological_order] = np.arange(table.num_cells)
    order = np.argsort(place[takers], kind="stable")
    return _plain(takers[order]), _plain(givers[order])


def _plain(column: IntArray) -> list[int]:
    numbers: list[int] = column.tolist()
    return numbers


def _longest(givers: list[int], takers: list[int], took: list[float], at_least: list[float]) -> FloatArray:
    """The longest chain that ends before each cell; edges sorted by taker, in topological order."""
    before = at_least
    for giver, taker in zip(givers, takers, strict=True):
        arrival = before[giver] + took[giver]
        if arrival > before[taker]:
            before[taker] = arrival
    return np.array(before)
