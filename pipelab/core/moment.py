"""A step as a film: what every rank does at a moment, what it waits for, and what it holds.

    time    0     1     2     3   ...   one moment for each time at which anything starts or ends
    rank 0 | 0F0 | 0F1 |     | 0B0      at 2 s rank 0 waits to start 0B0, and holds micro-batches 0 and 1
    rank 1 |     | 1F0 | 1B0 | 1F1

Between two moments nothing changes, so that a walk through them misses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelab.core.actions import CODES, IntArray, Kind, as_index
from pipelab.core.critical_path import name_of
from pipelab.core.memory import MemoryCurve
from pipelab.core.quantities import as_bytes, as_seconds, counted
from pipelab.core.recurrence import FloatArray
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace
from pipelab.core.why import rows_that_occupy, why
from pipelab.errors import PipelabError

__all__ = ["DONE", "RUNS", "WAITS", "Moment", "Moments", "RankMoment"]

RUNS, WAITS, DONE = "runs", "waits", "done"
"""What a rank may do at a moment."""

_TOGETHER = 1e-9
"""Times closer than this fraction of the step are one moment: sums of the same numbers in another order."""

_SHOWN = 8
"""The most micro-batches in flight that a line of text names."""

_TOLD = 4
"""The most ranks whose changes a sentence tells."""


@dataclass(frozen=True)
class RankMoment:
    """What one rank does at a moment.

    Attributes:
        rank: from 0.
        does: `RUNS`, `WAITS` or `DONE`.
        row: of the trace, what runs or what the rank waits to start; -1 when it is done.
        action: the name of that row; "" when the rank is done.
        start: seconds: since when it does that.
        end: seconds: until when; the makespan when it is done.
        sentence: the same in words; of a wait with the reason, as `Trace.why` gives it.
        reason: of the sentence what the other attributes do not say.
        in_flight: (stage, micro-batch) of each micro-batch that is kept for its backward.
        beside: what other lanes of the rank do meanwhile, such as "the transfer of 0F1".
        kept: what the rank holds, in the unit of the moment.
    """

    rank: int
    does: str
    row: int
    action: str
    start: float
    end: float
    sentence: str
    reason: str
    in_flight: tuple[tuple[int, int], ...]
    beside: tuple[str, ...]
    kept: float


@dataclass(frozen=True)
class Moment:
    """What every rank does at a moment.

    Attributes:
        step: which moment of the step, from 0.
        time: seconds.
        changes: what starts and ends just then, in one sentence.
        ranks: one a rank.
        unit: of what ranks hold: "bytes" or "micro-batches".
        stages_per_rank: the most stages that one rank holds; with one, a micro-batch's number says all.
    """

    step: int
    time: float
    changes: str
    ranks: tuple[RankMoment, ...]
    unit: str
    stages_per_rank: int = 1

    def in_flight_text(self, rank: int) -> str:
        """The micro-batches in flight on a rank, some of many left out; "s4:0" is micro-batch 0 of stage 4."""
        names = [self.flight_name(*pair) for pair in self.ranks[rank].in_flight]
        return " ".join(names if len(names) <= _SHOWN else [*names[: _SHOWN - 2], "...", names[-1]])

    def flight_name(self, stage: int, microbatch: int) -> str:
        """How a micro-batch in flight is called: its number, and its stage where ranks hold several."""
        return str(microbatch) if self.stages_per_rank == 1 else f"s{stage}:{microbatch}"

    def kept_text(self, rank: int) -> str:
        """What a rank holds, with its unit."""
        return self.amount_text(self.ranks[rank].kept)

    def amount_text(self, value: float) -> str:
        """So much, in the unit of what ranks hold."""
        if self.unit == "bytes":
            return as_bytes(value)
        return counted(round(value), "micro-batch", "micro-batches")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                str(one.rank),
                one.does,
                one.action,
                as_seconds(one.end),
                self.in_flight_text(one.rank),
                self.kept_text(one.rank),
            ]
            for one in self.ranks
        ]
        return ["rank", "does", "action", "until", "in flight", "keeps"], rows

    def __str__(self) -> str:
        return f"{self.changes}\n{text_table(*self._table())}"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._table(), self.changes)


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """The moments of a step at which anything starts or ends, in order.

    Attributes:
        trace: simulated or measured.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
        >>> moments = Moments(pp.simulate(one, pp.Costs.uniform(2)))
        >>> print(moments.at(2))
        At 2 s: rank 0 ends 0F1 and waits to start 0B0; rank 1 ends 1F0 and starts 1B0.
        rank  does   action  until  in flight  keeps
        0     waits  0B0       4 s        0 1  2 micro-batches
        1     runs   1B0       4 s          0  1 micro-batch

    Raises:
        TypeError: no `Trace`.
        PipelabError: a step that takes no time at all.
    """

    trace: Trace

    def __post_init__(self) -> None:
        if not isinstance(self.trace, Trace):
            raise TypeError(
                f"Moments are those of a Trace, not of {type(self.trace).__name__}. A step has one, step.trace; a "
                "schedule is simulated first: pp.simulate(schedule, costs)."
            )
        if self.num_steps == 0:
            raise PipelabError(
                f"{self.trace.label} takes no time at all, so there is no moment after the first. Simulate it with "
                "costs above 0."
            )

    @cached_property
    def times(self) -> FloatArray:
        """Shape (moments,): seconds, ascending; the first 0, the last the makespan."""
        trace = self.trace
        every = np.unique(np.concatenate([trace.start, trace.end]))
        is_last = np.append(np.diff(every) > _TOGETHER * trace.makespan, True)
        times: FloatArray = every[
            is_last
        ]  # the last of those that are one: by then all of them have happened
        return times

    @property
    def num_steps(self) -> int:
        """How many steps lead from the first moment to the last; `at` takes 0 to `num_steps`."""
        return len(self.times) - 1

    @cached_property
    def most_kept(self) -> float:
        """The most that any rank ever holds, in the unit of the moments."""
        return max(curve.peak for curve in self._curves)

    def step_at(self, time: float) -> int:
        """The last moment not after a time in seconds; the first for a time before it."""
        found = int(np.searchsorted(self.times, time, side="right")) - 1
        return min(max(found, 0), self.num_steps)

    def at(self, step: int) -> Moment:
        """What every rank does at a moment.

        Args:
            step: from 0 to `num_steps`.

        Raises:
            PipelabError: no such moment.
            TypeError: no integer.
        """
        step = as_index("step", step)
        if not 0 <= step <= self.num_steps:
            raise PipelabError(f"step is {step}; {self.trace.label} has the moments 0 to {self.num_steps}.")
        time = float(self.times[step])
        flying = self._in_flight_at(time)
        beside = self._beside_at(time)
        ranks = tuple(
            self._of_rank(rank, time, flying.get(rank, ()), beside.get(rank, ()))
            for rank in range(self.trace.num_ranks)
        )
        changes = self._changes(step, ranks)
        return Moment(step, time, changes, ranks, self._curves[0].unit, self.trace.schedule.stages_per_rank)

    def _of_rank(
        self, rank: int, time: float, in_flight: tuple[tuple[int, int], ...], beside: tuple[str, ...]
    ) -> RankMoment:
        trace, rows = self.trace, self._rows[rank]
        curve = self._curves[rank]
        kept = float(curve.value[np.searchsorted(curve.time, time, side="right") - 1])
        row, does, since, until = self._occupied_by(rank, time)
        if does != DONE:
            found, action = why(trace, rank, time), name_of(trace, row)
            sentence, reason = found.sentence, found.reason
        elif len(rows):
            last = int(rows[np.argmax(trace.end[rows])])
            reason, action = f"{name_of(trace, last)} was its last action, until {as_seconds(since)}.", ""
            sentence = f"Rank {rank} is done: {reason}"
        else:
            sentence = reason = f"Rank {rank} has nothing to do in this step."
            action = ""
        return RankMoment(rank, does, row, action, since, until, sentence, reason, in_flight, beside, kept)

    def _occupied_by(self, rank: int, time: float) -> tuple[int, str, float, float]:
        """The row that runs or is waited for, which of the two, since when, until when."""
        rows, trace = self._rows[rank], self.trace
        start, end = trace.start[rows], trace.end[rows]
        running = np.flatnonzero((start <= time) & (time < end))
        if len(running):
            row = int(rows[running[0]])
            return row, RUNS, float(trace.start[row]), float(trace.end[row])
        since = float(end[end <= time].max(initial=0.0))
        later = start > time
        if later.any():
            row = int(rows[later][np.argmin(start[later])])
            return row, WAITS, since, float(trace.start[row])
        return -1, DONE, since, trace.makespan

    @cached_property
    def _rows(self) -> list[IntArray]:
        """For each rank the rows that occupy it."""
        rows = rows_that_occupy(self.trace)
        rank = self.trace.rank[rows]
        return [rows[rank == one] for one in range(self.trace.num_ranks)]

    @cached_property
    def _curves(self) -> tuple[MemoryCurve, ...]:
        return self.trace.memory()

    # -- what is in flight --------------------------------------------------------------------------------------

    @cached_property
    def _flights(self) -> tuple[IntArray, IntArray, IntArray, FloatArray, FloatArray]:
        """Rank, stage, micro-batch, begin and end of each flight: from a forward's start to its backward's end."""
        table, trace = self.trace.schedule.table, self.trace
        is_forward = table.kind == CODES[Kind.F]
        ends = np.isin(table.kind, [CODES[Kind.B], CODES[Kind.W]])
        key = table.stage.astype(np.int64) * (int(table.microbatch.max()) + 1) + table.microbatch
        forward, last = np.flatnonzero(is_forward), np.flatnonzero(ends)
        end = trace.end[table.cell[forward]]  # with no backward nothing is kept
        if len(last):
            order = last[np.argsort(key[last], kind="stable")]
            place = np.searchsorted(key[order], key[forward])
            end = trace.end[table.cell[order[place]]]
        begin = trace.start[table.cell[forward]]
        return table.rank[forward], table.stage[forward], table.microbatch[forward], begin, end

    def _in_flight_at(self, time: float) -> dict[int, tuple[tuple[int, int], ...]]:
        rank, stage, microbatch, begin, end = self._flights
        flying = np.flatnonzero((begin <= time) & (time < end))
        flying = flying[np.lexsort((begin[flying], rank[flying]))]
        found: dict[int, list[tuple[int, int]]] = {}
        for r, s, i in zip(
            rank[flying].tolist(), stage[flying].tolist(), microbatch[flying].tolist(), strict=True
        ):
            found.setdefault(r, []).append((s, i))
        return {r: tuple(pairs) for r, pairs in found.items()}

    @cached_property
    def _other_rows(self) -> IntArray:
        """Rows of lanes that do not occupy their rank: transfers, loaders."""
        is_other = np.ones(len(self.trace.start), dtype=bool)
        is_other[rows_that_occupy(self.trace)] = False
        return np.flatnonzero(is_other)

    def _beside_at(self, time: float) -> dict[int, tuple[str, ...]]:
        rows, trace = self._other_rows, self.trace
        found: dict[int, tuple[str, ...]] = {}
        for row in rows[(trace.start[rows] <= time) & (time < trace.end[rows])].tolist():
            rank = int(trace.rank[row])
            found[rank] = (*found.get(rank, ()), name_of(trace, row))
        return found

    # -- what changes -------------------------------------------------------------------------------------------

    def _changes(self, step: int, ranks: tuple[RankMoment, ...]) -> str:
        """What starts and ends at a moment, rank by rank, in one sentence."""
        after = -np.inf if step == 0 else float(self.times[step - 1])
        started, ended = (
            _within(column, order, after, float(self.times[step])) for column, order in self._orders
        )
        clauses, others = [], []
        for one in ranks:
            verbs = self._verbs(
                started[self.trace.rank[started] == one.rank], ended[self.trace.rank[ended] == one.rank], one
            )
            if verbs:
                clauses.append(f"rank {one.rank} {' and '.join(verbs)}")
            else:
                others.append(one)
        told = clauses[:_TOLD] if len(clauses) > _TOLD + 1 else clauses
        if len(told) < len(clauses):
            told.append(f"{counted(len(clauses) - len(told), 'more rank')} change")
        if step == 0 and (waiting := sum(one.does == WAITS for one in others)):
            told.append(_others_wait(waiting, len(others)))
        return f"At {as_seconds(float(self.times[step]))}: {'; '.join(told)}."

    def _verbs(self, started: IntArray, ended: IntArray, one: RankMoment) -> list[str]:
        trace = self.trace
        at_once = np.intersect1d(started, ended)  # what takes no time
        verbs = [f"ends {name_of(trace, row)}" for row in np.setdiff1d(ended, at_once).tolist()]
        verbs += [f"runs {name_of(trace, row)} in no time" for row in at_once.tolist()]
        verbs += [f"starts {name_of(trace, row)}" for row in np.setdiff1d(started, at_once).tolist()]
        occupied_until_now = bool(np.isin(ended, self._rows[one.rank]).any())
        if occupied_until_now and one.does == WAITS:
            verbs.append(f"waits to start {one.action}")
        if occupied_until_now and one.does == DONE:
            verbs.append("is done")
        return verbs

    @cached_property
    def _orders(self) -> tuple[tuple[FloatArray, IntArray], ...]:
        """Starts and ends, each sorted, with the rows that they are of."""
        pairs = []
        for column in (self.trace.start, self.trace.end):
            order = np.argsort(column, kind="stable")
            pairs.append((column[order], order))
        return tuple(pairs)

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"<Moments of {self.trace.label}: {counted(len(self), 'moment')}, {as_seconds(self.trace.makespan)}>"


def _others_wait(waiting: int, others: int) -> str:
    """That ranks wait of which nothing else is said; some may have nothing to do at all."""
    if waiting == others:
        return "all others wait" if waiting > 1 else "the other one waits"
    return f"{counted(waiting, 'other rank')} {'wait' if waiting > 1 else 'waits'}"


def _within(times: FloatArray, rows: IntArray, after: float, until: float) -> IntArray:
    """The rows whose time lies after one moment and not after the next."""
    a, b = np.searchsorted(times, [after, until], side="right")
    return rows[a:b]
