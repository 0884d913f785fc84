"""A schedule drawn with characters: ranks down, time steps across.

    rank 0 | 0F0 0F1  .   .  0B0 ---  .  0B1 ---
    rank 1 |  .  1F0 1B0 --- 1F1 1B1 ---  .   .

A box of a cell is followed by dashes for as long as it takes; a dot is a step in which the rank waits.
"""

from __future__ import annotations

import itertools

import numpy as np

from pipelab.core.actions import CODES, KINDS, Action, IntArray, Kind
from pipelab.core.costs import Costs
from pipelab.core.quantities import as_percent, as_seconds
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

__all__ = ["draw_grid"]

_MAX_RANKS = 32
_MAX_STEPS = 200
_ELISION = "..."


def draw_grid(schedule: Schedule, costs: Costs | None, width: int) -> str:
    """Draw a schedule under costs; see `Schedule.grid`."""
    if width < 40:
        raise PipelabError(f"width is {width}; a grid needs at least 40 characters.")
    trace = simulate(schedule, Costs.uniform(schedule.num_model_stages) if costs is None else costs)
    step, exact = _step(trace)
    terms = "F = I = W = 1, B = 2, no latency" if costs is None else "given costs"
    column, makespan = (f"{x:g}" if costs is None else as_seconds(x) for x in (step, trace.makespan))
    rounded = "" if exact else ", rounded"
    bubble = as_percent(trace.report().bubble_fraction)
    unseen = CODES[Kind.U] in trace.kind[_untimed(trace)]
    bubble += "; updates take no time and are not drawn" if unseen else ""
    headline = f"{terms}; one column is {column}{rounded}: makespan {makespan}, bubble fraction {bubble}"
    return "\n".join([headline, *_rows(trace, step, width)])


def _step(trace: Trace) -> tuple[float, bool]:
    """The length of one column in seconds, and whether every start and end falls on a column."""
    rows = trace.working_rows
    durations = trace.durations[rows][trace.durations[rows] > 0]
    if not len(durations):
        return 1.0, True
    shortest = float(durations.min())
    times = np.concatenate([trace.start[rows], trace.end[rows]])
    for step in (shortest, shortest / 2, shortest / 4):
        if np.abs(times / step - np.round(times / step)).max() < 1e-6:
            return step, True
    return max(shortest, trace.makespan / _MAX_STEPS), False


def _rows(trace: Trace, step: float, width: int) -> list[str]:
    num_steps = max(1, round(trace.makespan / step))
    ranks = _shown(trace.num_ranks, _MAX_RANKS, _MAX_RANKS // 2)
    head = len(f"rank {trace.num_ranks - 1} |")
    box = _box(trace.schedule)
    room = (width - head) // (box + 1)
    columns = _shown(num_steps, room, 2 * room // 3)
    cells = _cells(trace, step, ranks, columns, box)
    missing_ranks, missing_steps = trace.num_ranks - len(ranks), num_steps - len(columns)

    lines = []
    for rank, row in cells.items():
        if missing_ranks and rank == ranks[_MAX_RANKS // 2]:
            lines.append(f"{_ELISION} {missing_ranks} ranks not shown {_ELISION}")
        shown = [*row[: 2 * room // 3], _ELISION, *row[2 * room // 3 :]] if missing_steps else row
        lines.append(f"{f'rank {rank} |'.rjust(head)} {' '.join(shown)}".rstrip())
    if missing_steps:
        lines.append(f"({_ELISION} stands for {missing_steps:,} of {num_steps:,} columns)")
    return lines


def _shown(count: int, room: int, first: int) -> list[int]:
    """Which of `count` things are drawn: all, or the first few and the last few."""
    return list(range(count)) if count <= room else [*range(first), *range(count - (room - 1 - first), count)]


def _cells(trace: Trace, step: float, ranks: list[int], columns: list[int], box: int) -> dict[int, list[str]]:
    working = np.setdiff1d(np.arange(len(trace.start))[trace.working_rows], _untimed(trace))
    cells = {rank: [".".center(box)] * len(columns) for rank in ranks}
    place = {column: k for k, column in enumerate(columns)}
    begin = np.round(trace.start[working] / step).astype(np.int64)
    stop = np.maximum(begin + 1, np.round(trace.end[working] / step).astype(np.int64))
    first_gap, after_gap = next(((a + 1, b) for a, b in itertools.pairwise(columns) if b > a + 1), (0, 0))
    drawn = np.isin(trace.rank[working], ranks) & ~(
        (begin >= first_gap) & (stop <= after_gap) & (first_gap < after_gap)
    )
    for k in np.flatnonzero(drawn).tolist():
        line = cells[int(trace.rank[working[k]])]
        for column in range(int(begin[k]), int(stop[k])):
            if column in place:
                text = _text(trace, int(working[k])) if column == begin[k] else "-" * box
                line[place[column]] = text.center(box)
    return cells


def _untimed(trace: Trace) -> IntArray:
    """The rows of updates that take no time: in a box each, they would seem to take some."""
    return np.flatnonzero((trace.kind == CODES[Kind.U]) & (trace.durations == 0))


def _text(trace: Trace, row: int) -> str:
    """What is in the box of one row: a cell, or an update behind the cells."""
    table = trace.schedule.table
    if row < table.num_cells:
        return _label(table.action(row))
    return f"{trace.stage[row]}{KINDS[trace.kind[row]]}{trace.microbatch[row]}"


def _label(action: Action) -> str:
    return "&".join(map(str, action.members)) if action.members else str(action)


def _box(schedule: Schedule) -> int:
    """How wide the widest cell is."""
    table = schedule.table
    plain = len(f"{schedule.num_stages - 1}F{schedule.num_microbatches - 1}")
    most = int(np.bincount(table.cell).max())
    return most * plain + most - 1
