"""The numbers of a run, with the bubble in each of its four definitions.

    bubble_time      per rank, seconds    makespan - busy
    bubble_fraction  in [0, 1)            idle / (p makespan)              GPipe paper: (p-1)/(m+p-1)
    bubble_ratio                          idle / busy                      Megatron: (p-1)/m
    span_bubble      in [0, 1)            1 - busy / (p longest span)      Zero Bubble papers

A rank's span is from its own first start to its own last end.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core.memory import peaks
from pipelab.core.quantities import as_bytes, as_percent, as_seconds, counted
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

    from pipelab.core.causes import IdleByCause
    from pipelab.core.trace import Trace

__all__ = ["Report", "StepCost"]


@dataclass(frozen=True)
class StepCost:
    """What the devices of a run cost while it steps, in the currency of the price.

    Attributes:
        price_per_hour: of one device.
        num_devices: p, one a rank.
        seconds: that a step takes: the makespan, or its share of each mini-batch where a run holds several.
        period: seconds that each further step takes where steps follow each other without a break; None where it is
            not known (see `Report.period`).

    Example:
        >>> print(StepCost(price_per_hour=2.5, num_devices=8, seconds=1.8, period=1.62))
        0.01 a step, 10 per 1,000 steps (8 devices at 2.5 an hour, 1.8 s a step)
        9 per 1,000 steps that follow each other without a break (1.62 s a step)
    """

    price_per_hour: float
    num_devices: int
    seconds: float
    period: float | None = None

    @property
    def per_step(self) -> float:
        """p devices for one step: price x p x seconds / 3600 s."""
        return self.price_per_hour * self.num_devices * self.seconds / 3600

    @property
    def per_1000_steps(self) -> float:
        """A thousand such steps, one after the other."""
        return 1000 * self.per_step

    @property
    def per_1000_chained_steps(self) -> float | None:
        """A thousand further steps where no rank waits for the others in between."""
        if self.period is None:
            return None
        return 1000 * self.price_per_hour * self.num_devices * self.period / 3600

    def __str__(self) -> str:
        chained = ""
        if self.period is not None and self.period < self.seconds:
            chained = (
                f"\n{self.per_1000_chained_steps:.3g} per 1,000 steps that follow each other without a break "
                f"({as_seconds(self.period)} a step)"
            )
        return (
            f"{self.per_step:.3g} a step, {self.per_1000_steps:.3g} per 1,000 steps "
            f"({counted(self.num_devices, 'device')} at {self.price_per_hour:g} an hour, "
            f"{as_seconds(self.seconds)} a step){chained}"
        )

    _repr_pretty_ = pretty


@dataclass(frozen=True)
class Report:
    """The numbers of one run. What takes longer to work out is worked out when it is first asked for.

    Attributes:
        makespan: seconds from the first start to the last end.
        busy: seconds that each rank computes.
        bubble_time: seconds that each rank idles: makespan - busy.
        bubble_fraction: idle time of all ranks / (p x makespan). The default meaning of "the bubble" (arXiv
            1811.06965).
        bubble_ratio: idle time of all ranks / busy time of all ranks (arXiv 2104.04473).
        span_bubble: 1 - busy time of all ranks / (p x longest span of a rank) (arXiv 2401.10241).
        peak_bytes: the most bytes that each rank holds, queued input among them; None when the bytes are not known.
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
    _trace: Trace = field(repr=False, compare=False)

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
            peak_bytes=_peak_bytes(trace),
            peak_in_flight=schedule.peak_in_flight,
            clock=trace.clock,
            label=trace.label,
            num_microbatches=schedule.num_microbatches,
            _trace=_without_report(trace),
        )

    @property
    def stages_per_rank(self) -> int:
        """v: the most stages that one rank holds, replicas included."""
        return self._trace.schedule.stages_per_rank

    @property
    def num_ranks(self) -> int:
        """How many ranks ran."""
        return len(self.busy)

    @cached_property
    def idle_by_cause(self) -> IdleByCause:
        """The idle time of all ranks by cause: input, communication, imbalance, order, fill and drain."""
        from pipelab.core.causes import idle_by_cause  # causes are of traces, which have reports

        return idle_by_cause(self._trace)

    @cached_property
    def period(self) -> float | None:
        """Seconds that each further step takes where steps follow each other without a break.

        A rank starts its next step as soon as it is free, so that the end of one step overlaps the start of the next;
        a feed goes on likewise. None for a measured run: what a chain of such steps would take is not known from one.
        None too for a schedule of several mini-batches, which follow each other within it already.
        """
        from pipelab.core.simulation import period  # simulation makes traces, which have reports

        trace = self._trace
        if trace.costs is None or trace.schedule.minibatches > 1:
            return None
        return period(trace.schedule, trace.costs, feed=trace.feed)

    @cached_property
    def bytes_sent(self) -> tuple[float, ...] | None:
        """Bytes that each rank sends to others in the step: outputs forward, their gradients backward.

        None when the bytes are not known. Gradients that replicas exchange are not in it.
        """
        schedule, held = self._trace.schedule, self._trace.bytes
        if held is None:
            return None
        sizes = np.array([[source, held.outputs[stage]] for source, _, stage in schedule.workload.hops])
        taken = sizes[schedule.predecessors.hop]
        sent = np.bincount(taken[:, 0].astype(int), weights=taken[:, 1], minlength=self.num_ranks)
        return tuple(sent.tolist())

    def cost(self, price_per_hour: float) -> StepCost:
        """What the devices cost, per step and per 1,000 steps, one device a rank.

        A step is one update: of a schedule of several mini-batches it takes makespan / mini-batches, in which filling
        and draining are shared by all of them.

        Args:
            price_per_hour: of one device, in any currency.

        Example:
            >>> import pipelab as pp
            >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
            >>> print(pp.simulate(one, pp.Costs.uniform(4)).report().cost(3.0))
            0.11 a step, 110 per 1,000 steps (4 devices at 3 an hour, 33 s a step)

        Raises:
            PipelabError: a price that is no number, or negative, or infinite.
        """
        is_number = isinstance(price_per_hour, Real) and not isinstance(price_per_hour, bool)
        if not (is_number and 0 <= price_per_hour < math.inf):
            raise PipelabError(
                f"price_per_hour is {price_per_hour!r}; it must be the price of one device for an hour, "
                "finite and not negative."
            )
        seconds = self.makespan / self._trace.schedule.minibatches
        return StepCost(float(price_per_hour), self.num_ranks, seconds, self.period)

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
        """One row a rank: seconds, the bubble as a fraction of the makespan, peaks, and what is sent."""
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
            columns["sent [bytes]"] = self.bytes_sent
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by their names; tuples as lists. Also `idle_by_cause`, `period` and `bytes_sent`."""
        names = [one.name for one in fields(self) if not one.name.startswith("_")]
        values = {name: getattr(self, name) for name in (*names, "period", "bytes_sent")}
        data = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return data | {"idle_by_cause": self.idle_by_cause.causes}


def _peak_bytes(trace: Trace) -> tuple[float, ...] | None:
    if trace.bytes is None:
        return None
    if trace.feed is not None:  # how much waits in the queue follows from the times
        return tuple(curve.peak for curve in trace.memory())
    return tuple(peaks(trace.schedule, trace.bytes).tolist())


def _without_report(trace: Trace) -> Trace:
    """The same trace, to work out more from later; it must not hold the report, which will hold it."""
    shallow = copy(trace)
    shallow.__dict__.pop("_report", None)
    return shallow
