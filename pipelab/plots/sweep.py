"""Pictures of a sweep: a number against a size, one line a schedule; by schedule, one bar each; or against another."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pipelab.core.sweep import QUANTITIES, SIZES, Sweep
from pipelab.errors import PipelabError, one_of
from pipelab.plots.artists import SMALL_POINTS, points_high, set_headline
from pipelab.plots.figure import TITLE_LINE, WIDTH, give_words, left_inches, row_inches
from pipelab.plots.palette import BUSY, HATCH, IDLE, INK, LINES, MARKERS, MEMORY, STROKES
from pipelab.plots.series import Series, named_points, series_of, size_text
from pipelab.plots.sweep_axes import SHARES, few, fixed, notes, quantity_axis, size_axis, terms
from pipelab.plots.tradeoff import describe_tradeoff, draw_tradeoff, spots_of, tradeoff_title
from pipelab.plots.wording import counted

_BY_SCHEDULE = "schedule"
_MOST_BARS = 60
_LABEL_POINTS = 11.5  # from one label of a line to the next
_TITLE_LETTER = 0.0735  # inches
_BOTTOM, _LEFT, _ABOVE = 0.55, 0.75, 0.12  # inches


def plot_sweep(
    sweep: Sweep, *, y: str = "bubble_fraction", x: str = "num_microbatches", ax: Axes | None = None
) -> Axes:
    """Draw one number of a sweep: against a size, by schedule, or against another number.

    Against a size every schedule is a line, by schedule every point is a bar, and against another number every point
    is a spot: the front are those that no other beats in both.

    Schedules that do not differ in any point share a line and its label, so that none hides another. Sizes that a
    schedule refused are gaps, and the title names them.

    Args:
        sweep: what `sweep` returned, or a part of it (`sweep.where(...)`).
        y: what is drawn: `makespan`, `bubble_fraction`, `bubble_ratio`, `span_bubble`, `peak_activations`,
            `peak_in_flight` or `peak_bytes`.
        x: what it is drawn against: `num_microbatches`, `num_ranks`, `stages_per_rank`, `latency`; `schedule` for
            bars, the least on top; or any of the numbers that `y` takes.
        ax: where to draw; a new figure when left out.

    Returns:
        The axes. Times are in seconds whatever unit the labels use.

    Example:
        >>> import pipelab as pp
        >>> found = pp.sweep(schedules=["gpipe", "1f1b"], num_ranks=4, num_microbatches=[4, 8, 16])
        >>> print(pp.plot_sweep(found).get_title().splitlines()[0])
        bubble_fraction, p = 4; least at m = 16: gpipe, 1f1b, 15.8 %

    Raises:
        PipelabError: a quantity or size that is not there, or more bars than can be read.
        TypeError: something else than a sweep.
    """
    if not isinstance(sweep, Sweep):
        raise TypeError(f"plot_sweep draws what sweep() returns, not {type(sweep).__name__}.")
    one_of("y", y, QUANTITIES)
    one_of("x", x, (*SIZES, _BY_SCHEDULE, *QUANTITIES))
    for name in (y, x):
        if name in QUANTITIES:
            _check_drawable(sweep, name)
    if x in QUANTITIES:
        return _plot_tradeoff(sweep, x, y, ax)
    return _plot_bars(sweep, y, ax) if x == _BY_SCHEDULE else _plot_lines(sweep, x, y, ax)


def _check_drawable(sweep: Sweep, name: str) -> None:
    values = [point.value(name) for point in sweep]
    if np.isfinite(values).any():
        return
    if np.isinf(values).any():
        raise PipelabError(
            f"{name} is infinite at every point: no rank computes anything. Nothing can be drawn."
        )
    raise PipelabError(f"No point of this sweep has a {name}. For bytes give costs with bytes, or a profile.")


def describe_sweep(sweep: Sweep, *, y: str = "bubble_fraction", x: str = "num_microbatches") -> str:
    """The picture of `plot_sweep` in sentences."""
    if x in QUANTITIES:
        return describe_tradeoff(sweep, x, y)
    text = QUANTITIES[y].text
    if x == _BY_SCHEDULE:
        points = sorted(named_points(sweep, y), key=lambda pair: pair[1].value(y))[:24]
        parts = [f"{name}: {text(point.value(y))}." for name, point in points]
        return " ".join([f"Bars of {y} by schedule, {fixed(sweep, x)}. {terms(sweep, y)}.", *parts])
    lines = series_of(sweep, x, y)
    parts = [f"{line.label(9)}: {_walk(line, x, y)}." for line in lines[:24]]
    return " ".join(
        [f"{y} against {x}, {counted(len(lines), 'line')}, {fixed(sweep, x)}. {terms(sweep, y)}.", *parts]
    )


# --- lines --------------------------------------------------------------------------------------------------


def _plot_lines(sweep: Sweep, x: str, y: str, ax: Axes | None) -> Axes:
    lines = series_of(sweep, x, y)
    if not lines:
        raise PipelabError(
            f"No point of this sweep has one {x} to be drawn at. Draw it by schedule: x='schedule'."
        )
    title = _line_title(sweep, lines, x, y)
    is_ours = ax is None
    if ax is None:
        right = 0.5 + 0.072 * max(len(line.label()) for line in lines)
        ax = _new_axes(max(2.9, len(lines) * _LABEL_POINTS / 72), right, title)
        give_words(ax, describe_sweep(sweep, x=x, y=y))
    for line in lines:
        ax.plot(
            line.x,
            line.y,
            color=LINES[line.number % len(LINES)],
            marker=MARKERS[line.number % len(MARKERS)],
            linestyle=STROKES[line.number // len(LINES) % len(STROKES)],
            markersize=5,
            linewidth=1.6,
            label=line.label(),
        )
    size_axis(ax, x, np.unique(np.concatenate([line.x for line in lines])))
    quantity_axis(ax, y, max(float(line.y.max()) for line in lines))
    set_headline(ax, title)
    if is_ours:
        _name_lines(ax, lines)
    else:
        ax.legend(frameon=False, fontsize=SMALL_POINTS)
    return ax


def _new_axes(height: float, right: float, title: str) -> Axes:
    import matplotlib.pyplot as plt

    total = _BOTTOM + height + _ABOVE + TITLE_LINE * (title.count("\n") + 1)
    figure = plt.figure(figsize=(WIDTH, total))
    wide = max(0.35, 1 - (_LEFT + right) / WIDTH)
    return figure.add_axes((_LEFT / WIDTH, _BOTTOM / total, wide, height / total))


def _name_lines(ax: Axes, lines: Sequence[Series]) -> None:
    """The name of each line at its right end, moved apart where lines end close together."""
    height = points_high(ax)
    low, high = ax.get_ylim()
    ends = np.array([(line.y[-1] - low) / (high - low) * height for line in lines])
    places = _apart(ends, _LABEL_POINTS, height)
    for line, place in zip(lines, places, strict=True):
        ax.annotate(
            line.label(),
            (line.x[-1], line.y[-1]),
            xytext=(1.035, place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL_POINTS,
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),
                "color": LINES[line.number % len(LINES)],
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _apart(wishes: np.ndarray, gap: float, height: float) -> np.ndarray:
    """Places as near to the wishes as can be, in their order and at least a gap apart, within the height.

    Neighbours that are too close are merged into blocks, each centred on the mean of its wishes.
    """
    blocks: list[tuple[float, list[int]]] = []  # the lowest place of a block, and who stands in it
    for index in np.argsort(wishes, kind="stable").tolist():
        members = [index]
        while True:
            centre = float(np.mean(wishes[members])) - gap * (len(members) - 1) / 2
            lowest = max(gap / 2, min(centre, height - gap * (len(members) - 0.5)))
            if not blocks or blocks[-1][0] + gap * len(blocks[-1][1]) <= lowest:
                break
            members = blocks.pop()[1] + members
        blocks.append((lowest, members))
    places = np.empty(len(wishes))
    for lowest, members in blocks:
        places[members] = lowest + gap * np.arange(len(members))
    return places


def _plot_tradeoff(sweep: Sweep, x: str, y: str, ax: Axes | None) -> Axes:
    spots = spots_of(sweep, x, y)
    title = tradeoff_title(sweep, spots, x, y)
    if ax is None:
        ax = _new_axes(3.6, 0.3, title)
        give_words(ax, describe_tradeoff(sweep, x, y))
    draw_tradeoff(ax, spots, x, y)
    set_headline(ax, title)
    return ax


# --- bars ---------------------------------------------------------------------------------------------------


def _plot_bars(sweep: Sweep, y: str, ax: Axes | None) -> Axes:
    points = sorted(named_points(sweep, y), key=lambda pair: pair[1].value(y))
    if len(points) > _MOST_BARS:
        raise PipelabError(
            f"{len(points)} bars are more than can be read ({_MOST_BARS}). Draw a part: "
            f"sweep.where(num_microbatches=..., schedule=...), or lines: x='num_microbatches'."
        )
    names, values = [name for name, _ in points], np.array([point.value(y) for _, point in points])
    title = _bar_title(sweep, names, values, y)
    if ax is None:
        ax = _bar_axes(names, title)
        give_words(ax, describe_sweep(sweep, x=_BY_SCHEDULE, y=y))
    rows = np.arange(len(values))
    if y == "makespan":
        busy = values * [1 - point.value("bubble_fraction") for _, point in points]
        ax.barh(rows, busy, color=BUSY, height=0.72, label="busy, mean of the ranks")
        ax.barh(rows, values - busy, left=busy, **_HATCHED, label="idle, mean of the ranks")
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.32 * 72 / points_high(ax)), ncols=2, **_LEGEND)
    elif y in SHARES:
        ax.barh(rows, values, **_HATCHED)
    else:
        ax.barh(rows, values, color=MEMORY, height=0.72)
    quantity_axis(ax, y, float(values.max()), along="x")
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_yticks(rows, names)
    ax.tick_params(axis="y", length=0)
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        ax.annotate(
            QUANTITIES[y].text(value),
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_POINTS,
            color=INK,
        )
    set_headline(ax, title)
    return ax


_HATCHED: dict[str, Any] = {
    "color": IDLE,
    "edgecolor": HATCH,
    "hatch": "////",
    "linewidth": 0.6,
    "height": 0.72,
}
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": SMALL_POINTS,
    "borderaxespad": 0.0,
    "handlelength": 1.2,
}


def _bar_axes(names: Sequence[str], title: str) -> Axes:
    import matplotlib.pyplot as plt

    height, left = 0.66 * row_inches(len(names) + 1), left_inches(names)
    total = _BOTTOM + height + _ABOVE + TITLE_LINE * (title.count("\n") + 1)
    figure = plt.figure(figsize=(WIDTH, total))
    return figure.add_axes((left / WIDTH, _BOTTOM / total, 1 - (left + 0.8) / WIDTH, height / total))


# --- words --------------------------------------------------------------------------------------------------


def _line_title(sweep: Sweep, lines: Sequence[Series], x: str, y: str) -> str:
    least = min(float(line.y.min()) for line in lines)
    where = [line.x[np.isclose(line.y, least, rtol=1e-9)].tolist() for line in lines]
    at = max(size for found in where for size in found)
    names = [name for line, found in zip(lines, where, strict=True) if at in found for name in line.names]
    winner = f"least at {size_text(x, at)}: {few(names)}, {QUANTITIES[y].text(least)}"
    return "\n".join([f"{y}, {fixed(sweep, x)}; {winner}", *notes(sweep, y)])


def _bar_title(sweep: Sweep, names: Sequence[str], values: np.ndarray, y: str) -> str:
    best = [
        name for name, value in zip(names, values, strict=True) if np.isclose(value, values[0], rtol=1e-9)
    ]
    winner = f"least: {few(best)}, {QUANTITIES[y].text(float(values[0]))}"
    lines = [f"{y} by schedule, {fixed(sweep, _BY_SCHEDULE)}; {winner}", *notes(sweep, y)]
    letters = int((WIDTH - left_inches(names)) / _TITLE_LETTER)  # it begins where the bars begin
    return "\n".join(part for line in lines for part in wrap(line, letters))


def _walk(line: Series, x: str, y: str) -> str:
    text = QUANTITIES[y].text
    shown = range(len(line.x)) if len(line.x) <= 6 else (0, len(line.x) // 2, len(line.x) - 1)
    return ", ".join(f"{text(float(line.y[k]))} at {size_text(x, float(line.x[k]))}" for k in shown)
