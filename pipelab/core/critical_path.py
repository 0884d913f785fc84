"""The longest path through a step: why each action started when it did.

An action starts when its rank is free and its input is there; whichever came last is its cause. The critical path
goes from the last end back from cause to cause: no shorter step without making one of its actions shorter, or the
order another.

    rank 0 | 0F0=0F1                 0B0---- 0B1----      0B1 comes after 0B0, which needs 1B0,
    rank 1 |     1F0=1B0----1F1 1B1----                   which comes after 1F0, which needs 0F0

In a simulated step every link of the chain touches the next, but for the time that a transfer takes. In a measured
one there is time in between: transfer, waiting and overhead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import KINDS, IntArray
from pipelab.core.feed import LOAD, PREPARE
from pipelab.core.quantities import as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.simulation import Tasks, tasks_of
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import COMPUTE, COPY, UPDATE, Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SHOWN", "Causes", "CriticalPath", "Link", "critical_path", "name_of", "reason_of"]

SHOWN = 40
"""The most rows that a path prints; more are elided in the middle."""

_ROUNDING = 1e-12
"""What is less than this fraction of the work is a rounded nothing."""


Link = tuple[int, int, float]
"""A row, the row that caused it (-1 for none), and seconds of the transfer between."""


@dataclass(frozen=True, eq=False, repr=False)
class Causes:
    """What made each task of a run start when it did.

    Attributes:
        tasks: in rows (ranks, links, a loader, ...), each waiting for some of other rows.
        is_exact: whether all that was waited for is known, as of a simulation; else there is time in between.
        rank: shape (rows,), of the trace.
        start: shape (rows,), of the trace, seconds.
        end: shape (rows,), of the trace, seconds.
    """

    tasks: Tasks
    is_exact: bool
    rank: IntArray
    start: FloatArray
    end: FloatArray

    @classmethod
    def of(cls, trace: Trace) -> Causes:
        """Of a simulation with all that it was made from; of any other run from its cells alone."""
        schedule = trace.schedule
        if trace.costs is not None:
            tasks = tasks_of(schedule, trace.costs, trace.feed)
            if all(
                np.array_equal(times[tasks.task], shown)
                for times, shown in ((tasks.start, trace.start), (tasks.end, trace.end))
            ):
                return cls(tasks, True, trace.rank, trace.start, trace.end)
        cells = schedule.table.num_cells
        moves = np.zeros(len(schedule.workload.hops))
        tasks = Tasks(schedule.recurrence, np.arange(cells), trace.start[:cells], trace.end[:cells], moves)
        return cls(tasks, False, trace.rank, trace.start, trace.end)

    @cached_property
    def row(self) -> list[int]:
        """For each task its row of the trace; -1 for a moment that has none."""
        rows = np.full(len(self.tasks.start), -1, dtype=np.int64)
        rows[self.tasks.task] = np.arange(len(self.tasks.task))
        found: list[int] = rows.tolist()
        return found

    @cached_property
    def _columns(self) -> tuple[list[int], ...]:
        r = self.tasks.recurrence
        columns: tuple[list[int], ...] = tuple(
            x.tolist() for x in (r.work, r.hop, r.previous, r.needed, r.place)
        )
        return columns

    def cause(self, task: int) -> tuple[int, float]:
        """The task that came last of those that this one waited for, and the seconds of the transfer between.

        -1 where it waited for nothing. Of several that came together, the one before it in its row.
        """
        return max(self._waits(task), key=lambda wait: self.tasks.end[wait[0]] + wait[1], default=(-1, 0.0))

    def _waits(self, task: int) -> list[tuple[int, float]]:
        """All tasks that this one waited for, each with the transfer between; first the one before it in its row."""
        work, hop, previous, needed, place = self._columns
        entry = place[task] - 2  # the two sentinels
        found: list[tuple[int, float]] = []
        while True:
            if needed[entry] >= 2:
                found.append((work[needed[entry] - 2], float(self.tasks.moves[hop[entry]])))
            before = previous[entry] - 2
            if before < 0 or work[before] >= 0:
                break
            entry = before  # an entry of the same task, which only waits
        return ([(work[before], 0.0)] if before >= 0 else []) + found

    def last(self, rows: IntArray) -> list[int]:
        """Of some rows those that end last; without those that another of them waited for, if it took no time."""
        ending = rows[self.end[rows] == self.end[rows].max()].tolist()
        left = [int(self.tasks.task[row]) for row in ending if row < len(self.tasks.task)]
        waited = set[int]()
        moments = set[int]()  # tasks that have no row: one looks at what they waited for
        while left and len(ending) > 1:
            for giver, _ in self._waits(left.pop()):
                if self.row[giver] >= 0:
                    waited.add(self.row[giver])
                elif giver not in moments:
                    moments.add(giver)
                    left.append(giver)
        return [row for row in ending if row not in waited]

    def chain(self, row: int) -> Iterator[Link]:
        """From a row back to the beginning."""
        while row >= 0:
            before, moved = self._row_before(row)
            yield row, before, moved
            row = before

    def _row_before(self, row: int) -> tuple[int, float]:
        if row >= len(self.tasks.task):  # what it waits for is not known: what its rank did last
            ended = (self.rank == self.rank[row]) & (self.end <= self.start[row])
            ended &= (self.end < self.start[row]) | (np.arange(len(ended)) < row)
            latest = int(np.argmax(np.where(ended, self.end, -np.inf)))
            return (latest if ended[latest] else -1), 0.0
        task, moved = self.cause(int(self.tasks.task[row]))
        while task >= 0 and self.row[task] < 0:
            task, more = self.cause(task)
            moved += more
        return (self.row[task] if task >= 0 else -1), moved


def name_of(trace: Trace, row: int) -> str:
    """What a row does, as a noun: "2F0", "the transfer of 2F0", "the loading of micro-batch 3"."""
    lane = trace.lanes[trace.lane[row]]
    cell = trace.schedule.table
    if lane == COMPUTE:
        return str(cell.action(row))
    if lane.startswith((LOAD, PREPARE)):
        what = "loading" if lane.startswith(LOAD) else "preparation"
        return f"the {what} of micro-batch {trace.microbatch[row]}"
    action = f"{trace.stage[row]}{KINDS[trace.kind[row]].value}{trace.microbatch[row]}"
    return f"the transfer of {action}" if lane == COPY else action


def reason_of(trace: Trace, row: int, before: int, moved: float) -> str:
    """Why a row started when it did, as a predicate: "needs 3B0 of rank 3"."""
    if before < 0:
        return "waits for nothing"
    name = name_of(trace, before)
    lane, lane_before = trace.lanes[trace.lane[row]], trace.lanes[trace.lane[before]]
    same_rank = trace.rank[row] == trace.rank[before]
    works = lane in (COMPUTE, UPDATE)
    if works and lane_before in (COMPUTE, UPDATE):
        if same_rank:
            return f"comes after {name} on its rank"
        on_its_way = f", {as_seconds(moved)} on the way" if moved else ""
        return f"needs {name} of rank {trace.rank[before]}{on_its_way}"
    if lane_before == COPY and works and not same_rank:
        return f"needs {name} from rank {trace.rank[before]}"
    if lane == COPY and lane_before == COMPUTE:
        return f"follows {name}"
    if lane.startswith((LOAD, PREPARE)) and lane_before in (COMPUTE, COPY):
        return f"finds no room in the queue until {name} ends"
    if lane == lane_before or (lane_before == COPY and same_rank):
        return f"comes after {name}"
    return f"waits for {name}"


@dataclass(frozen=True, eq=False, repr=False)
class CriticalPath:
    """The rows of a trace that make the step as long as it is, from the first start to the last end.

    Attributes:
        rows: shape (n,): rows of the trace, in order of time.
        wait: shape (n,): seconds between the end of the row before (0 for the first) and the start of this one. In a
            simulation the time of a transfer; in a measured step transfer, waiting and overhead.
        why: for each why it started when it did, such as "needs 3B0 of rank 3".

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
        >>> print(pp.simulate(one, pp.Costs.uniform(2, latency=0.5)).critical_path())
        action  rank  start    end  why
        0F0        0    0 s    1 s  waits for nothing
        1F0        1  1.5 s  2.5 s  needs 0F0 of rank 0, 500 ms on the way
        1B0        1  2.5 s  4.5 s  comes after 1F0 on its rank
        1F1        1  4.5 s  5.5 s  comes after 1B0 on its rank
        1B1        1  5.5 s  7.5 s  comes after 1F1 on its rank
        0B1        0    8 s   10 s  needs 1B1 of rank 1, 500 ms on the way
        10 s: 9 s of work, 1 s of transfers
    """

    rows: IntArray
    wait: FloatArray
    why: tuple[str, ...]
    _trace: Trace = field(repr=False)

    @property
    def start(self) -> FloatArray:
        """Shape (n,): when each row starts, seconds."""
        return self._trace.start[self.rows]

    @property
    def end(self) -> FloatArray:
        """Shape (n,): when each row ends, seconds."""
        return self._trace.end[self.rows]

    @property
    def rank(self) -> IntArray:
        """Shape (n,): the rank of each row."""
        return self._trace.rank[self.rows]

    @cached_property
    def actions(self) -> tuple[str, ...]:
        """What each row does: "2F0", "the transfer of 2F0", "the loading of micro-batch 3"."""
        return tuple(name_of(self._trace, row) for row in self.rows.tolist())

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CriticalPath):
            return NotImplemented
        return self.why == other.why and all(
            np.array_equal(a, b)
            for a, b in ((self.rows, other.rows), (self.start, other.start), (self.end, other.end))
        )

    def __hash__(self) -> int:
        return hash((self.rows.tobytes(), self.start.tobytes(), self.end.tobytes()))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row for each of the path."""
        return {
            "action": np.array(self.actions, dtype=object),
            "rank": self.rank,
            "start [s]": self.start,
            "end [s]": self.end,
            "wait [s]": self.wait,
            "why": np.array(self.why, dtype=object),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _table(self) -> tuple[list[str], list[list[str]]]:
        n, half = len(self), SHOWN // 2
        shown = range(n) if n <= SHOWN else (*range(half), *range(n - half, n))
        names, rank, start, end = self.actions, self.rank, self.start, self.end
        rows = [
            [names[k], str(rank[k]), as_seconds(start[k]), as_seconds(end[k]), self.why[k]] for k in shown
        ]
        if n > SHOWN:
            rows.insert(half, ["...", "", "", "", f"{n - SHOWN:,} more"])
        return ["action", "rank", "start", "end", "why"], rows

    @property
    def _sum(self) -> str:
        """The makespan as the sum of what the path is made of."""
        trace, took = self._trace, self.end - self.start
        lanes = np.array(trace.lanes, dtype=object)[trace.lane[self.rows]]
        work = float(took[np.isin(lanes, (COMPUTE, UPDATE))].sum())
        copies = float(took[lanes == COPY].sum())
        between = float(self.wait.sum())
        parts = {"work": work, "loading and preparing": float(took.sum()) - work - copies}
        if trace._causes.is_exact:
            parts["transfers"] = copies + between
        else:
            parts |= {"transfers": copies, "transfer, waiting and overhead": between}
        told = [
            f"{as_seconds(x)} of {name}"
            for name, x in parts.items()
            if name == "work" or x > _ROUNDING * work
        ]
        return f"{as_seconds(float(took.sum()) + between)}: {', '.join(told)}"

    def __str__(self) -> str:
        return text_table(*self._table(), self._sum)

    def __repr__(self) -> str:
        return f"<CriticalPath of {self._trace.label}, {self._sum}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._table(), f"Critical path of {self._trace.label}", self._sum)


def critical_path(trace: Trace) -> CriticalPath:
    """Go back from the last end, from cause to cause.

    Args:
        trace: simulated or measured.
    """
    links = list(trace._causes.chain(trace._causes.last(np.arange(len(trace.end)))[0]))[::-1]
    rows = np.array([row for row, _, _ in links], dtype=np.int64)
    start, end = trace.start[rows], trace.end[rows]
    wait = start - np.append(0.0, end[:-1])
    return CriticalPath(rows, wait, tuple(reason_of(trace, *link) for link in links), trace)
