"""Why a measured step differs from the predicted one: the difference of the makespans, split by cause.

What the prediction was made from is replaced, one thing after the other in one fixed order, by what the measured step
had; what each replacement adds to the makespan is its share:

    the prediction
    F, B, I, W, ...   every action takes the mean of its kind and stage in the measured step, kind by kind
    spread            every action takes its own time
    start             the first action of each rank starts as late after its rank and its inputs were there
    waiting           so do all others: transfers, hand-over between threads, overhead
    outside           what follows the last action: updates of the optimizer
    the measured step

Each line is the schedule run again under durations and delays, so a longer action that nobody waits for has no share.
The last is the measured step itself: the shares add up to the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import KINDS, IntArray
from pipelab.core.quantities import as_percent, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import tasks_of
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Gap", "GapPart", "explain_gap", "pace_sentence", "replayed"]

SPREAD, START, WAITING, OUTSIDE = "spread", "start", "waiting", "outside"
"""The causes that are no kind of action."""

_MUCH = 0.05
"""Of the prediction: a difference above this is worth advice."""

_PACES = (0.8, 1.25)
"""Measured over predicted: actions outside of this took another time than was profiled."""

_ROUNDING = 1e-12
"""Makespans that differ by less than this fraction are one: additions in another order differ that much."""


@dataclass(frozen=True)
class GapPart:
    """One cause of a difference.

    Attributes:
        cause: a kind of action, such as "F", or "spread", "start", "waiting", "outside".
        seconds: that it adds to the makespan; negative where it makes the step shorter.
        detail: what was found, in words.
    """

    cause: str
    seconds: float
    detail: str


@dataclass(frozen=True, repr=False)
class Gap:
    """The difference between a measured step and the predicted one, by cause.

    Attributes:
        predicted: makespan of the prediction, seconds.
        measured: makespan of the measured step, seconds.
        parts: the causes, in the order in which they were replaced; their seconds add up to the difference.
        replayed: the makespan that the measured actions alone give, handed over in no time: what is left to
            `measured` is waiting, whatever the prediction was.
        clocks: of the prediction and of the measured step.
        label: which schedule.
        band: between which makespans the prediction lies; None when it does not say.
        notes: what to try next, and why the clocks are not honest, in sentences.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
        >>> predicted = pp.simulate(one, pp.Costs.uniform(2))
        >>> slower = pp.simulate(one, pp.Costs.uniform(2, forward=1.5, latency=0.25))
        >>> print(pp.explain_gap(predicted, slower))
        cause    share  of the prediction  what was found
        F        2.5 s             16.7 %  1.5 s instead of 1 s in the mean
        B          0 s              0.0 %  2 s in the mean, as predicted
        spread     0 s              0.0 %  each action its own time instead of its stage's mean
        start      0 s              0.0 %  first actions late by 0 s together
        waiting    1 s              6.7 %  others late by 2 s together: transfers, threads, overhead
        outside    0 s              0.0 %  0 s after the last action
        1f1b: 18.5 s (simulated clock) against 15 s predicted: +23.3 %
        the measured actions alone, handed over in no time: 17.5 s
    """

    predicted: float
    measured: float
    parts: tuple[GapPart, ...]
    replayed: float
    clocks: tuple[str, str]
    label: str
    band: tuple[float, float] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def difference(self) -> float:
        """Seconds that the measured step takes more than predicted."""
        return self.measured - self.predicted

    @property
    def error(self) -> float:
        """The prediction against the measured step: predicted / measured - 1."""
        return self.predicted / self.measured - 1 if self.measured else 0.0

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a cause, fractions of the predicted makespan."""
        seconds = np.array([part.seconds for part in self.parts])
        return {
            "cause": np.array([part.cause for part in self.parts], dtype=object),
            "seconds [s]": seconds,
            "fraction": seconds / self.predicted if self.predicted else np.zeros(len(seconds)),
            "detail": np.array([part.detail for part in self.parts], dtype=object),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    @property
    def headline(self) -> str:
        """Measured against predicted, in a line."""
        change = f": {100 * self.difference / self.predicted:+.1f} %" if self.predicted else ""
        return (
            f"{self.label}: {as_seconds(self.measured)} ({self.clocks[1]} clock) against "
            f"{as_seconds(self.predicted)} predicted{change}"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say: of the band, of the actions alone, of the clocks."""
        said = []
        if self.band is not None:
            low, high = self.band
            where = "within" if low <= self.measured <= high else "above" if self.measured > high else "below"
            said.append(
                f"predicted between {as_seconds(low)} and {as_seconds(high)}; the measured step lies {where}"
                f"{' that' if where == 'within' else ' it'}"
            )
        said.append(f"the measured actions alone, handed over in no time: {as_seconds(self.replayed)}")
        return (*said, *self.notes)

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                part.cause,
                as_seconds(part.seconds),
                as_percent(part.seconds / self.predicted if self.predicted else 0.0),
                part.detail,
            ]
            for part in self.parts
        ]
        return ["cause", "share", "of the prediction", "what was found"], rows

    def __str__(self) -> str:
        return text_table(*self._rows(), "\n".join([self.headline, *self.remarks]))

    def __repr__(self) -> str:
        return f"<Gap of {self.headline}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), self.headline, "; ".join(self.remarks))


@dataclass(frozen=True, eq=False)
class _Run:
    """A trace as durations and delays: run again, they give its makespan.

    Attributes:
        seconds: shape (cells,): of each action.
        moves: shape (hops,): seconds of each transfer, where the links are known, else 0.
        delay: shape (cells,): seconds from when an action's rank was free and its inputs were there to its start.
        first: shape (cells,): whether it is the first action of its rank.
        after: seconds from the last action's end to that of the step.
    """

    seconds: FloatArray
    moves: FloatArray
    delay: FloatArray
    first: npt.NDArray[np.bool_]
    after: float

    @classmethod
    def of(cls, trace: Trace) -> _Run:
        schedule, cells = trace.schedule, trace.schedule.table.num_cells
        start, end, rank = trace.start[:cells], trace.end[:cells], trace.rank[:cells]
        moves = np.zeros(len(schedule.workload.hops))
        if trace.costs is not None:
            moves = tasks_of(schedule, trace.costs, trace.feed).moves
        first = np.append(True, rank[1:] != rank[:-1])
        ready = np.where(first, 0.0, np.append(0.0, end[:-1]))
        needs = schedule.predecessors
        np.maximum.at(ready, needs.cell, end[needs.needed] + moves[needs.hop])
        return cls(end - start, moves, start - ready, first, trace.makespan - float(end.max()))


def replayed(
    schedule: Schedule, seconds: FloatArray, moves: FloatArray | float = 0.0, delay: FloatArray | float = 0.0
) -> float:
    """The makespan of a schedule whose actions take these times.

    Args:
        schedule: what runs.
        seconds: shape (cells,): of each action, in table order.
        moves: shape (hops,): seconds of each transfer; or one number.
        delay: shape (cells,): by how much each action starts later than it could; or one number.

    Example:
        >>> import pipelab as pp
        >>> trace = pp.simulate(pp.schedule("1f1b", num_ranks=4, num_microbatches=8), pp.Costs.uniform(4))
        >>> replayed(trace.schedule, trace.durations)
        33.0
    """
    entries = np.append(seconds + delay, 0.0)[
        schedule.recurrence.work
    ]  # an entry that only waits has work -1
    return float(schedule.recurrence.times(entries, moves)[1].max(initial=0.0))


def explain_gap(predicted: Trace, measured: Trace) -> Gap:
    """Split the difference between a measured step and the predicted one by cause.

    What the prediction was made from is replaced by what was measured, one thing after the other: the actions of each
    kind, their spread, late first actions, waiting, and what follows the last action; the schedule is run again each
    time. What two causes make together goes to the later one.

    A note says what to try next where the prediction is off by more than 5 %, more than half of that is longer actions,
    and the measured clock is the wall's with two or more ranks on the CPU: there ranks slow each other down.

    Args:
        predicted: of the same schedule, mostly from `simulate`.
        measured: mostly the trace of a step.

    Raises:
        PipelabError: traces of two schedules.
        TypeError: something that is no trace.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("gpipe", num_ranks=2, num_microbatches=4)
        >>> gap = explain_gap(pp.simulate(one, pp.Costs.uniform(2)), pp.simulate(one, pp.Costs.uniform(2, latency=1.0)))
        >>> gap.difference, {part.cause: part.seconds for part in gap.parts if part.seconds}
        (2.0, {'waiting': 2.0})
    """
    for name, trace in (("predicted", predicted), ("measured", measured)):
        if not isinstance(trace, Trace):
            raise TypeError(f"explain_gap() takes two traces; {name} is {type(trace).__name__}.")
    _check_same(predicted.schedule, measured.schedule)
    schedule, before, after = measured.schedule, _Run.of(predicted), _Run.of(measured)
    kind, means = _kinds_and_means(measured, after.seconds)
    seconds = before.seconds.copy()
    steps: list[tuple[str, float, str]] = []
    for code in np.unique(kind):
        chosen = kind == code
        detail = _lasting(float(before.seconds[chosen].mean()), float(after.seconds[chosen].mean()))
        seconds[chosen] = means[chosen]
        steps.append((KINDS[code].value, replayed(schedule, seconds, before.moves, before.delay), detail))
    spread = replayed(schedule, after.seconds, before.moves, before.delay)
    steps.append((SPREAD, spread, "each action its own time instead of its stage's mean"))
    late = np.where(after.first, after.delay, before.delay)
    first, rest = (float(after.delay[where].sum()) for where in (after.first, ~after.first))
    started = replayed(schedule, after.seconds, before.moves, late)
    steps.append((START, started, f"first actions late by {as_seconds(first)} together"))
    waited = replayed(schedule, after.seconds, after.moves, after.delay)
    rest += float(after.moves[schedule.predecessors.hop].sum())
    late_by = f"others late by {as_seconds(rest)} together: transfers, threads, overhead"
    steps.append((WAITING, waited, late_by))
    shares = [(cause, makespan + before.after, detail) for cause, makespan, detail in steps]
    shares.append((OUTSIDE, measured.makespan, f"{as_seconds(after.after)} after the last action"))
    parts = _parts(predicted.makespan, shares)
    return Gap(
        predicted=predicted.makespan,
        measured=measured.makespan,
        parts=parts,
        replayed=replayed(schedule, after.seconds),
        clocks=(predicted.clock, measured.clock),
        label=measured.label,
        band=predicted.band,
        notes=tuple(dict.fromkeys((*_advice(predicted, measured, parts), *predicted.notes, *measured.notes))),
    )


def _advice(predicted: Trace, measured: Trace, parts: tuple[GapPart, ...]) -> tuple[str, ...]:
    """What to try next where CPU ranks that slow each other down explain the difference; see `explain_gap`."""
    more = measured.makespan - predicted.makespan
    longer = sum(part.seconds for part in parts if part.cause not in (SPREAD, START, WAITING, OUTSIDE))
    beside = sum(device.startswith("cpu") for device in measured.devices)
    if measured.clock != "wall" or beside < 2 or more <= _MUCH * predicted.makespan or longer <= more / 2:
        return ()
    return (
        "longer actions are most of it: ranks of one machine slow each other down; pp.profile(..., "
        f"ranks={beside}) measures layers beside such neighbours, and devices=pp.virtual({measured.num_ranks}) runs "
        "one action at a time",
    )


def pace_sentence(predicted: Trace, measured: Trace) -> str:
    """What to say where most actions took longer or shorter than predicted by about one factor; "" where they did not.

    Args:
        predicted: from `simulate`, of the same schedule.
        measured: the trace of a step.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> predicted = pp.simulate(one, pp.Costs.uniform(4))
        >>> slower = pp.Trace.from_times(one, 3 * predicted.start, 3 * predicted.end, clock="wall")
        >>> pace_sentence(predicted, predicted)
        ''
        >>> print(pace_sentence(predicted, slower))
        Actions took about 3 × as long as profiled: the machine is busier than when it was profiled; profile again.
    """
    cells = measured.schedule.table.num_cells
    if measured.clock == "simulated" or predicted.schedule.table.num_cells != cells:
        return ""
    before, after = (trace.end[:cells] - trace.start[:cells] for trace in (predicted, measured))
    known = before > 0
    if not known.any():
        return ""
    ratio = float(np.median(after[known] / before[known]))
    if _PACES[0] <= ratio <= _PACES[1]:
        return ""
    factor = f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"
    said = f"Actions took about {factor} × as long as profiled"
    if ratio < 1:
        return f"{said}: the machine was busier when it was profiled; profile again."
    beside = sum(device.startswith("cpu") for device in measured.devices)
    if measured.clock == "wall" and beside > 1:
        return f"{said}: the machine is busier, if only by ranks; profile with ranks={beside}."
    return f"{said}: the machine is busier than when it was profiled; profile again."


def _check_same(predicted: Schedule, measured: Schedule) -> None:
    if predicted.placement == measured.placement and predicted.orders == measured.orders:
        return
    sizes = [f"{s.name} with {s.num_ranks} ranks and m = {s.num_microbatches}" for s in (predicted, measured)]
    differs = "their orders differ" if sizes[0] == sizes[1] else f"{sizes[0]}, and {sizes[1]}"
    raise PipelabError(
        f"The prediction and the measured step are of two schedules: {differs}. Simulate the schedule that ran: "
        f"simulate(measured.schedule, costs)."
    )


def _kinds_and_means(trace: Trace, seconds: FloatArray) -> tuple[IntArray, FloatArray]:
    """For each cell the code of its kind, and the mean of all cells of its kind and stage."""
    kind, stage = (column[: len(seconds)].astype(np.int64) for column in (trace.kind, trace.stage))
    group = kind * trace.schedule.num_stages + stage
    total, count = np.bincount(group, weights=seconds), np.bincount(group)
    return kind, (total / np.maximum(count, 1))[group]


def _lasting(before: float, after: float) -> str:
    if math.isclose(before, after, rel_tol=5e-4):
        return f"{as_seconds(after)} in the mean, as predicted"
    return f"{as_seconds(after)} instead of {as_seconds(before)} in the mean"


def _parts(predicted: float, shares: list[tuple[str, float, str]]) -> tuple[GapPart, ...]:
    """From the makespan after each replacement to what each one adds."""
    parts, before = [], predicted
    for cause, makespan, detail in shares:
        if math.isclose(makespan, before, rel_tol=_ROUNDING):
            makespan = before
        parts.append(GapPart(cause, makespan - before, detail))
        before = makespan
    return tuple(parts)
