"""What each rank holds over time: bytes where they are known, micro-batches in flight where they are not.

    weights        of the stages on the rank, all the time; in an asynchronous schedule as many versions as a stage
                   ever keeps (`Schedule.weight_versions`)
    gradients      as large as the weights, all the time, where there is a backward
    optimizer      the optimizer's state, all the time, where there is a backward and it is known
    activations    of a micro-batch, from the start of its forward to the end of its backward
    queued input   what a feed has made ready for the rank's first stage and no forward has taken yet

A whole backward (B) lets go of everything at its end. Where it is split, I lets go of what only the input's gradient
needs, and keeps the gradients that the weights will need (`StageBytes.until_weight_grad`); W lets go of the rest. Where
that is not known, I frees nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.costs import StageBytes
from pipelab.core.feed import queued
from pipelab.core.placement import Placement
from pipelab.core.quantities import as_bytes, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

    from pipelab.core.trace import Trace

__all__ = ["PARTS", "MemoryCurve", "MemoryParts", "memory_curves", "memory_parts", "peaks", "resident"]

PARTS = ("weights", "gradients", "optimizer", "activations", "queued input")
"""What the memory of a rank consists of."""

_WEIGHTS, _GRADIENTS, _OPTIMIZER, _ACTIVATIONS, _QUEUED = range(len(PARTS))

_F, _I, _W, _B = (CODES[kind] for kind in (Kind.F, Kind.I, Kind.W, Kind.B))


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


@dataclass(frozen=True)
class MemoryParts:
    """What the memory of each rank consists of at the moment when it holds most.

    Attributes:
        time: for each rank that moment, seconds; the first, where there are several.
        bytes: for each rank the bytes of each of `PARTS`.

    Example:
        >>> import pipelab as pp
        >>> held = pp.StageBytes(parameters=(2**20,) * 2, activations=(2**19,) * 2, outputs=(0,) * 2)
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
        >>> costs = pp.Costs((1,) * 2, (1,) * 2, (1,) * 2, bytes=held)
        >>> print(pp.simulate(one, costs).memory_parts())
        rank   at  weights  gradients  activations    total
        0     1 s    1 MiB      1 MiB        1 MiB    3 MiB
        1     1 s    1 MiB      1 MiB      512 KiB  2.5 MiB
    """

    time: tuple[float, ...]
    bytes: tuple[tuple[float, ...], ...]

    @property
    def total(self) -> tuple[float, ...]:
        """For each rank the most bytes that it holds."""
        return tuple(map(sum, self.bytes))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a rank."""
        parts = zip(PARTS, np.array(self.bytes).T, strict=True)
        return {
            "rank": np.arange(len(self.time)),
            "time [s]": np.array(self.time),
            **{f"{name} [bytes]": column for name, column in parts},
            "total [bytes]": np.array(self.total),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        present = [k for k in range(len(PARTS)) if any(parts[k] for parts in self.bytes)]
        rows = [
            [str(rank), as_seconds(time), *(as_bytes(parts[k]) for k in present), as_bytes(total)]
            for rank, (time, parts, total) in enumerate(zip(self.time, self.bytes, self.total, strict=True))
        ]
        return ["rank", "at", *(PARTS[k] for k in present), "total"], rows

    def __str__(self) -> str:
        return text_table(*self._rows())

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), "Memory of each rank when it holds most")


@dataclass(frozen=True, eq=False)
class _Events:
    """When memory changes, in the order in which it happens on each rank.

    A rank runs one cell after the other, so this is the order of the table; in an overlap the forwards come
    first.
    """

    row: IntArray
    is_forward: npt.NDArray[np.bool_]
    rank: IntArray


def _events(schedule: Schedule, bytes: StageBytes | None) -> _Events:
    table = schedule.table
    if schedule.has_backward:
        frees = (_F, _W, _B) if bytes is None or bytes.until_weight_grad is None else (_F, _I, _W, _B)
        row = np.flatnonzero(np.isin(table.kind, frees))
        is_forward = table.kind[row] == _F
    else:  # nothing is kept: each forward is taken in and let go
        row = np.repeat(np.arange(table.num_rows), 2)
        is_forward = np.tile([True, False], table.num_rows)
    if table.has_overlaps:
        order = np.lexsort((~is_forward, table.cell[row]))
        row, is_forward = row[order], is_forward[order]
    return _Events(row, is_forward, table.rank[row])


def resident(
    placement: Placement,
    bytes: StageBytes,
    *,
    has_backward: bool = True,
    versions: Sequence[int] | None = None,
) -> FloatArray:
    """What each rank holds all the time.

    Args:
        placement: where the stages are.
        bytes: bytes per model stage.
        has_backward: whether there are gradients and the optimizer's state.
        versions: for each stage how many versions of its weights are kept; None is one.

    Returns:
        Shape (ranks, parts): bytes of each of `PARTS`.
    """
    held = np.zeros((placement.num_ranks, len(PARTS)))
    model_stage = placement.model_stages
    here = {(rank, model_stage[s]) for s, rank in enumerate(placement.ranks)}
    for rank, stage in sorted(here):  # a replica and its original on one rank share their weights
        held[rank, _WEIGHTS] += bytes.parameters[stage] * (1 if versions is None else versions[stage])
        if has_backward:
            held[rank, _GRADIENTS] += bytes.parameters[stage]
            held[rank, _OPTIMIZER] += 0.0 if bytes.optimizer is None else bytes.optimizer[stage]
    return held


def _resident(schedule: Schedule, bytes: StageBytes) -> FloatArray:
    """Shape (ranks, parts): what a schedule's ranks hold all the time."""
    versions = schedule.weight_versions().kept.tolist() if schedule.minibatches > 1 else None
    return resident(schedule.placement, bytes, has_backward=schedule.has_backward, versions=versions)


def _activations(schedule: Schedule, events: _Events, bytes: StageBytes | None) -> FloatArray:
    """Shape (events,): what micro-batches in flight hold after each event."""
    change = np.where(events.is_forward, 1.0, -1.0)
    if bytes is not None:
        stage = np.array(schedule.placement.model_stages)[schedule.table.stage[events.row]]
        kept = np.array(bytes.activations, dtype=np.float64)[stage]
        change *= kept
        if bytes.until_weight_grad is not None:
            kind = schedule.table.kind[events.row]
            for_weights = np.array(bytes.until_weight_grad, dtype=np.float64)[stage]
            change = np.select([kind == _I, kind == _W], [for_weights - kept, -for_weights], change)
    total = np.cumsum(change)
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks))
    held: FloatArray = total - np.append(0.0, total)[starts][events.rank]
    return held


def peaks(schedule: Schedule, bytes: StageBytes | None = None) -> FloatArray:
    """The most that each rank holds at once, without queued input; it follows from the order alone.

    Args:
        schedule: any schedule.
        bytes: bytes per model stage; None counts micro-batches in flight.

    Returns:
        Shape (ranks,): bytes or micro-batches (stage chunks, where a rank holds several stages).
    """
    events = _events(schedule, bytes)
    held = _activations(schedule, events, bytes)
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks + 1))
    busy = np.flatnonzero(np.diff(starts))
    base = np.zeros(schedule.num_ranks) if bytes is None else _resident(schedule, bytes).sum(axis=1)
    base[busy] += np.maximum.reduceat(held, starts[busy])
    return base


@dataclass(frozen=True, eq=False)
class _Timeline:
    """What one rank holds over time, by what changes.

    Attributes:
        time: shape (n,), ascending, from 0.
        resident: shape (parts,): what is there all the time.
        activations: shape (n,): from each time on.
        queued: shape (n,): from each time on.
    """

    time: FloatArray
    resident: FloatArray
    activations: FloatArray
    queued: FloatArray

    def with_queue(self, time: FloatArray, count: IntArray, bytes: float) -> _Timeline:
        """The same with `count` micro-batches of so many bytes queued from each `time` on.

        At one moment the queue changes first: a forward takes its input out before it makes activations.
        """
        order = np.argsort(np.concatenate([time, self.time]), kind="stable")
        of_queue = order < len(time)
        queue = np.cumsum(of_queue) - 1
        rest = np.maximum(np.cumsum(~of_queue) - 1, 0)  # both begin at 0
        merged = np.concatenate([time, self.time])[order]
        return _Timeline(merged, self.resident, self.activations[rest], bytes * count[queue])

    @property
    def total(self) -> FloatArray:
        held: FloatArray = self.activations + self.queued + self.resident.sum()
        return held


def _timelines(trace: Trace, bytes: StageBytes | None) -> list[_Timeline]:
    schedule = trace.schedule
    events = _events(schedule, bytes)
    held = _activations(schedule, events, bytes)
    cell = schedule.table.cell[events.row]
    time = np.where(events.is_forward, trace.start[cell], trace.end[cell])
    starts = np.searchsorted(events.rank, np.arange(schedule.num_ranks + 1))
    resident = np.zeros((schedule.num_ranks, len(PARTS))) if bytes is None else _resident(schedule, bytes)
    lines = [
        _Timeline(np.append(0.0, time[a:b]), resident[rank], np.append(0.0, held[a:b]), np.zeros(b - a + 1))
        for rank, (a, b) in enumerate(itertools.pairwise(starts))
    ]
    waiting = None if bytes is None else queued(trace)
    if waiting is None:
        return lines
    return [line.with_queue(*waiting.steps(rank), waiting.bytes) for rank, line in enumerate(lines)]


def memory_curves(trace: Trace, bytes: StageBytes | None) -> tuple[MemoryCurve, ...]:
    """What each rank holds over the time of a trace.

    Args:
        trace: simulated or measured.
        bytes: bytes per model stage; None counts micro-batches in flight.
    """
    unit = "micro-batches" if bytes is None else "bytes"
    lines = _timelines(trace, bytes)
    return tuple(MemoryCurve(rank, line.time, line.total, unit) for rank, line in enumerate(lines))


def memory_parts(trace: Trace) -> MemoryParts:
    """What the memory of each rank consists of when it holds most.

    Args:
        trace: simulated or measured.

    Raises:
        PipelabError: the bytes of the stages are not known.
    """
    if trace.bytes is None:
        raise PipelabError(
            f"How many bytes the stages of {trace.label} hold is not known. Simulate it with "
            "Costs(..., bytes=StageBytes(parameters, activations, outputs)); trace.in_flight() counts micro-batches."
        )
    times, parts = [], []
    for line in _timelines(trace, trace.bytes):
        k = int(np.argmax(line.total))
        held = line.resident.copy()
        held[_ACTIVATIONS] += line.activations[k]
        held[_QUEUED] += line.queued[k]
        times.append(float(line.time[k]))
        parts.append(tuple(held.tolist()))
    return MemoryParts(tuple(times), tuple(parts))
