"""What brings the micro-batches: a loader, workers that prepare, and a bounded queue of what is prepared.

    loader    | 0 | 1 | 2 ~ | 3 ~ | 4 ~        reads one after the other; held up (~) until a worker takes it
    worker 0      |   0   |   2   ~ |   4       prepares; held up until the queue has room
    worker 1          |   1   |   3   ~ |
    queue             0   1   2   2   2         at most `queue` at once, in order
    rank 0                | 0F0 | 0F1 | 0F2     room is made when a forward starts

The order in which micro-batches come is that in which the first stages would take them if nothing had to be waited
for; so no queue is too short for a schedule whose order is not ascending.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core import strict_json
from pipelab.core.actions import CODES, IntArray, Kind, as_index
from pipelab.core.links import MOST
from pipelab.core.recurrence import FloatArray
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.trace import Trace

__all__ = ["LOAD", "MAX_WORKERS", "PREPARE", "Feed", "Queued", "queued"]

LOAD, PREPARE = "load:0", "prepare:"
"""The lane of the loader, and how the lanes of the workers begin."""

MAX_WORKERS = 200
"""The most workers of a feed: each has a lane in the trace, and those are numbered in one byte."""

Seconds = float | tuple[float, ...]


@dataclass(frozen=True)
class Feed:
    """What happens to a micro-batch before the pipeline takes it.

    One loader reads the micro-batches one after the other. A worker takes each as soon as one is free (until then the
    loader is held up) and prepares it. Prepared micro-batches enter one queue, in order; a worker is held up while
    it is full. A micro-batch leaves the queue when the forward of its chain's first stage starts; where a chain has
    several first stages, when the one starts that takes it first.

    Attributes:
        load: seconds to read a micro-batch; one number, or one for each micro-batch number of the schedule.
        prepare: seconds to prepare it (decode, augment, collate), likewise.
        workers: how many prepare at the same time, 1 to 200.
        queue: how many prepared micro-batches may wait, at least 1.
        bytes: of one prepared micro-batch, for the memory of the queue.

    Example:
        >>> import pipelab as pp
        >>> one, costs = pp.schedule("gpipe", num_ranks=2, num_microbatches=4), pp.Costs.uniform(2)
        >>> slow = Feed(prepare=3.0)
        >>> [pp.simulate(one, costs, feed=feed).makespan for feed in (None, slow, Feed(prepare=3.0, workers=3))]
        [15.0, 24.0, 18.0]

    Raises:
        PipelabError: a negative or infinite number, no worker, or a queue without room.
        TypeError: `workers` or `queue` is no integer.
    """

    load: Seconds = 0.0
    prepare: Seconds = 0.0
    workers: int = 1
    queue: int = 2
    bytes: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "load", _seconds("load", self.load))
        object.__setattr__(self, "prepare", _seconds("prepare", self.prepare))
        for name in ("workers", "queue"):
            object.__setattr__(self, name, as_index(name, getattr(self, name)))
        if not 1 <= self.workers <= MAX_WORKERS:
            raise PipelabError(f"workers is {self.workers}; it must be from 1 to {MAX_WORKERS}.")
        if self.queue < 1:
            raise PipelabError(f"queue is {self.queue}; it must have room for at least 1 micro-batch.")
        object.__setattr__(self, "bytes", _amount("bytes", self.bytes, "bytes"))

    def seconds(self, num_microbatches: int) -> tuple[FloatArray, FloatArray]:
        """Seconds of loading and of preparing each micro-batch, each of shape (num_microbatches,).

        Args:
            num_microbatches: how many micro-batch numbers the schedule has.

        Raises:
            PipelabError: `load` or `prepare` are for another number.
        """
        found = []
        for name in ("load", "prepare"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != num_microbatches:
                raise PipelabError(
                    f"{name} has {len(value)} numbers, but the schedule has {num_microbatches} micro-batches. "
                    f"Give one number for all, or {num_microbatches}."
                )
            found.append(np.full(num_microbatches, value, dtype=np.float64))
        return found[0], found[1]

    def to_dict(self) -> dict[str, Any]:
        """The feed as plain values, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}

    @classmethod
    def from_dict(cls, data: object, where: str = "feed") -> Feed:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        found = strict_json.fields(data, where, optional=[field.name for field in fields(cls)])
        values: dict[str, Any] = {}
        for name, value in found.items():
            read = strict_json.integer if name in ("workers", "queue") else strict_json.number
            many = name in ("load", "prepare") and isinstance(value, list)
            values[name] = (strict_json.numbers if many else read)(value, f"{where}.{name}")
        return cls(**values)


def _seconds(name: str, value: Any) -> Seconds:
    if isinstance(value, Real):
        return _amount(name, value, "seconds")
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PipelabError(f"{name} is {str(value)[:60]!r}; it must be seconds, or one number a micro-batch.")
    return tuple(_amount(f"{name}[{n}]", x, "seconds") for n, x in enumerate(value))


def _amount(name: str, value: Any, unit: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise PipelabError(f"{name} is {str(value)[:60]!r}; it must be a number of {unit}.")
    number = float(value)
    if not 0 <= number < math.inf:
        raise PipelabError(f"{name} is {value!r}; it must be finite and not negative, in {unit}.")
    if number > MOST:
        raise PipelabError(f"{name} is {value!r}; the limit is {MOST:g} {unit}.")
    return number


@dataclass(frozen=True, eq=False, repr=False)
class Queued:
    """When each prepared micro-batch waited, in the order in which they came.

    What a worker still holds because the queue is full is not in the queue.

    Attributes:
        microbatch: shape (m,).
        stage: shape (m,): the first stage that takes it.
        rank: shape (m,): the rank of that stage; the input waits in its memory.
        entered: shape (m,): seconds, ascending: when it entered the queue.
        left: shape (m,): seconds: when that stage's forward started.
        bytes: of one micro-batch.
    """

    microbatch: IntArray
    stage: IntArray
    rank: IntArray
    entered: FloatArray
    left: FloatArray
    bytes: float

    def steps(self, rank: int | None = None) -> tuple[FloatArray, IntArray]:
        """How many micro-batches wait over time.

        Args:
            rank: only those that this rank takes; None counts all.

        Returns:
            Times in seconds, ascending without repetition, from 0; and the number that waits from each on. What
            enters and leaves at one moment does not count. Times `bytes` gives the memory.
        """
        here = np.ones(len(self.rank), dtype=bool) if rank is None else self.rank == rank
        moments = np.concatenate([[0.0], self.entered[here], self.left[here]])
        change = np.repeat([0, 1, -1], [1, int(here.sum()), int(here.sum())])
        time, place = np.unique(moments, return_inverse=True)
        return time, np.cumsum(np.bincount(place, weights=change).astype(np.int64))

    @property
    def peak(self) -> int:
        """The most micro-batches that wait at once."""
        return int(self.steps()[1].max())

    @property
    def peak_bytes(self) -> float:
        """The most bytes that wait at once."""
        return self.peak * self.bytes

    def __repr__(self) -> str:
        return f"<Queued: {len(self.microbatch)} micro-batches, at most {self.peak} at once>"


def queued(trace: Trace) -> Queued | None:
    """When each micro-batch of a simulation with a feed waited in its queue.

    Args:
        trace: of `simulate(schedule, costs, feed=feed)`.

    Returns:
        None where there was no feed.

    Raises:
        PipelabError: a trace (read from a file) whose lanes do not fit its schedule.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=6)
        >>> waited = queued(pp.simulate(one, pp.Costs.uniform(2), feed=Feed(prepare=1.0, queue=3, bytes=100)))
        >>> waited.peak, waited.peak_bytes
        (3, 300.0)
    """
    if trace.feed is None:
        return None
    loading = trace.rows_of(LOAD)
    preparing = np.flatnonzero(np.array([name.startswith(PREPARE) for name in trace.lanes])[trace.lane])
    table, m = trace.schedule.table, trace.schedule.num_microbatches
    if any(not np.array_equal(np.sort(trace.microbatch[r]), np.arange(m)) for r in (loading, preparing)):
        raise PipelabError(f"{trace.label}: its loader and its workers do not have each micro-batch once.")
    stage, microbatch = trace.stage[loading], trace.microbatch[loading]
    prepared = np.empty(m)
    prepared[trace.microbatch[preparing]] = trace.end[preparing]
    taken_by = np.empty(m, dtype=np.int64)
    taken_by[microbatch] = stage
    taking = np.flatnonzero((table.kind == CODES[Kind.F]) & (table.stage == taken_by[table.microbatch]))
    left = np.empty(m)
    left[table.microbatch[taking]] = trace.start[table.cell[taking]]
    left = left[microbatch]
    entered: list[float] = []
    for k, ready in enumerate(prepared[microbatch].tolist()):
        room = float(left[k - trace.feed.queue]) if k >= trace.feed.queue else 0.0
        entered.append(max(ready, room, entered[-1] if entered else 0.0))
    return Queued(microbatch, stage, trace.rank[loading], np.array(entered), left, trace.feed.bytes)
