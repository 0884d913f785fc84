"""Runs against the first of the same clock: each number, by how much it differs, and which run is best.

A predicted time and a measured one are two things: what is said of one run against another stays within a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelab.core.comparison import Comparison
from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.report import Report

__all__ = ["Measure", "first_of_clock", "measures"]

_SAME = 1e-9
"""What differs by less than this fraction does not differ."""


@dataclass(frozen=True)
class Measure:
    """One number of several runs; of each, less is better.

    Attributes:
        name: "makespan", "bubble_fraction", "peak memory", "peak in flight" or "bytes sent".
        values: one a run, in seconds, as a fraction, in bytes, or counted; None where it is not known.
        texts: the values with their units; "" where it is not known.
        is_fraction: whether the values are parts of a whole, whose differences are said in points.
        clocks: of each run; () where all have one.
    """

    name: str
    values: tuple[float | None, ...]
    texts: tuple[str, ...]
    is_fraction: bool = False
    clocks: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[float | None, ...]:
        """For each run the difference to the first of its clock: as a part of that one, of fractions as it is.

        None where either is not known, and where the first is 0 and the run is not.
        """
        firsts = (self.values[first] for first in self._firsts)
        return tuple(
            _change(value, first, self.is_fraction) for value, first in zip(self.values, firsts, strict=True)
        )

    @property
    def change_texts(self) -> tuple[str, ...]:
        """The differences as text, such as "-12.5 %", "+3.1 points" and "same"; "" for the first run of a clock."""
        unit = "points" if self.is_fraction else "%"
        texts = (
            "" if k == first or change is None else _signed(change, unit)
            for k, (first, change) in enumerate(zip(self._firsts, self.changes, strict=True))
        )
        return tuple(texts)

    @property
    def is_best(self) -> tuple[bool, ...]:
        """Which runs have the least of their clock; none, where all of it have the same or but one is known."""
        least: dict[int, float] = {}
        for first in set(self._firsts):
            of_clock = (value for value, k in zip(self.values, self._firsts, strict=True) if k == first)
            known = [value for value in of_clock if value is not None]
            if len(known) > 1 and not _same(min(known), max(known)):
                least[first] = min(known)
        return tuple(
            value is not None and first in least and _same(value, least[first])
            for value, first in zip(self.values, self._firsts, strict=True)
        )

    @property
    def _firsts(self) -> tuple[int, ...]:
        return first_of_clock(self.clocks or ("",) * len(self.values))


def first_of_clock(clocks: Sequence[str]) -> tuple[int, ...]:
    """For each run the first one of its clock, which it is compared with.

    Example:
        >>> first_of_clock(["simulated", "wall", "simulated"])
        (0, 1, 0)
    """
    return tuple(clocks.index(clock) for clock in clocks)


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
        _measure("bubble_fraction", reports, lambda r: r.bubble_fraction, as_percent, is_fraction=True),
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
    *,
    is_fraction: bool = False,
) -> Measure:
    values = tuple(value_of(report) for report in reports)
    texts = tuple("" if value is None else text_of(value) for value in values)
    return Measure(name, values, texts, is_fraction, tuple(report.clock for report in reports))


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
