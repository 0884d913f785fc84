"""The critical path drawn into a timeline: a line through the actions that make the step as long as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from pipelab.core.quantities import as_seconds
from pipelab.core.trace import Trace
from pipelab.plots.artists import points_per_row
from pipelab.plots.palette import INK, PATH
from pipelab.plots.scene import HALF, Scene, rows_of
from pipelab.plots.wording import counted

if TYPE_CHECKING:
    from pipelab.core.critical_path import CriticalPath

_ABOVE = HALF + 0.03  # the upper edge of a box: numbers stay readable, also where two share a row
_WIDEST = 2.0  # points
_OF_ROW = 0.1  # the line's width where rows are low: a path of many ranks covers no row
_EDGE = 1.7  # how much wider the dark edge is
_MOST_TOLD = 40


def add_path(axes: Axes, trace: Trace, path: CriticalPath, shown: Scene) -> Line2D:
    """Draw the path over the boxes of a scene that shows this trace alone.

    Returns:
        The line, which names itself in a legend.
    """
    corners = path_points(trace, path, shown)
    width = min(_WIDEST, _OF_ROW * points_per_row(axes))
    (line,) = axes.plot(
        corners[:, 0],
        corners[:, 1],
        color=PATH,
        linewidth=width,
        solid_joinstyle="round",
        solid_capstyle="butt",
        label="critical path",
        zorder=5,
        path_effects=[Stroke(linewidth=_EDGE * width, foreground=INK), Normal()],
    )
    return line


def path_points(trace: Trace, path: CriticalPath, shown: Scene) -> NDArray[np.float64]:
    """Shape (2n, 2): start and end of each action on the path, x in seconds, y in rows of the picture."""
    row, _ = rows_of(trace)
    y = shown.row_y[row[path.rows]] - _ABOVE
    first = float(trace.start.min())
    corners = np.empty((2 * len(path.rows), 2))
    corners[::2, 0], corners[1::2, 0] = path.start - first, path.end - first
    corners[::2, 1] = corners[1::2, 1] = y
    return corners


def path_sentence(path: CriticalPath) -> str:
    """What stands in the title: of what the makespan consists along the path."""
    took, waited = float((path.end - path.start).sum()), float(path.wait.sum())
    parts = f"critical path: {counted(len(path), 'action')}, {as_seconds(took)}"
    return f"{parts}, and {as_seconds(waited)} between them" if waited > 1e-12 * took else parts


def describe_path(path: CriticalPath) -> str:
    """The path in a sentence, for those who do not see it."""
    actions = list(path.actions)
    if len(actions) > _MOST_TOLD:
        half = _MOST_TOLD // 2
        actions = [*actions[:half], f"({len(actions) - _MOST_TOLD} more)", *actions[-half:]]
    said = path_sentence(path)
    return f"{said[0].upper()}{said[1:]}: {', '.join(actions)}."
