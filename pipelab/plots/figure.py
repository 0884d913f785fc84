"""New figures, sized to what they show, with margins in inches so that no layout has to be computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 9.0
TALLEST = 9.0
PAGE = 22.0
READABLE = 0.2  # inches: a row whose boxes still have room for a number
ROW = 0.36  # inches
BOTTOM = 0.52
RIGHT = 0.25
TITLE_LINE = 0.21
MEMORY_TITLE = 0.36
MEMORY_RIGHT = 1.15  # the peaks stand there
MEASURED_RIGHT = 1.45  # two of them


def row_inches(rows: int, least: float = 0.0) -> float:
    """The height of so many rows; many ranks get lower rows rather than an endless figure.

    Args:
        rows: how many.
        least: what a row keeps, inches, until the figure is as long as a page.
    """
    return max(min(max(rows, 2) * ROW, TALLEST - 1.5), min(rows * least, PAGE))


def left_inches(labels: Sequence[str]) -> float:
    """The room that the longest label needs."""
    return 0.25 + 0.075 * max([6, *map(len, labels)])


def new_axes(
    rows: int,
    labels: Sequence[str],
    title_lines: int,
    memory_rows: int = 0,
    right: float = RIGHT,
    least: float = 0.0,
    of_pyplot: bool = True,
) -> Axes:
    """Axes for so many rows in a new figure.

    Args:
        rows, labels, title_lines, memory_rows, right, least: what there has to be room for; lengths in inches.
        of_pyplot: the figure is one of pyplot's, so that a notebook shows and closes it as any other.
    """
    height = row_inches(rows, least) + memory_inches(memory_rows)
    total = BOTTOM + height + 0.12 + TITLE_LINE * title_lines
    left, right = left_inches(labels), max(right, MEMORY_RIGHT if memory_rows else 0.0)
    figure = _new_figure((WIDTH, total), of_pyplot)
    return figure.add_axes((left / WIDTH, BOTTOM / total, 1 - (left + right) / WIDTH, height / total))


def own_figure(axes: Axes) -> Figure:
    """The figure of new axes."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def _new_figure(inches: tuple[float, float], of_pyplot: bool) -> Figure:
    if not of_pyplot:
        return Figure(figsize=inches)
    import matplotlib.pyplot as plt

    return plt.figure(figsize=inches)


def memory_inches(rows: int) -> float:
    """What the memory of so many ranks takes below a timeline, its own title included."""
    return MEMORY_TITLE + row_inches(rows) if rows else 0.0


def split_for_memory(axes: Axes, rows: int, ranks: int) -> Axes:
    """Give the lower part of some axes to new ones on the same time axis."""
    upper, lower = row_inches(rows), memory_inches(ranks)
    box = axes.get_position()
    per_inch = box.height / (upper + lower)
    axes.set_position((box.x0, box.y0 + lower * per_inch, box.width, upper * per_inch))
    figure = axes.figure
    assert figure is not None
    below = (box.x0, box.y0, box.width, (lower - MEMORY_TITLE) * per_inch)
    return figure.add_axes(below, sharex=axes)


def give_words(axes: Axes, text: str) -> None:
    """Let a notebook know the alternative text of a figure of ours; it goes where the picture goes, also to HTML."""
    figure = axes.figure
    assert figure is not None
    figure._repr_mimebundle_ = partial(_alternative_text, text)  # type: ignore[union-attr]


def _alternative_text(text: str, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """No picture (the notebook's own formatters make that) but what is to be said beside it."""
    return {}, {kind: {"alt": text} for kind in ("image/png", "image/svg+xml")}
