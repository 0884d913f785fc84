"""Several timelines as a matplotlib figure: what a saved notebook keeps of a CompareView."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipelab.core.trace import Trace
from pipelab.plots.figure import BOTTOM, READABLE, RIGHT, TITLE_LINE, WIDTH, left_inches, row_inches
from pipelab.plots.scene import rows_of
from pipelab.plots.timeline import plot_timelines
from pipelab.widgets.timeline_still import still_timeline


def still_timelines(traces: Sequence[Trace]) -> Figure:
    """Draw timelines into a figure of their own, which pyplot knows nothing of.

    Args:
        traces: of any clocks, from the top.
    """
    if len(traces) == 1:
        return still_timeline(traces[0])
    labels = [label for trace in traces for label in rows_of(trace)[1]]
    height, left = row_inches(len(labels) + len(traces), READABLE), left_inches(labels)
    total = BOTTOM + height + 0.12 + 2 * TITLE_LINE
    figure = Figure(figsize=(WIDTH, total))
    box = (left / WIDTH, BOTTOM / total, 1 - (left + RIGHT) / WIDTH, height / total)
    plot_timelines(traces, ax=figure.add_axes(box))
    return figure
