"""Which points of a sweep belong on one line, and which lines are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelab.core.quantities import as_seconds
from pipelab.core.sweep import SIZES, Sweep, SweepPoint
from pipelab.plots.wording import literal

_LINKS = "links_text"
"""What tells links apart beside their latency is not a size, for it has no order."""

LETTERS = {"num_ranks": "p", "num_microbatches": "m", "stages_per_rank": "v", "latency": "latency"}


_LETTERS = 64


def within(names: Sequence[str]) -> Sequence[str]:
    """As many of some names, from the first, as one line of a picture has room for."""
    count = len(names)
    while count > 1 and len(", ".join(names[:count])) > _LETTERS:
        count -= 1
    return names[:count]


@dataclass(frozen=True, eq=False)
class Series:
    """One line: a schedule, or several that do not differ in any point.

    Attributes:
        names: the schedules, with what else tells them from others; already safe for matplotlib.
        number: of the first of them, among all of the sweep: it has the same colour in every picture of a sweep.
        x: shape (n,), ascending.
        y: shape (n,).
    """

    names: tuple[str, ...]
    number: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def label(self, limit: int = 4) -> str:
        """All names, or the first few and how many more there are."""
        shown = within(self.names[:limit] if len(self.names) > limit + 1 else self.names)
        return ", ".join(shown) + (
            f", {len(self.names) - len(shown)} more" if len(shown) < len(self.names) else ""
        )


def series_of(sweep: Sweep, x: str, y: str) -> list[Series]:
    """The lines of a quantity over a size, those that coincide taken together.

    Args:
        x: one of `SIZES`.
        y: one of `QUANTITIES`.
    """
    telling = {schedule: _telling(sweep, schedule, x) for schedule in sweep.schedules}
    lines: dict[tuple[object, ...], tuple[str, list[tuple[float, float]]]] = {}
    for point in sweep:
        sizes = telling[point.schedule]
        key = (point.schedule, *(getattr(point, size) for size in sizes))
        _, pairs = lines.setdefault(key, (name_of(point, sizes), []))
        at, value = getattr(point, x), point.value(y)
        if at is not None and np.isfinite(value):
            pairs.append((float(at), value))
    found: list[Series] = []
    for number, (name, pairs) in enumerate(lines.values()):
        if not pairs:
            continue
        columns = np.array(sorted(pairs)).T
        same = next((k for k, other in enumerate(found) if _coincide(other, *columns)), None)
        if same is None:
            found.append(Series((name,), number, *columns))
        else:
            found[same] = replace(found[same], names=(*found[same].names, name))
    return found


def _coincide(one: Series, x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    return np.array_equal(one.x, x) and np.allclose(one.y, y, rtol=1e-9, atol=1e-12)


def _telling(sweep: Sweep, schedule: str, x: str | None) -> tuple[str, ...]:
    """What tells the points of a schedule from each other, beside the size along the axis."""
    own = [point for point in sweep if point.schedule == schedule and not point.refusal]
    return tuple(n for n in (*SIZES, _LINKS) if n != x and len({getattr(point, n) for point in own}) > 1)


def named_points(sweep: Sweep, y: str) -> list[tuple[str, SweepPoint]]:
    """Every point whose quantity can be drawn, named by its schedule and what else tells it from others."""
    telling = {schedule: _telling(sweep, schedule, None) for schedule in sweep.schedules}
    return [(name_of(p, telling[p.schedule]), p) for p in sweep if np.isfinite(p.value(y))]


def name_of(point: SweepPoint, sizes: tuple[str, ...]) -> str:
    """A point's schedule with some of its sizes: "1f1b, m = 8"."""
    parts = [point.links_text if n == _LINKS else _size_of(point, n) for n in sizes]
    return ", ".join([literal(point.schedule, 32), *filter(None, parts)])


def _size_of(point: SweepPoint, size: str) -> str:
    value = getattr(point, size)
    return "" if value is None and point.links_text else size_text(size, value)


def size_text(size: str, value: float | None) -> str:
    """A size with its letter: "m = 8"."""
    text = "of several kinds" if value is None else as_seconds(value) if size == "latency" else f"{value:g}"
    return f"{LETTERS[size]} {text}" if value is None else f"{LETTERS[size]} = {text}"
