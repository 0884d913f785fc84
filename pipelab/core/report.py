"""The numbers of a run, with the bubble in each of its four definitions.

    bubble_time      per rank, seconds    makespan - busy
    bubble_fraction  in [0, 1)            idle / (p makespan)              GPipe paper: (p-1)/(m+p-1)
    bubble_ratio                          idle / busy                      Megatron: (p-1)/m
    span_bubble      in [0, 1)            1 - busy / (p longest span)      Zero Bubble papers

A rank's span is from its own first start to its own last end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core.memory import peaks
from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.tables import html_table, pretty, text_table

if TYPE_CHECKING:
    import pandas as pd

    from pipelab.core.trace import Trace

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The numbers of one run.

    Attributes:
        makespan: seconds from the first start to the last end.
        busy: seconds that each rank computes.
        bubble_time: seconds that each rank idles: makespan - busy.
        bubble_fraction: idle time of all ranks / (p x makespan). The default meaning of "the bubble" (arXiv
            1811.06965).
        bubble_ratio: idle time of all ranks / busy time of all ranks (arXiv 2104.04473).
        span_bubble: 1 - busy time of all ranks / (p x longest span of a rank) (arXiv 2401.10241).
        peak_bytes: the most bytes that each rank holds; None when the bytes are not known.
        peak_in_flight: the most micro-batches that each rank has in flight (stage chunks, where it holds
            several).
        clock: "simulated", "virtual" or "wall".
        label: which run.
        num_microbatches: m.
    """

    makespan: float
    busy: tuple[float, ...]
    bubble_time: tuple[float, ...]
    bubble_fraction: float
    bubble_ratio: float
    span_bubble: float
    peak_bytes: tuple[float, ...] | None
    peak_in_flight: tuple[int, ...]
    clock: str
    label: str
    num_microbatches: int

    @classmethod
    def of(cls, trace: Trace) -> Report:
        """Work out the numbers of a trace; its lanes "compute" and "update" count as busy."""
        schedule = trace.schedule
        p = schedule.num_ranks
        rows = trace.working_rows
        rank, start, end = trace.rank[rows], trace.start[rows], trace.end[rows]
        busy = np.bincount(rank, weights=trace.durations[rows], minlength=p)
        first, last = np.full(p, np.inf), np.full(p, -np.inf)
        np.minimum.at(first, rank, start)
        np.maximum.at(last, rank, end)
        makespan, work, span = trace.makespan, float(busy.sum()), max(0.0, float((last - first).max()))
        idle = makespan - busy
        waste = max(0.0, float(idle.sum()))
        return cls(
            makespan=makespan,
            busy=tuple(busy.tolist()),
            bubble_time=tuple(idle.tolist()),
            bubble_fraction=waste / (p * makespan) if makespan else 0.0,
            bubble_ratio=waste / work if work else (math.inf if waste else 0.0),
            span_bubble=max(0.0, 1 - work / (p * span)) if span else 0.0,
            peak_bytes=None if trace.bytes is None else tuple(peaks(schedule, trace.bytes).tolist()),
            peak_in_flight=schedule.peak_in_flight,
            clock=trace.clock,
            label=trace.label,
            num_microbatches=schedule.num_microbatches,
        )

    @property
    def num_ranks(self) -> int:
        """How many ranks ran."""
        return len(self.busy)

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        header = ["rank", "busy", "bubble time", "bubble", "peak in flight"]
        rows = [
            [
                str(r),
                as_seconds(busy),
                as_seconds(idle),
                as_percent(idle / self.makespan if self.makespan else 0.0),
                str(n),
            ]
            for r, (busy, idle, n) in enumerate(
                zip(self.busy, self.bubble_time, self.peak_in_flight, strict=True)
            )
        ]
        total = [
            as_seconds(sum(self.busy)),
            as_seconds(sum(self.bubble_time)),
            as_percent(self.bubble_fraction),
        ]
        rows.append(["all", *total, f"at most {max(self.peak_in_flight)}"])
        if self.peak_bytes is not None:
            header.append("peak memory")
            for row, value in zip(rows, (*self.peak_bytes, max(self.peak_bytes)), strict=True):
                row.append(as_bytes(value))
            rows[-1][-1] = f"at most {rows[-1][-1]}"
        return header, rows

    def _numbers(self) -> str:
        return (
            f"makespan {as_seconds(self.makespan)} ({self.clock} clock), bubble fraction "
            f"{as_percent(self.bubble_fraction)}, bubble ratio {as_percent(self.bubble_ratio)}, "
            f"span bubble {as_percent(self.span_bubble)}"
        )

    def __str__(self) -> str:
        header, rows = self._rows()
        return text_table(header, rows, self._numbers())

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        header, rows = self._rows()
        return html_table(header, rows, self.label, self._numbers())

    def to_frame(self) -> pd.DataFrame:
        """One row a rank: seconds, the bubble as a fraction of the makespan, and peaks."""
        import pandas as pd

        columns: dict[str, Any] = {
            "rank": range(self.num_ranks),
            "busy [s]": self.busy,
            "bubble time [s]": self.bubble_time,
            "bubble fraction": [idle / self.makespan if self.makespan else 0.0 for idle in self.bubble_time],
            "peak in flight": self.peak_in_flight,
        }
        if self.peak_bytes is not None:
            columns["peak memory [bytes]"] = self.peak_bytes
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by their names; tuples as lists."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}
