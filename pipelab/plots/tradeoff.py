"""One number of a sweep against another: what a schedule pays for what it saves.

Of both numbers less is better. A point is on the front where no other has less of one and no more of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pipelab.core.sweep import QUANTITIES, Sweep
from pipelab.plots.artists import SMALL_POINTS
from pipelab.plots.palette import INK, LINES
from pipelab.plots.series import named_points
from pipelab.plots.sweep_axes import axis_unit, few, fixed, notes, quantity_axis, terms, tick_text

__all__ = ["Spot", "describe_tradeoff", "draw_tradeoff", "spots_of", "tradeoff_title"]

_FRONT = LINES[0]
_WIDE, _HIGH = 0.56 * SMALL_POINTS, 1.25 * SMALL_POINTS  # of a letter, in points
_NEAR = 7.0  # points from a spot to its name


@dataclass(frozen=True)
class Spot:
    """A place in the picture, and all that lies there.

    Attributes:
        names: the schedules, with what else tells them from others; already safe for matplotlib.
        x, y: the two numbers.
        is_best: whether it is on the front.
    """

    names: tuple[str, ...]
    x: float
    y: float
    is_best: bool = False


def spots_of(sweep: Sweep, x: str, y: str) -> list[Spot]:
    """The points that have both quantities, those that coincide taken together, by x and then by y."""
    places: dict[tuple[float, float], list[str]] = {}
    for name, point in named_points(sweep, y):
        at = point.value(x)
        if np.isfinite(at):
            places.setdefault((float(f"{at:.9g}"), float(f"{point.value(y):.9g}")), []).append(name)
    spots = [Spot(tuple(names), *place) for place, names in sorted(places.items())]
    least = np.inf
    for k, spot in enumerate(spots):
        if spot.y < least:
            spots[k], least = replace(spot, is_best=True), spot.y
    return spots


def draw_tradeoff(ax: Axes, spots: Sequence[Spot], x: str, y: str) -> None:
    """Draw the spots, the front as a staircase, and a name beside each."""
    best = [spot for spot in spots if spot.is_best]
    rest = [spot for spot in spots if not spot.is_best]
    low, high = min(spot.y for spot in spots), max(spot.y for spot in spots)
    quantity_axis(ax, y, high)
    quantity_axis(ax, x, max(spot.x for spot in spots), along="x")
    room = 0.12 * (
        high - low or high or 1.0
    )  # spots are compared by where they lie, not by how high they are
    ax.set_ylim(max(0.0, low - room) if low > 2 * room else -0.5 * room, high + room)
    if spots[0].x > 0 and spots[-1].x >= 8 * spots[0].x:
        ax.set_xscale("log", base=2)
        ax.set_xlim(spots[0].x / 1.3, spots[-1].x * 1.3)
        _, unit = axis_unit(x, spots[-1].x)
        low, high = np.log2(spots[0].x / 1.3 / unit), np.log2(spots[-1].x * 1.3 / unit)
        ticks = 2.0 ** np.arange(np.ceil(low), high)
        ax.set_xticks(unit * ticks, [tick_text(x, tick) for tick in ticks.tolist()])
        ax.minorticks_off()
    ax.step(
        [spot.x for spot in best],
        [spot.y for spot in best],
        where="post",
        color=_FRONT,
        linewidth=1.2,
        zorder=2,
    )
    ax.plot([s.x for s in best], [s.y for s in best], "o", color=_FRONT, markersize=7, zorder=3)
    hollow = {"markerfacecolor": "white", "markeredgecolor": INK, "markersize": 6.5}
    ax.plot([s.x for s in rest], [s.y for s in rest], "o", zorder=3, **hollow)  # type: ignore[arg-type]
    _name_spots(ax, spots)


def _name_spots(ax: Axes, spots: Sequence[Spot]) -> None:
    """Each name beside its spot, where no other spot or name lies; at worst a little farther off, with a thread."""
    per_point = ax.figure.dpi / 72  # type: ignore[union-attr]
    places = ax.transData.transform([(spot.x, spot.y) for spot in spots]) / per_point
    corner = np.array([ax.bbox.x0, ax.bbox.y0, ax.bbox.x0, ax.bbox.y0]) / per_point
    inside = np.array([0, 0, ax.bbox.width, ax.bbox.height]) / per_point + corner
    taken = [np.array([px - 4, py - 4, px + 4, py + 4]) for px, py in places]
    best = [place for spot, place in zip(spots, places, strict=True) if spot.is_best]
    for (left, upper), (right, lower) in pairwise(best):
        taken += [
            np.array([left, upper - 2, right, upper + 2]),
            np.array([right - 2, lower, right + 2, upper]),
        ]
    for spot, place in zip(spots, places, strict=True):
        text = few(spot.names)
        offset = _free_offset(place, len(text) * _WIDE, taken, inside)
        taken.append(_box(place, offset, len(text) * _WIDE))
        thread = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "relpos": (0.5, 0.5), "shrinkB": 4}
        ax.annotate(
            text,
            (spot.x, spot.y),
            xytext=offset,
            textcoords="offset points",
            ha="left" if offset[0] > 1 else "right" if offset[0] < -1 else "center",
            va="center",
            fontsize=SMALL_POINTS,
            color=INK,
            fontweight="bold" if spot.is_best else "normal",
            arrowprops=thread if max(map(abs, offset)) > 2 * _NEAR else None,
            zorder=4,
        )


def _free_offset(
    place: NDArray[np.float64],
    width: float,
    taken: Sequence[NDArray[np.float64]],
    inside: NDArray[np.float64],
) -> tuple[float, float]:
    """The nearest of some places around a spot where a name of this width covers least."""
    sides = [(_NEAR, 0.0), (0.0, 1.4 * _NEAR), (0.0, -1.4 * _NEAR), (-_NEAR, 0.0)]
    sides += [(a * _NEAR * 0.8, b * _NEAR * 1.3) for b in (1, -1) for a in (1, -1)]
    far = [(a * _NEAR * k, b * _NEAR * k) for k in (2.2, 3.2, 4.5, 6) for b in (1, -1) for a in (1, -1, 0)]
    boxes = np.array(taken)
    costs = []
    for rank, offset in enumerate([*sides, *far]):
        box = _box(place, offset, width)
        across = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
        along = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
        covered = float((np.maximum(across, 0) * np.maximum(along, 0)).sum())
        beyond = float(np.maximum(inside[:2] - box[:2], 0).sum() + np.maximum(box[2:] - inside[2:], 0).sum())
        costs.append((covered + 20 * beyond, rank, offset))
    return min(costs)[2]


def _box(place: NDArray[np.float64], offset: tuple[float, float], width: float) -> NDArray[np.float64]:
    """Left, lower, right and upper edge of a name, in points."""
    left = offset[0] - (0.0 if offset[0] > 1 else width if offset[0] < -1 else width / 2)
    return np.array(
        [
            place[0] + left,
            place[1] + offset[1] - _HIGH / 2,
            place[0] + left + width,
            place[1] + offset[1] + _HIGH / 2,
        ]
    )


def tradeoff_title(sweep: Sweep, spots: Sequence[Spot], x: str, y: str) -> str:
    """The lines above the picture."""
    best = [few(spot.names, 1) for spot in spots if spot.is_best]
    first, *rest = notes(sweep, y, x)
    definition = f"{x}: {QUANTITIES[x].definition}"
    return "\n".join(
        [f"{y} against {x}, {fixed(sweep, x)}; the front: {few(best)}", first, definition, *rest]
    )


def describe_tradeoff(sweep: Sweep, x: str, y: str) -> str:
    """The picture in sentences."""
    spots, of_x, of_y = spots_of(sweep, x, y), QUANTITIES[x].text, QUANTITIES[y].text
    said = {is_best: [s for s in spots if s.is_best is is_best] for is_best in (True, False)}
    parts = [
        f"{few(s.names, 9)}: {x} {of_x(s.x)}, {y} {of_y(s.y)}{', on the front' if s.is_best else ''}."
        for s in [*said[True], *said[False]][:24]
    ]
    return " ".join([f"{y} against {x}, {fixed(sweep, x)}. {terms(sweep, y, x)}.", *parts])
