"""The difference between a measured step and the predicted one as a staircase: one stair for each cause."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipelab.core.actions import CODES, Kind
from pipelab.core.gap import OUTSIDE, SPREAD, START, WAITING, Gap, GapPart
from pipelab.core.quantities import as_percent, as_seconds
from pipelab.plots.artists import SMALL_POINTS, plain_axes, set_headline, show_rows, show_seconds
from pipelab.plots.figure import give_words, new_axes
from pipelab.plots.palette import BUSY, HATCH, IDLE, INK, OTHER, PAINT_OF_CODE, PAINTS
from pipelab.plots.wording import literal

_HALF = 0.34  # of a row: a bar's half height
_TEXT_INCHES = 4.1  # what was found stands right of the stairs
_LEAST = 0.02  # of the makespan: a gap of nothing still has an axis
_ROOM = 0.08  # of the stairs' extent, on both sides


def plot_gap(gap: Gap, *, ax: Axes | None = None) -> Axes:
    """Draw how the predicted makespan becomes the measured one, cause by cause.

    Each bar begins where the one above it ended, and is as long as its share. The time axis does not begin at 0: it
    shows the difference, not the step. A grey band is where the prediction says that it may lie.

    Args:
        gap: from `explain_gap`.
        ax: where to draw; a new figure when left out.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
        >>> predicted, measured = (pp.simulate(one, pp.Costs.uniform(2, latency=x)) for x in (0.0, 0.25))
        >>> print(pp.plot_gap(pp.explain_gap(predicted, measured)).get_title().splitlines()[0])
        1f1b: 16 s (simulated clock) against 15 s predicted: +6.7 %
    """
    labels = ["predicted", *(part.cause for part in gap.parts), "measured"]
    title = _title(gap)
    if ax is None:
        ax = new_axes(len(labels), labels, title_lines=len(title), right=_TEXT_INCHES)
        give_words(ax, describe_gap(gap))
    ends = _ends(gap)
    low, high = _extent(gap, ends)
    ax.set_xlim(low, high)
    ax.set_ylim(len(labels) + 0.5, 0.5)
    plain_axes(ax)
    if gap.band is not None:
        ax.axvspan(*gap.band, color="#EEEEEE", linewidth=0, zorder=0)
    _draw_stairs(ax, gap, ends)
    rows = np.arange(1, len(labels) + 1)
    show_rows(ax, rows, labels)
    show_seconds(ax, high)
    ax.set_xlabel(f"{ax.get_xlabel()}, not from 0", loc="left")
    found = [as_seconds(gap.predicted), *map(_found, gap.parts), as_seconds(gap.measured)]
    for row, text in zip(rows.tolist(), found, strict=True):
        place = ax.get_yaxis_transform()
        ax.text(1.02, row, literal(text, 70), transform=place, va="center", fontsize=SMALL_POINTS, color=INK)
    set_headline(ax, "\n".join(title))
    return ax


def describe_gap(gap: Gap) -> str:
    """The picture of `plot_gap` in sentences."""
    parts = [
        f"{part.cause}: {as_seconds(part.seconds)} ({as_percent(part.seconds / gap.predicted)}), {part.detail}."
        if gap.predicted
        else f"{part.cause}: {as_seconds(part.seconds)}, {part.detail}."
        for part in gap.parts
    ]
    return " ".join([f"From predicted to measured. {gap.headline}.", *parts, *(f"{r}." for r in gap.remarks)])


def _title(gap: Gap) -> list[str]:
    clocks = f"predicted on the {gap.clocks[0]} clock, measured on the {gap.clocks[1]} clock"
    band = gap.remarks[:1] if gap.band is not None else ()
    return [literal(gap.headline, 100), *(literal(line, 110) for line in (clocks, *band))]


def _ends(gap: Gap) -> NDArray[np.float64]:
    """Shape (causes + 1,): the makespan before the first cause and after each."""
    steps = [gap.predicted, *(part.seconds for part in gap.parts)]
    ends: NDArray[np.float64] = np.cumsum(steps)
    return ends


def _extent(gap: Gap, ends: NDArray[np.float64]) -> tuple[float, float]:
    shown = np.append(ends, gap.band or ())
    low, high = float(shown.min()), float(shown.max())
    least = _LEAST * gap.predicted or 1.0
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    room = _ROOM * (high - low)
    return low - room, high + room


def _draw_stairs(ax: Axes, gap: Gap, ends: NDArray[np.float64]) -> None:
    for row, (part, begin, end) in enumerate(zip(gap.parts, ends[:-1], ends[1:], strict=True), start=2):
        ax.plot([begin, begin], [row - 1 + _HALF, row - _HALF], color=INK, linewidth=0.6, zorder=1)
        colour = _colour(part.cause)
        box = Rectangle(
            (min(begin, end), row - _HALF),
            abs(end - begin),
            2 * _HALF,
            facecolor=colour,
            edgecolor=HATCH if colour == IDLE else "white",
            hatch="////" if colour == IDLE else None,
            linewidth=0.5,
            zorder=2,
        )
        ax.add_patch(box)
        ax.plot([end, end], [row - _HALF, row + _HALF], color=INK, linewidth=1.0, zorder=3)
    last = len(gap.parts) + 2
    ax.plot([ends[-1]] * 2, [last - 1 + _HALF, last - _HALF], color=INK, linewidth=0.6, zorder=1)
    for row, end in ((1, ends[0]), (last, ends[-1])):
        ax.plot([end, end], [row - _HALF, row + _HALF], color=INK, linewidth=2.5, zorder=3)


def _colour(cause: str) -> str:
    """A kind's own colour; grey where kinds are not told apart; white, as idle time has, for waiting."""
    others = {SPREAD: BUSY, OUTSIDE: OTHER, START: IDLE, WAITING: IDLE}
    return others[cause] if cause in others else PAINTS[PAINT_OF_CODE[CODES[Kind(cause)]]]


def _found(part: GapPart) -> str:
    sign = "+" if part.seconds > 0 else "−" if part.seconds < 0 else ""
    return f"{sign}{as_seconds(abs(part.seconds))}: {part.detail}"
