"""Runs against the first of them: each number, by how much it differs, and which run is best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipelab.core.comparison import Comparison
from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.report import Report

__all__ = ["Measure", "measures"]

_SAME = 1e-9
"""What differs by less than this fraction does not differ."""


@dataclass(frozen=True)
class Measure:
    """One number of several runs; of each, less is better.

    Attributes:
        name: "makespan", "bubble_fraction", "peak memory", "peak in flight" or "bytes sent".
        values: one a run, in seconds, as a fraction, in bytes, or counted; None where it is not known.
        texts: the values with their units; "" where it is not known.
    """

    name: str
    values: tuple[float | None, ...]
    texts: tuple[str, ...]

    @property
    def is_fraction(self) -> bool:
        """Whether the values are parts of a whole, whose differences are said in points."""
        return self.name == "bubble_fraction"

    @property
    def changes(self) -> tuple[float | None, ...]:
        """For each run the difference to the first: as a part of the first, of fractions as it is.

        None where either is not known, and where the first is 0 and the run is not.
        """
        return tuple(_change(value, self.values[0], self.is_fraction) for value in self.values)

    @property
    def change_texts(self) -> tuple[str, ...]:
        """The differences as text, such as "-12.5 %", "+3.1 points" and "same"; "" for the first run."""
        unit = "points" if self.is_fraction else "%"
        texts = (
            "" if k == 0 or change is None else _signed(change, unit) for k, change in enumerate(self.changes)
        )
        return tuple(texts)

    @property
    def is_best(self) -> tuple[bool, ...]:
        """Which runs have the least; none, where all have the same or but one is known."""
        known = [value for value in self.values if value is not None]
        if len(known) < 2 or _same(min(known), max(known)):
            return (False,) * len(self.values)
        return tuple(value is not None and _same(value, min(known)) for value in self.values)


def measures(comparison: Comparison) -> tuple[Measure, ...]:
    """What a table of runs shows.

    Args:
        comparison: from `pp.compare`. Where no run knows its bytes, the most micro-batches in flight stand for them.

    Example:
        >>> import pipelab as pp
        >>> names = ("gpipe", "1f1b")
        >>> schedules = [pp.schedule(name, num_ranks=4, num_microbatches=8) for name in names]
        >>> found = measures(pp.compare(pp.simulate(s, pp.Costs.uniform(4)) for s in schedules))
        >>> [(one.name, one.change_texts[1]) for one in found]
        [('makespan', 'same'), ('bubble_fraction', 'same'), ('peak in flight', '-50.0 %')]
    """
    reports = comparison.reports
    shown = [
        _measure("makespan", reports, lambda r: r.makespan, as_seconds),
        _measure("bubble_fraction", reports, lambda r: r.bubble_fraction, as_percent),
    ]
    if all(report.peak_bytes is None for report in reports):
        shown.append(_measure("peak in flight", reports, lambda r: max(r.peak_in_flight), "{:.0f}".format))
        return tuple(shown)
    shown.append(_measure("peak memory", reports, lambda r: _of_ranks(r.peak_bytes, max), as_bytes))
    shown.append(_measure("bytes sent", reports, lambda r: _of_ranks(r.bytes_sent, sum), as_bytes))
    return tuple(shown)


def _of_ranks(values: tuple[float, ...] | None, join: Callable[[tuple[float, ...]], float]) -> float | None:
    return None if values is None else join(values)


def _measure(
    name: str,
    reports: tuple[Report, ...],
    value_of: Callable[[Report], float | None],
    text_of: Callable[[float], str],
) -> Measure:
    values = tuple(value_of(report) for report in reports)
    return Measure(name, values, tuple("" if value is None else text_of(value) for value in values))


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-12)


def _change(value: float | None, first: float | None, is_fraction: bool) -> float | None:
    if value is None or first is None:
        return None
    if _same(value, first):
        return 0.0
    if is_fraction:
        return value - first
    return None if first == 0 else value / first - 1


def _signed(change: float, unit: str) -> str:
    return "same" if change == 0 else f"{100 * change:+.1f} {unit}"
