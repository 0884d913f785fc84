"""What a rank does at a moment, and what it waits for in a gap: a sentence, and the chain of actions behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Real

import numpy as np

from pipelab.core.actions import IntArray, as_index
from pipelab.core.critical_path import SHOWN, Link, critical_path, name_of, reason_of
from pipelab.core.quantities import as_seconds, counted
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import COMPUTE, COPY, UPDATE, Trace
from pipelab.errors import PipelabError

__all__ = ["Why", "rows_that_occupy", "why"]

_ROUNDING = 1e-12
"""What is less than this fraction of the step is a rounded nothing."""

_HAND_OVER = 0.1
"""Of a measured action's length: a shorter gap to the next one is no pause, but what handing over takes."""

_TOLD = 4
"""The most links of a chain that a sentence tells."""


@dataclass(frozen=True, eq=False)
class Why:
    """What a rank does at a moment; in a gap, the chain of actions that it waits for.

    Attributes:
        rank: whose moment.
        time: seconds.
        sentence: what there is to say.
        reason: of the sentence what it gives as the reason; "" where it gives none.
        rows: shape (n,): rows of the trace. In a gap the row that ends it, then what that one waited for, back to what
            ran when the gap began, and on over other ranks to one that had work all the while; within an action that
            action; after a rank's last action what the step goes on with, in order of time.
        why: for each row why it started when it did.
    """

    rank: int
    time: float
    sentence: str
    reason: str
    rows: IntArray
    why: tuple[str, ...]
    _trace: Trace = field(repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Why):
            return NotImplemented
        mine, theirs = (self.rank, self.time, self.sentence), (other.rank, other.time, other.sentence)
        return mine == theirs and np.array_equal(self.rows, other.rows)

    def __hash__(self) -> int:
        return hash((self.rank, self.time, self.sentence))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        trace = self._trace
        rows = [
            [
                name_of(trace, row),
                str(trace.rank[row]),
                as_seconds(trace.start[row]),
                as_seconds(trace.end[row]),
                reason,
            ]
            for row, reason in zip(self.rows.tolist()[:SHOWN], self.why, strict=False)
        ]
        if len(self.rows) > SHOWN:
            rows.append(["...", "", "", "", f"{len(self.rows) - SHOWN:,} more"])
        return ["action", "rank", "start", "end", "why"], rows

    def __str__(self) -> str:
        return f"{self.sentence}\n{text_table(*self._table())}" if len(self.rows) else self.sentence

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return (
            html_table(*self._table(), self.sentence) if len(self.rows) else f"<p>{escape(self.sentence)}</p>"
        )


def why(trace: Trace, rank: int, time: float) -> Why:
    """Say what a rank does at a moment, or what it waits for.

    Args:
        trace: simulated or measured.
        rank: from 0.
        time: seconds, from 0 to the makespan.

    Raises:
        PipelabError: no such rank, or a time outside the step.
        TypeError: `rank` is no integer.
    """
    rank = as_index("rank", rank)
    if not 0 <= rank < trace.num_ranks:
        raise PipelabError(
            f"rank is {rank}; {trace.label} has {counted(trace.num_ranks, 'rank')}, counted from 0."
        )
    is_number = isinstance(time, Real) and not isinstance(time, bool)
    if not (is_number and 0 <= time <= trace.makespan):
        raise PipelabError(
            f"time is {time!r}; {trace.label} goes from 0 s to {as_seconds(trace.makespan)}. Give a moment in between."
        )
    moment = float(time)
    rows = rows_that_occupy(trace)
    mine = rows[trace.rank[rows] == rank]
    start, end = trace.start[mine], trace.end[mine]
    running = np.flatnonzero((start <= moment) & (moment < end))
    if len(running):
        return _while_running(trace, rank, moment, int(mine[running[0]]))
    if moment >= end.max():
        return _after_the_last(trace, rank, moment, trace._causes.last(mine)[-1])
    following = start > moment
    row = int(mine[following][np.argmin(start[following])])
    return _within_a_gap(trace, rank, moment, row, float(end[end <= moment].max(initial=0.0)))


def rows_that_occupy(trace: Trace) -> IntArray:
    """The rows that occupy their rank: its work, and what it sends where sends block."""
    lanes = [COMPUTE, UPDATE]
    if trace.costs is not None and trace.costs.links.blocking:
        lanes.append(COPY)
    return np.concatenate([trace.rows_of(lane) for lane in lanes])


def _while_running(trace: Trace, rank: int, time: float, row: int) -> Why:
    link = next(trace._causes.chain(row))
    because = reason_of(trace, *link)
    subject = (
        f"Rank {rank} is busy with {name_of(trace, row)}, from {as_seconds(trace.start[row])} to "
        f"{as_seconds(trace.end[row])}"
    )
    reason = f"it {because}."
    return Why(rank, time, f"{subject}: {reason}", reason, np.array([row]), (because,), trace)


def _within_a_gap(trace: Trace, rank: int, time: float, row: int, gap_start: float) -> Why:
    links: list[Link] = []
    for link in trace._causes.chain(row):
        links.append(link)
        if link[1] < 0 or trace.start[link[1]] <= gap_start:
            break
    gap_end = float(trace.start[row])
    subject = (
        f"Rank {rank} waits {as_seconds(gap_end - gap_start)} for {name_of(trace, row)}, from {as_seconds(gap_start)} "
        f"to {as_seconds(gap_end)}"
    )
    reason = f"it {_told(trace, links)}."
    if not trace._causes.is_exact:
        between = sum(trace.start[a] - max(gap_start, trace.end[b]) for a, b, _ in links if b >= 0)
        if between > _ROUNDING * trace.makespan:
            reason += f" {as_seconds(between)} of that is transfer, waiting and overhead."
    behind = list(_across_ranks(trace, links[-1][1]))
    busy = _without_pause(trace, behind[-1][0]) if len(behind) > 1 else ""
    if busy:
        reason += f" {name_of(trace, behind[0][0])} in turn {_told(trace, behind[:-1])}; {busy}."
    shown = [*links, *(behind if busy else behind[:1])]
    reasons = tuple(reason_of(trace, *link) for link in shown)
    rows = np.array([row for row, _, _ in shown])
    return Why(rank, time, f"{subject}: {reason}", reason, rows, reasons, trace)


def _told(trace: Trace, links: Sequence[Link]) -> str:
    """Why the first of some rows started when it did, and so on to the last."""
    reasons = [reason_of(trace, *link) for link in links]
    return ", which ".join(reasons[:_TOLD]) + (", and so on" if len(reasons) > _TOLD else "")


def _across_ranks(trace: Trace, row: int) -> Iterator[Link]:
    """From a row back over those of other ranks that were waited for, to one that its own rank came to no sooner."""
    for link in trace._causes.chain(row):
        yield link
        if link[1] < 0 or trace.rank[link[1]] == trace.rank[link[0]]:
            return


def _without_pause(trace: Trace, row: int) -> str:
    """Since when the rank of a row had no gap before it; nothing if the row came right after one."""
    rank = int(trace.rank[row])
    mine = rows_that_occupy(trace)
    mine = mine[trace.rank[mine] == rank]
    mine = mine[np.argsort(trace.start[mine], kind="stable")]
    place = int(np.flatnonzero(mine == row)[0]) if row in mine else 0
    gaps = trace.start[mine[1 : place + 1]] - np.maximum.accumulate(trace.end[mine])[:place]
    is_exact = trace._causes.is_exact
    least = _ROUNDING * trace.makespan if is_exact else _HAND_OVER * float(trace.durations[mine].mean())
    long = np.flatnonzero(gaps > least)
    first = int(long[-1]) + 1 if len(long) else 0
    if first == place:
        return ""
    since, until = trace.start[mine[first]], trace.end[row]
    pause = "without a pause" if is_exact else "with hardly a pause"
    return f"rank {rank} was busy {pause} from {as_seconds(since)} to {as_seconds(until)}"


def _after_the_last(trace: Trace, rank: int, time: float, row: int) -> Why:
    path = critical_path(trace)
    left = np.flatnonzero(path.end > trace.end[row])
    names = [f"{path.actions[k]} of rank {path.rank[k]}" for k in left[:_TOLD]]
    then = f"The step goes on until {as_seconds(trace.makespan)}: " + ", then ".join(names)
    more = ", and so on" if len(left) > _TOLD else ""
    sentence = (
        f"Rank {rank} ended its last action, {name_of(trace, row)}, at {as_seconds(trace.end[row])}. "
        + (f"{then}{more}." if len(left) else "The step ends then.")
    )
    return Why(rank, time, sentence, "", path.rows[left], tuple(path.why[k] for k in left), trace)
