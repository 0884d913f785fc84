"""When each action started and ended: the one type of simulated and of measured runs.

Because both are the same type, every plot, number and test works for both, and "predicted against measured"
is one call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core import trace_dict, trace_fit
from pipelab.core.actions import KINDS, IntArray
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.feed import LOAD, PREPARE, Feed
from pipelab.core.memory import MemoryCurve, MemoryParts, memory_curves, memory_parts
from pipelab.core.quantities import as_percent, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.report import Report
from pipelab.core.saving import Saved
from pipelab.core.schedule import Schedule
from pipelab.core.tables import pretty
from pipelab.errors import PipelabError, one_of

if TYPE_CHECKING:
    import pandas as pd

    from pipelab.core.critical_path import Causes, CriticalPath
    from pipelab.core.why import Why

__all__ = ["CLOCKS", "COMPUTE", "COPY", "UPDATE", "Trace"]

CLOCKS = ("simulated", "virtual", "wall")
COMPUTE, COPY, UPDATE = "compute", "copy", "update"
"""Lanes of a rank: what it computes, what it sends, and the optimizer updates that end its step."""

_COLUMNS = ("rank", "lane", "kind", "stage", "microbatch", "start", "end")


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Saved):
    """When each action started and ended.

    The first rows are the cells of the schedule, in table order; rows of other lanes may follow:

        lane                      rank                 kind, stage and micro-batch
        "copy"                    the sender           those of the action whose result travels
        "load:0", "prepare:1"     of the first stage   F, the first stage of the chain, what is loaded
        "update"                  who updates          U, the stage, its last micro-batch

    `Trace.from_times` makes the usual trace from the times of the cells.

    Attributes:
        schedule: what was run.
        rank: shape (rows,), int32.
        lane: shape (rows,), uint8: index into `lanes`.
        kind: shape (rows,), uint8: index into `KINDS`.
        stage: shape (rows,), int32.
        microbatch: shape (rows,), int32.
        start: shape (rows,), seconds; the first start is 0.
        end: shape (rows,), seconds.
        lanes: the names of the lanes; the first is "compute".
        clock: "simulated" (from costs), "virtual" (really run, one at a time) or "wall" (really concurrent).
        bytes: bytes per model stage, for `memory`; None when they are not known.
        devices: the device of each rank; () for a simulation.
        notes: why a clock is not honest, in sentences.
        label: what plots and tables call it; the schedule's name by default.
        costs: what a simulation was made from; None for a measured run.
        feed: what fed a simulation; None where every micro-batch was there from the start.

    Raises:
        PipelabError: columns of different lengths, fewer rows than cells, an end before its start, an unknown
            clock; or what does not fit the schedule: other cells, numbers of stages, ranks or micro-batches that it
            does not have, a rank that computes two things at once or in another order.
        TypeError: `bytes`, `costs` or `feed` is something else.
    """

    schedule: Schedule
    rank: IntArray
    lane: IntArray
    kind: IntArray
    stage: IntArray
    microbatch: IntArray
    start: FloatArray
    end: FloatArray
    lanes: tuple[str, ...] = (COMPUTE,)
    clock: str = "simulated"
    bytes: StageBytes | None = None
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label: str = ""
    costs: Costs | None = None
    feed: Feed | None = None

    def __post_init__(self) -> None:
        rows = len(self.start)
        for name in _COLUMNS:
            column: npt.NDArray[Any] = np.asarray(getattr(self, name))
            if column.shape != (rows,):
                raise PipelabError(f"Column {name} has shape {column.shape}, not ({rows},).")
            if name in ("start", "end"):
                column = column.astype(np.float64)
            if column.flags.writeable:
                column = column.copy()
                column.setflags(write=False)
            object.__setattr__(self, name, column)
        if rows < self.schedule.table.num_cells:
            raise PipelabError(
                f"A trace of {self.schedule.name} has {self.schedule.table.num_cells} rows, not {rows}."
            )
        if not (np.isfinite(self.end).all() and (self.start <= self.end).all()):
            row = int(np.argmin(np.isfinite(self.end) & (self.start <= self.end)))
            raise PipelabError(f"Row {row} starts at {self.start[row]} and ends at {self.end[row]}.")
        one_of("clock", self.clock, CLOCKS)
        for name in ("lanes", "devices", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.lanes[:1] != (COMPUTE,) or len(set(self.lanes)) < len(self.lanes):
            raise PipelabError(f"lanes must be {COMPUTE!r} and then others, each once, not {self.lanes}.")
        if self.devices and len(self.devices) != self.schedule.num_ranks:
            raise PipelabError(f"{len(self.devices)} devices are named for {self.schedule.num_ranks} ranks.")
        if not self.label:
            object.__setattr__(self, "label", self.schedule.name)
        trace_fit.check_fit(self)
        trace_fit.check_columns(self, trace_dict.cell_columns(self.schedule))
        trace_fit.check_times(self)

    @classmethod
    def from_times(
        cls,
        schedule: Schedule,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        *,
        clock: str,
        bytes: StageBytes | None = None,
        devices: Sequence[str] = (),
        notes: Sequence[str] = (),
        label: str | None = None,
        costs: Costs | None = None,
        feed: Feed | None = None,
        lanes: Sequence[str] = (COMPUTE,),
        others: Mapping[str, npt.ArrayLike] | None = None,
    ) -> Trace:
        """Make a trace from the times of the cells: what the simulator and the engines call.

        Args:
            schedule: what was run.
            start: shape (cells,), seconds on any clock, in table order. All is shifted so that the first start
                of any row is 0.
            end: shape (cells,), seconds.
            clock: "simulated", "virtual" or "wall".
            bytes: bytes per model stage.
            devices: the device of each rank.
            notes: why the clock is not honest.
            label: what plots call it; None takes the schedule's name.
            costs: what a simulation was made from.
            feed: what fed a simulation.
            lanes: the names of the lanes; the first is "compute".
            others: the rows of other lanes: a column for each of rank, lane (index into `lanes`), kind (code),
                stage, microbatch, start and end; start and end on the same clock as those of the cells.
        """
        begin, stop = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
        table = schedule.table
        if begin.shape != (table.num_cells,) or stop.shape != begin.shape:
            raise PipelabError(
                f"start and end must have shape ({table.num_cells},), one time a cell of {schedule.name}; "
                f"they have {begin.shape} and {stop.shape}."
            )
        columns = {**trace_dict.cell_columns(schedule), "start": begin, "end": stop}
        if others is not None:
            columns = {
                name: np.append(column, np.asarray(others[name]).astype(column.dtype))
                for name, column in columns.items()
            }
        first = columns["start"].min()
        if first != 0:
            columns["start"] -= first
            columns["end"] -= first
        return cls(
            schedule,
            **columns,
            lanes=tuple(lanes),
            clock=clock,
            bytes=bytes,
            devices=tuple(devices),
            notes=tuple(notes),
            label=label or schedule.name,
            costs=costs,
            feed=feed,
        )

    @property
    def num_ranks(self) -> int:
        """How many ranks ran."""
        return self.schedule.num_ranks

    @cached_property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        return float(self.end.max() - self.start.min())

    @property
    def band(self) -> tuple[float, float] | None:
        """Between which makespans the step lies if the machine runs as it did while it was profiled, in seconds.

        None for a measured run, and for costs that were not measured.
        """
        if self.costs is None or self.costs.band is None:
            return None
        low, high = self.costs.band
        return low * self.makespan, high * self.makespan

    @cached_property
    def durations(self) -> FloatArray:
        """Shape (rows,): seconds that each row took."""
        durations = self.end - self.start
        durations.setflags(write=False)
        return durations

    @cached_property
    def working_rows(self) -> slice | IntArray:
        """The rows that count as work: computing and updating."""
        if len(self.lanes) == 1:
            return slice(None)
        work = [number for number, lane in enumerate(self.lanes) if lane in (COMPUTE, UPDATE)]
        return np.flatnonzero(np.isin(self.lane, work))

    def rows_of(self, lane: str) -> IntArray:
        """The rows of one lane; none where the trace has no such lane.

        Args:
            lane: such as "compute" or "copy".
        """
        number = self.lanes.index(lane) if lane in self.lanes else -1
        return np.flatnonzero(self.lane == number)

    def report(self) -> Report:
        """The numbers of this run: makespan, the four bubbles, busy time and peaks."""
        return self._report

    @cached_property
    def _report(self) -> Report:
        return Report.of(self)

    def critical_path(self) -> CriticalPath:
        """The rows that make the step as long as it is, each with why it started when it did."""
        from pipelab.core.critical_path import critical_path  # it is about traces, and imports this module

        return critical_path(self)

    def why(self, rank: int, time: float) -> Why:
        """What a rank does at a moment; in a gap, the chain of actions that it waits for.

        Args:
            rank: from 0.
            time: seconds, from 0 to the makespan.

        Example:
            >>> import pipelab as pp
            >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
            >>> trace = pp.simulate(one, pp.Costs.uniform(4))
            >>> print(trace.why(rank=2, time=5).sentence)
            Rank 2 waits 2 s for 2B0, from 4 s to 6 s: it needs 3B0 of rank 3.

        Raises:
            PipelabError: no such rank, or a time outside the step.
        """
        from pipelab.core.why import why

        return why(self, rank, time)

    @cached_property
    def _causes(self) -> Causes:
        from pipelab.core.critical_path import Causes

        return Causes.of(self)

    def memory(self) -> tuple[MemoryCurve, ...]:
        """What each rank holds over time: bytes where `bytes` is known, else micro-batches in flight."""
        return memory_curves(self, self.bytes)

    def memory_parts(self) -> MemoryParts:
        """What the memory of each rank consists of when it holds most: weights, gradients, activations, ..."""
        return memory_parts(self)

    def in_flight(self) -> tuple[MemoryCurve, ...]:
        """How many micro-batches each rank has in flight over time."""
        return memory_curves(self, None)

    def with_label(self, label: str) -> Trace:
        """The same trace under another name."""
        return replace(self, label=label)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; kinds and lanes as text.

        What a feed does is of the kind "load" or "prepare" here.
        """
        kinds = np.array([kind.value for kind in KINDS], dtype=object)[self.kind]
        for code, lane in enumerate(self.lanes):
            if lane.startswith((LOAD, PREPARE)):
                kinds[self.lane == code] = lane.partition(":")[0]
        return {
            "rank": self.rank,
            "lane": np.array(self.lanes, dtype=object)[self.lane],
            "kind": kinds,
            "stage": self.stage,
            "microbatch": self.microbatch,
            "start [s]": self.start,
            "end [s]": self.end,
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, one row an action; start and end in seconds."""
        import pandas as pd

        return pd.DataFrame({name.removesuffix(" [s]"): column for name, column in self.columns().items()})

    def __str__(self) -> str:
        return f"{self._headline}\n{self.report()}"

    @property
    def _headline(self) -> str:
        report = self.report()
        between = "" if self.band is None else " ({} to {})".format(*map(as_seconds, self.band))
        return (
            f"{self.label}: makespan {as_seconds(self.makespan)}{between} ({self.clock} clock), "
            f"bubble fraction {as_percent(report.bubble_fraction)}"
        )

    def __repr__(self) -> str:
        return f"<Trace {self._headline}, {len(self.start):,} rows>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.schedule, self.clock, self.label, self.start.tobytes(), self.end.tobytes()))

    def save_chrome(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the trace for ui.perfetto.dev and chrome://tracing, atomically; `pp.read_trace` reads it back.

        A process is a rank, a thread a lane; arrows follow values to other ranks; a counter shows the memory.

        Args:
            path: where to, usually `.json`.
            overwrite: replace a file that is there.

        Raises:
            PipelabError: the file exists and `overwrite` is False, or it is longer than can be read back.
        """
        from pipelab.core.interchange import chrome

        chrome.save(self, path, overwrite)

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain values, ready for JSON; what the schedule says is not repeated."""
        return trace_dict.dump(self)

    @classmethod
    def from_dict(cls, data: object, where: str = "trace") -> Trace:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        return cls(**trace_dict.load(data, where))
