"""Pictures of what every rank does when: one timeline, or several on one time axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.plots.artists import TimelineArtists, add_legend, legend_patches, set_headline
from pipelab.plots.critical_path import add_path, describe_path, path_sentence
from pipelab.plots.figure import READABLE, give_words, new_axes, split_for_memory
from pipelab.plots.headline import comparison_headline, describe_timeline, headline, row_header
from pipelab.plots.memory import MemoryArtists, describe_memory
from pipelab.plots.scene import Scene, scene

if TYPE_CHECKING:
    from pipelab.core.report import Report


def plot_timeline(
    trace: Trace, *, ax: Axes | None = None, memory: bool = False, critical_path: bool = False
) -> Axes:
    """Draw a trace: one row per rank, one box per action, the micro-batch's number in the box where it fits.

    With more actions than pixels, each pixel is the average of what happened in it, so that no action is dropped.
    The time axis is in seconds whatever unit its labels use: `ax.axvline(trace.makespan)` marks the end.

    Args:
        trace: of any clock.
        ax: where to draw; a new figure sized to the ranks when left out.
        memory: also draw, below and on the same time axis, what each rank keeps (see `plot_memory`).
        critical_path: also draw a line through the actions that make the step as long as it is (see
            `trace.critical_path()`): no other can be made faster with any effect on the makespan.

    Returns:
        The axes of the timeline.

    Example:
        >>> import pipelab as pp
        >>> schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> ax = pp.plot_timeline(pp.simulate(schedule, pp.Costs.uniform(4)))
        >>> print(ax.get_title())
        1f1b (4 ranks, 8 micro-batches): 33 s, bubble_fraction 27.3 %
        simulated clock · bubble_fraction = idle / (ranks × makespan)
    """
    check_trace(trace)
    shown = scene([trace])
    path = trace.critical_path() if critical_path else None
    title = headline(trace, trace.report())
    title = title if path is None else f"{title}\n{path_sentence(path)}"
    is_ours = ax is None
    if ax is None:
        ax = new_axes(
            len(shown.row_y), shown.row_labels, title.count("\n") + 1, memory_rows=memory * trace.num_ranks
        )
    below = split_for_memory(ax, len(shown.row_y), trace.num_ranks) if memory else None
    artists = TimelineArtists(ax)
    artists.show(shown)
    patches = legend_patches(*artists.named)
    if path is not None:
        patches.append(add_path(ax, trace, path, shown))
    set_headline(ax, title)
    if below is not None:
        curves, kept = trace.memory(), MemoryArtists(below)
        kept.show(curves, shown.stop)
        kept.show_title(curves, trace.clock)
        ax.set_xlabel("")
        ax.tick_params(axis="x", labelbottom=False)
    add_legend(ax if below is None else below, patches)
    if is_ours:
        words = [describe_timeline(trace), *([describe_memory(trace)] if memory else [])]
        give_words(ax, " ".join([*words, *([describe_path(path)] if path is not None else [])]))
    return ax


def plot_timelines(traces: Iterable[Trace], *, ax: Axes | None = None) -> Axes:
    """Draw several traces below one another on one shared time axis: predicted over measured, or five schedules.

    Args:
        traces: drawn from the top, each from time 0.
        ax: where to draw; a new figure sized to the rows when left out.

    Returns:
        The axes. Above the rows of each trace stand its label, makespan, bubble and clock.

    Example:
        >>> import pipelab as pp
        >>> runs = [pp.simulate(pp.schedule(name, num_ranks=4, num_microbatches=8), pp.Costs.uniform(4, latency=0.5))
        ...         for name in ("gpipe", "1f1b")]
        >>> print(pp.plot_timelines(runs).get_title().splitlines()[0])
        2 timelines on one time axis; shortest: gpipe, 36 s, bubble_fraction 33.3 %
    """
    traces = list(traces) if isinstance(traces, Iterable) else [traces]
    if not traces:
        raise PipelabError(
            "plot_timelines got no traces. Give it at least one, such as [predicted, step.trace]."
        )
    for trace in traces:
        check_trace(trace)
    if len(traces) == 1:
        return plot_timeline(traces[0], ax=ax)
    shown = scene(traces)
    is_ours = ax is None
    if ax is None:
        ax = new_axes(len(shown.row_y) + len(traces), shown.row_labels, title_lines=2, least=READABLE)
    reports = [trace.report() for trace in traces]
    artists = TimelineArtists(ax)
    show_timelines(artists, shown, traces, reports)
    set_headline(ax, title_of(traces, reports))
    add_legend(ax, legend_patches(*artists.named))
    if is_ours:
        give_words(ax, " ".join(describe_timeline(trace) for trace in traces))
    return ax


def show_timelines(
    artists: TimelineArtists,
    shown: Scene,
    traces: Sequence[Trace],
    reports: Sequence[Report],
    remarks: Sequence[str] = (),
) -> None:
    """Show traces on artists that may have shown others before; several get a header each, with its remark."""
    remarks = _one_each(remarks, traces)
    headers = (
        [row_header(*each) for each in zip(traces, reports, remarks, strict=True)] if len(traces) > 1 else ()
    )
    artists.show(shown, headers)


def title_of(
    traces: Sequence[Trace], reports: Sequence[Report], remarks: Sequence[str] = (), same_plan: bool = True
) -> str:
    """The title above one timeline or several.

    Args:
        remarks: a sentence for each trace, or "".
        same_plan: whether they are of one plan, so that a measured makespan may be compared with a predicted one.
    """
    if len(traces) == 1:
        return headline(traces[0], reports[0], _one_each(remarks, traces)[0])
    return comparison_headline(traces, reports, same_plan)


def _one_each(remarks: Sequence[str], traces: Sequence[Trace]) -> list[str]:
    return [*remarks, *[""] * (len(traces) - len(remarks))]


def check_trace(trace: object) -> None:
    """Refuse what is no trace, with a TypeError that says where one is to be had."""
    if not isinstance(trace, Trace):
        raise TypeError(
            f"A timeline is drawn from a Trace, not from {type(trace).__name__}. A step has one, step.trace; "
            f"a schedule is simulated first: pp.simulate(schedule, costs)."
        )
