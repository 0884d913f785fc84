"""The timeline view as a matplotlib figure: what a saved notebook keeps of it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from pipelab.core.quantities import as_seconds
from pipelab.core.trace import Trace
from pipelab.plots.artists import set_headline
from pipelab.plots.critical_path import path_sentence
from pipelab.plots.figure import new_axes, own_figure
from pipelab.plots.headline import headline
from pipelab.plots.memory import FULL
from pipelab.plots.palette import INK
from pipelab.plots.scene import HALF, rows_of
from pipelab.plots.timeline import plot_timeline
from pipelab.plots.wording import literal
from pipelab.widgets.timeline_columns import overruns

_TALLER = 0.07  # of a row: an outline stands out around the box that lies in it


def still_timeline(
    trace: Trace,
    *,
    predicted: Trace | None = None,
    memory: bool = False,
    critical_path: bool = False,
    memory_limit: float | None = None,
    title: str = "",
    remark: str = "",
    moment: float = -1.0,
) -> Figure:
    """Draw a timeline into a figure of its own, which pyplot knows nothing of.

    Args:
        trace: of any clock.
        predicted: of the same schedule, as outlines.
        memory, critical_path: as for `plot_timeline`.
        memory_limit: bytes; a line in each strip of the memory.
        title: in place of the headline.
        remark: a sentence for below the headline.
        moment: seconds: a line there; negative for none.
    """
    lines = [literal(title, 110)] if title else headline(trace, trace.report(), remark, predicted).split("\n")
    if critical_path:
        lines.append(path_sentence(trace.critical_path()))
    if predicted is not None:
        lines.append(f"outlines: predicted, {as_seconds(predicted.makespan)}")
    over = overruns(trace, trace.memory(), memory_limit) if memory_limit is not None else []
    lines += [one.words for one in over[:1]]
    _, labels = rows_of(trace)
    axes = new_axes(len(labels), labels, len(lines), memory_rows=memory * trace.num_ranks, of_pyplot=False)
    plot_timeline(trace, ax=axes, memory=memory, critical_path=critical_path)
    set_headline(axes, "\n".join(lines))
    if predicted is not None:
        _add_outlines(axes, trace, predicted)
    if moment >= 0:
        axes.axvline(moment, color=INK, linewidth=1.2, zorder=6)
    figure = own_figure(axes)
    if memory and memory_limit is not None:
        _add_limit(figure.axes[-1], trace, memory_limit)
    return figure


def _add_outlines(axes: Axes, trace: Trace, predicted: Trace) -> None:
    row, _ = rows_of(trace)
    cells = trace.schedule.table.num_cells
    y, half = row[:cells].astype(float), HALF + _TALLER
    corners = np.empty((cells, 4, 2))
    corners[:, :2, 0], corners[:, 2:, 0] = predicted.start[:cells, None], predicted.end[:cells, None]
    corners[:, (0, 3), 1], corners[:, (1, 2), 1] = (y - half)[:, None], (y + half)[:, None]
    outlines = PolyCollection(corners, facecolors="none", edgecolors=INK, linewidths=0.8, zorder=1.5)  # type: ignore[arg-type]
    axes.add_collection(outlines, autolim=False)
    axes.set_xlim(0.0, max(axes.get_xlim()[1], predicted.makespan))


def _add_limit(axes: Axes, trace: Trace, limit: float) -> None:
    """A line across each strip; a limit above everything that is held has no place in them."""
    most = max(curve.peak for curve in trace.memory()) or 1.0
    if limit > most / FULL:
        return
    for rank in range(trace.num_ranks):
        axes.axhline(rank + 1.5 - FULL * limit / most, color=INK, linewidth=0.8, linestyle="--", zorder=4)
