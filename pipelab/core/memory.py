"""What each rank holds over time: bytes where they are known, micro-batches in flight where they are not.

A micro-batch's activations live on a rank from the start of its forward to the end of its backward (of its W,
where the backward is split). Weights, and gradients of the same size where there is a backward, are there all
the time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.costs import StageBytes
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule

if TYPE_CHECKING:
    from pipelab.core.trace import Trace

__all__ = ["MemoryCurve", "memory_curves", "peaks"]

_F, _W, _B = (CODES[kind] for kind in (Kind.F, Kind.W, Kind.B))


@dataclass(frozen=True, eq=False)
class MemoryCurve:
    """A step function of time: what one rank holds.

    Attributes:
        rank: whose memory.
        time: shape (n,): seconds, ascending, from 0.
        value: shape (n,): what is held from `time[k]` on.
        unit: "bytes" or "micro-batches".
    """

    rank: int
    time: FloatArray
    value: FloatArray
    unit: str

    @property
    def peak(self) -> float:
        """The highest value."""
        return float(self.value.max())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryCurve):
            return NotImplemented
        same = np.array_equal(self.time, other.time) and np.array_equal(self.value, other.value)
        return same and (self.rank, self.unit) == (other.rank, other.unit)

    def __hash__(self) -> int:
        return hash((self.rank, self.unit, self.time.tobytes(), self.value.tobytes()))

    def __repr__(self) -> str:
        return f"<MemoryCurve: rank {self.rank}, {len(self.time)} steps, peak {self.peak:g} {self.unit}>"


@dataclass(frozen=True, eq=False)
class _Events:
    """When memory changes, in the order in which it happens on each rank.

    A rank runs one cell after the other, so this is the order of the table; in an overlap the forwards come
    first.
    """

    row: IntArray
    is_forward: npt.NDArray[np.bool_]
    rank: IntArray


def _events(schedule: Schedule) -> _Events:
    table = schedule.table
    if schedule.has_backward:
        row = np.flatnonzero(np.isin(table.kind, (_F, _W, _B)))
        is_forward = table.kind[row] == _F
    else:  # nothing is kept: each forward is taken in and let go
        row = np.repeat(np.arange(table.num_rows), 2)
        is_forward = np.tile([True, False], table.num_rows)
    if table.has_overlaps:
        order = np.lexsort((~is_forward, table.cell[row]))
        row, is_forward = row[order], is_forward[order]
    return _Events(row, is_forward, table.rank[row])


def _held(schedule: Schedule, events: _Events, bytes: StageBytes | None) -> tuple[FloatArray, FloatArray]:
    """Shape (ranks,): what is there from the start; shape (events,): what there is after each event."""
    base = np.zeros(schedule.num_ranks)
    change = np.where(events.is_forward, 1.0, -1.0)
    if bytes is not None:
        model_stage = np.array(schedule.placement.model_stages)
        copies = 2 if schedule.has_backward else 1
        here = {(rank, int(model_stage[s])) for s, rank in enumerate(schedule.placement.ranks)}
        for rank, stage in here:  # a replica and its original on one rank share their weights
            base[rank] += copies * bytes.parameters[stage]
        change *= np.array(bytes.activations, dtype=np.float64)[model_stage[schedule.table.stage[events.row]]]
    total = np.cumsum(change)
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks))
    before = np.append(0.0, total)[starts]
    return base, total - before[events.rank] + base[events.rank]


def peaks(schedule: Schedule, bytes: StageBytes | None = None) -> FloatArray:
    """The most that each rank holds at once; it follows from the order alone, whatever the costs.

    Args:
        schedule: any schedule.
        bytes: bytes per model stage; None counts micro-batches in flight.

    Returns:
        Shape (ranks,): bytes or micro-batches (stage chunks, where a rank holds several stages).
    """
    events = _events(schedule)
    base, held = _held(schedule, events, bytes)
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks + 1))
    busy = np.flatnonzero(np.diff(starts))
    base[busy] = np.maximum.reduceat(held, starts[busy])
    return base


def memory_curves(trace: Trace, bytes: StageBytes | None) -> tuple[MemoryCurve, ...]:
    """What each rank holds over the time of a trace.

    Args:
        trace: simulated or measured.
        bytes: bytes per model stage; None counts micro-batches in flight.
    """
    schedule = trace.schedule
    events = _events(schedule)
    base, held = _held(schedule, events, bytes)
    cell = schedule.table.cell[events.row]
    time = np.where(events.is_forward, trace.start[cell], trace.end[cell])
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks + 1))
    unit = "micro-batches" if bytes is None else "bytes"
    return tuple(
        MemoryCurve(rank, np.append(0.0, time[a:b]), np.append(base[rank], held[a:b]), unit)
        for rank, (a, b) in enumerate(itertools.pairwise(starts))
    )
