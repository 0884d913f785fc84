"""What a sweep found: one table of many sizes and schedules, those included that are impossible.

`pipelab.sweep` makes it; the plots and the notebooks read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import wrap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.costs import Costs, Links
from pipelab.core.quantities import as_bytes, as_percent, as_seconds, counted
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError, one_of, reject_unknown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QUANTITIES", "SIZES", "Quantity", "Sweep", "SweepPoint"]


@dataclass(frozen=True)
class SweepPoint:
    """One schedule at one size.

    Attributes:
        schedule: its name, or the key under which it was given.
        num_ranks: p.
        num_microbatches: m, as asked for.
        stages_per_rank: v; None where the schedule was refused before it could say.
        links: between the ranks; None where it was refused before they were known.
        links_text: what tells these links from the others of the sweep, beside the latency; "" for nothing.
        numbers: one for each of `QUANTITIES`; none where it was refused.
        refusal: why it was refused, or "".
        costs: what it was simulated with; None where it was refused.
        build: builds the schedule again.
    """

    schedule: str
    num_ranks: int
    num_microbatches: int
    stages_per_rank: int | None
    links: Links | None = None
    links_text: str = ""
    numbers: tuple[float, ...] = ()
    refusal: str = ""
    costs: Costs | None = field(default=None, repr=False)
    build: Callable[[], Schedule] | None = field(default=None, repr=False, compare=False)

    @property
    def latency(self) -> float | None:
        """Seconds of a transfer between ranks; None where links are not known, or differ from each other."""
        latency = None if self.links is None else self.links.latency
        return latency if isinstance(latency, float) else None

    def __repr__(self) -> str:
        sizes = {name: getattr(self, name) for name in ("schedule", *SIZES)}
        links = {"links_text": self.links_text} if self.links_text else {}
        said = ", ".join(f"{name}={value!r}" for name, value in {**sizes, **links}.items())
        if self.refusal:
            return f"SweepPoint({said}, refusal={self.refusal!r})"
        numbers = zip(QUANTITIES, self.numbers, strict=True)
        return f"SweepPoint({said}, {', '.join(f'{n}={x:.6g}' for n, x in numbers if not math.isnan(x))})"

    def value(self, quantity: str) -> float:
        """One of `QUANTITIES` at this point; not a number where it was refused.

        Raises:
            PipelabError: there is no such quantity.
        """
        one_of("quantity", quantity, QUANTITIES)
        return self.numbers[list(QUANTITIES).index(quantity)] if self.numbers else math.nan

    def trace(self) -> Trace:
        """The simulated run itself, made again: a sweep keeps a few numbers of each, not all timelines.

        Raises:
            PipelabError: the schedule was refused at this size.
        """
        if self.build is None or self.costs is None:
            raise PipelabError(
                f"{self.schedule} was refused at {self.num_ranks} ranks and {self.num_microbatches} "
                f"micro-batches: {self.refusal}"
            )
        return simulate(self.build(), self.costs).with_label(self.schedule)


@dataclass(frozen=True)
class Quantity:
    """A number that a sweep has for each point.

    Attributes:
        column: its name in tables, with its unit.
        of: takes a report, and which share of what a rank has of the model one chunk is.
        text: how it is written.
        definition: what it is, in words or a formula.
    """

    column: str
    of: Callable[[Report, float], float]
    text: Callable[[float], str]
    definition: str


def _count(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "makespan": Quantity(
            "makespan [s]", lambda r, _: r.makespan, as_seconds, "from the first start to the last end"
        ),
        "bubble_fraction": Quantity(
            "bubble fraction", lambda r, _: r.bubble_fraction, as_percent, "idle / (ranks × makespan)"
        ),
        "bubble_ratio": Quantity("bubble ratio", lambda r, _: r.bubble_ratio, as_percent, "idle / busy"),
        "span_bubble": Quantity(
            "span bubble",
            lambda r, _: r.span_bubble,
            as_percent,
            "1 - busy / (ranks × longest span of a rank)",
        ),
        "peak_in_flight": Quantity(
            "peak in flight",
            lambda r, _: float(max(r.peak_in_flight)),
            _count,
            "micro-batches (stage chunks, where a rank holds several) on the rank that holds most",
        ),
        "peak_activations": Quantity(
            "peak activations [micro-batches]",
            lambda r, share: max(r.peak_in_flight) * share,
            _count,
            "as micro-batches of one rank's share of the model, on the rank that holds most",
        ),
        "peak_bytes": Quantity(
            "peak memory [bytes]",
            lambda r, _: math.nan if r.peak_bytes is None else max(r.peak_bytes),
            as_bytes,
            "all that the rank holds that holds most",
        ),
    }
)
"""The numbers of each point by the names that `plot_sweep` and `Sweep.best` take."""

SIZES: Mapping[str, str] = MappingProxyType(
    {
        "num_ranks": "ranks",
        "num_microbatches": "micro-batches",
        "stages_per_rank": "stages per rank",
        "latency": "latency [s]",
    }
)
"""What may differ between points of one schedule, and the name of its column."""

_WIDTH = 110
"""Of the lines below the table, in characters."""

_MOST_ROWS = 60
"""Of a longer table, print and notebooks show the first and the last rows."""


@dataclass(frozen=True)
class Sweep:
    """Many schedules at many sizes, simulated; a table, and what plots are made from.

    Attributes:
        points: one a row, in the order of the table.
        conditions: what holds for all of them, in words: costs and links.
    """

    points: tuple[SweepPoint, ...]
    conditions: str

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[SweepPoint]:
        return iter(self.points)

    @cached_property
    def schedules(self) -> tuple[str, ...]:
        """The schedules, each once, in order."""
        return tuple(dict.fromkeys(point.schedule for point in self.points))

    @property
    def refused(self) -> tuple[SweepPoint, ...]:
        """The points that a schedule refused; `point.refusal` says why."""
        return tuple(point for point in self.points if point.refusal)

    def values(self, size: str) -> tuple[Any, ...]:
        """The different values of one of `SIZES`, ascending; those that are not known are left out."""
        one_of("size", size, SIZES)
        return tuple(sorted({v for p in self.points if (v := getattr(p, size)) is not None}))

    def where(self, **wanted: Any) -> Sweep:
        """The points of some schedules or sizes only.

        Args:
            **wanted: `schedule`, `num_ranks`, `num_microbatches`, `stages_per_rank`, `latency` or `links`: a
                value, or several.

        Raises:
            PipelabError: no point is left.
            TypeError: something else is asked for.
        """
        known = ("schedule", *SIZES, "links")
        reject_unknown("where", (n for n in wanted if n not in known), known)
        allowed = {name: _as_set(value) for name, value in wanted.items()}
        left = tuple(p for p in self.points if all(getattr(p, n) in some for n, some in allowed.items()))
        if not left:
            asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
            there = "; ".join(
                f"{n}: {', '.join(map(str, dict.fromkeys(getattr(p, n) for p in self.points)))}"
                for n in wanted
            )
            raise PipelabError(f"No point of this sweep has {asked}. There are {there}.")
        return Sweep(left, self.conditions)

    def best(self, by: str = "makespan", **at_most: float) -> SweepPoint:
        """The point with the least of a quantity; of equal ones that with the least activations.

        Args:
            by: one of `QUANTITIES`.
            **at_most: the most that other quantities may be, such as `peak_activations=4`.

        Raises:
            PipelabError: no point keeps to the limits; it says how near the nearest came.
        """
        one_of("by", by, QUANTITIES)
        reject_unknown("best", (name for name in at_most if name not in QUANTITIES), QUANTITIES)
        able = [p for p in self.points if not math.isnan(p.value(by))]
        for name, limit in at_most.items():
            least = min((p.value(name) for p in able), default=math.nan)
            able = [p for p in able if p.value(name) <= limit]
            if not able:
                text = QUANTITIES[name].text
                raise PipelabError(
                    f"No point has {name} of at most {text(limit)}; the least left is {text(least)}."
                )
        if not able:
            raise PipelabError(f"No point of this sweep has a {by}.")
        least = min(p.value(by) for p in able)
        ties = [p for p in able if math.isclose(p.value(by), least, rel_tol=1e-9, abs_tol=1e-12)]
        return min(ties, key=lambda p: p.value("peak_activations"))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a point, numbers of refused points not a number."""
        varying: dict[str, list[Any]] = {"schedule": [p.schedule for p in self.points]}
        for name, column in SIZES.items():
            numbers = [getattr(p, name) for p in self.points]
            if name != "latency" or len({p.latency for p in self.points if p.links is not None}) > 1:
                varying[column] = numbers if None not in numbers else [_or_nan(x) for x in numbers]
        if any(p.links_text for p in self.points):
            varying["links"] = [p.links_text for p in self.points]
        columns = {
            n: np.array(x, dtype=object if n in ("schedule", "links") else None) for n, x in varying.items()
        }
        for name, quantity in QUANTITIES.items():
            found = np.array([p.value(name) for p in self.points])
            if name == "peak_in_flight" and not self.refused:
                found = found.astype(np.int64)
            if name != "peak_bytes" or not np.isnan(found).all():
                columns[quantity.column] = found
        if self.refused:
            columns["refused"] = np.array([p.refusal for p in self.points], dtype=object)
        return columns

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        shown = {q.column: q.text for q in QUANTITIES.values()} | {SIZES["latency"]: as_seconds}
        columns = self.columns()
        columns.pop("refused", None)
        ran = [n for n, point in enumerate(self.points) if not point.refusal]
        texts = []
        for name, column in columns.items():
            text = shown.get(name, lambda value: f"{value:g}" if isinstance(value, float) else str(value))
            texts.append([_blank(text, column[n]) for n in ran])
        rows = [list(row) for row in zip(*texts, strict=True)]
        if len(rows) > _MOST_ROWS:
            half = _MOST_ROWS // 2
            rows = [*rows[:half], ["..."] * len(columns), *rows[-half:]]
        return [name.partition(" [")[0] for name in columns], rows

    def _note(self) -> str:
        columns = self.columns()
        shown = [q for q in QUANTITIES.values() if q.column in columns]
        words = " ".join(f"{q.column.partition(' [')[0].capitalize()}: {q.definition}." for q in shown)
        lines = [f"Simulated clock; {self.conditions}.", *wrap(words, _WIDTH)]
        reasons: dict[tuple[str, str], list[str]] = {}
        for point in self.refused:
            size = f"p = {point.num_ranks}, m = {point.num_microbatches}"
            reasons.setdefault((point.schedule, point.refusal), []).append(size)
        for (schedule, reason), sizes in reasons.items():
            sizes = list(dict.fromkeys(sizes))
            some = "; ".join(sizes[:4]) + (f"; {len(sizes) - 4} more" if len(sizes) > 4 else "")
            lines.append(
                f"Refused at {some}: {reason}" if schedule in reason else f"{schedule} at {some}: {reason}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        header, rows = self._rows()
        return text_table(header, rows, self._note())

    def __repr__(self) -> str:
        refused = f", {len(self.refused)} refused" if self.refused else ""
        return f"<Sweep: {counted(len(self.schedules), 'schedule')}, {counted(len(self), 'point')}{refused}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        header, rows = self._rows()
        return html_table(header, rows, note=self._note())


def _as_set(value: Any) -> set[Any]:
    return {value} if isinstance(value, str) or not isinstance(value, Iterable) else set(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _blank(text: Callable[[Any], str], value: Any) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else text(value)
