"""Whether a trace fits the schedule that it says it is of: checked when it is made, also from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core.actions import KINDS, IntArray
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.trace import Trace

__all__ = ["LATEST", "check_columns", "check_fit", "check_times", "ranges"]

LATEST = 1e200
"""The latest end, in seconds: sums over all rows and ranks stay finite."""

_ROUNDING = 1e-9
"""The fraction of a step by which neighbours may overlap: times were shifted and added up in another order."""

_TICK = 1e-6
"""Seconds by which neighbours may overlap on a wall clock: profilers count microseconds."""


def check_fit(trace: Trace) -> None:
    """Bytes, costs and feed must be for as many stages, ranks and micro-batches as the schedule has.

    Raises:
        PipelabError: names the field.
        TypeError: one of them is something else.
    """
    schedule = trace.schedule
    values: dict[str, tuple[Any, type]] = {
        "bytes": (trace.bytes, StageBytes),
        "costs": (trace.costs, Costs),
        "feed": (trace.feed, Feed),
    }
    for name, (value, kind) in values.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be {kind.__name__} or None, not {type(value).__name__}.")
        count = getattr(value, "num_stages", schedule.num_model_stages)
        if count != schedule.num_model_stages:
            raise PipelabError(
                f"{name} are for {count} stages, but {schedule.name} has {schedule.num_model_stages} model stages."
            )
    if trace.costs is not None and trace.costs.links.num_ranks not in (None, schedule.num_ranks):
        raise PipelabError(
            f"costs.links are for {trace.costs.links.num_ranks} ranks, but {schedule.name} has {schedule.num_ranks}."
        )
    if trace.feed is not None:
        try:
            trace.feed.seconds(schedule.num_microbatches)
        except PipelabError as error:
            raise PipelabError(f"feed: {error}") from None


def ranges(schedule: Schedule, num_lanes: int) -> dict[str, tuple[int, int]]:
    """The lowest number that each column may hold after the cells, and the first that is too high."""
    return {
        "rank": (0, schedule.num_ranks),
        "lane": (1, num_lanes),  # lane 0 holds the cells alone
        "kind": (0, len(KINDS)),
        "stage": (0, schedule.num_stages),
        "microbatch": (0, schedule.num_microbatches),
    }


def check_columns(trace: Trace, of_cells: dict[str, IntArray]) -> None:
    """The first rows must be the schedule's cells, the others in lanes of their own and within its numbers.

    Args:
        trace: with columns of one length.
        of_cells: what the schedule says of its cells.
    """
    schedule, cells = trace.schedule, trace.schedule.table.num_cells
    for name, (lowest, limit) in ranges(schedule, len(trace.lanes)).items():
        column = getattr(trace, name)
        wrong = np.flatnonzero(column[:cells] != of_cells[name])
        if len(wrong):
            row = int(wrong[0])
            raise PipelabError(
                f"{name}[{row}] is {column[row]}, but row {row} is {schedule.table.action(row)} of {schedule.name}, "
                f"whose {name} is {of_cells[name][row]}."
            )
        wrong = np.flatnonzero((column[cells:] < lowest) | (column[cells:] >= limit))
        if len(wrong):
            row = cells + int(wrong[0])
            raise PipelabError(
                f"{name}[{row}] is {column[row]}; after the {cells} cells of {schedule.name} it must be from {lowest} "
                f"to {limit - 1}."
            )


def check_times(trace: Trace) -> None:
    """Times must begin at 0, and what a rank computes must be in its order, one thing at a time.

    Args:
        trace: with columns that fit.
    """
    start, end, rank = trace.start, trace.end, trace.rank
    first = float(start.min(initial=np.inf))
    if first != 0:
        raise PipelabError(f"start: the first start is 0, not {first}. Trace.from_times shifts times.")
    if end.max() > LATEST:
        row = int(end.argmax())
        raise PipelabError(f"end[{row}] is {end[row]}; the latest end that is taken is {LATEST:g} s.")
    allowed = _ROUNDING * float(end.max()) + (_TICK if trace.clock == "wall" else 0.0)
    orders: list[IntArray] = [np.arange(trace.schedule.table.num_cells)]
    working = trace.working_rows
    if not isinstance(working, slice) and len(working) > len(orders[0]):
        orders.append(working[np.lexsort((working, start[working], rank[working]))])
    for rows in orders:
        before, after = rows[:-1], rows[1:]
        wrong = (rank[before] == rank[after]) & (end[before] - start[after] > allowed)
        if wrong.any():
            a, b = int(before[wrong.argmax()]), int(after[wrong.argmax()])
            raise PipelabError(
                f"start[{b}] is {start[b]}, before end[{a}], {end[a]}: rank {rank[a]} computes one thing at a time, in "
                f"the order of {trace.schedule.name}; row {b} comes after row {a}."
            )
