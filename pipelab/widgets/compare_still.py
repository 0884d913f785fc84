"""Several timelines as a matplotlib figure: what a saved notebook keeps of a CompareView."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipelab.core.trace import Trace
from pipelab.plots.figure import READABLE, new_axes, own_figure
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
    axes = new_axes(len(labels) + len(traces), labels, title_lines=2, least=READABLE, of_pyplot=False)
    plot_timelines(traces, ax=axes)
    return own_figure(axes)
