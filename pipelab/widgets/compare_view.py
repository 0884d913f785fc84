"""Several runs side by side: a small timeline each, all on one time axis, and a table of their differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as T

from pipelab.core.comparison import Comparison, compare
from pipelab.core.differences import measures
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.plots.headline import describe_timeline
from pipelab.plots.scene import rows_of
from pipelab.widgets.closing import close_with_parts
from pipelab.widgets.compare_still import still_timelines
from pipelab.widgets.compare_table import CompareTable
from pipelab.widgets.markup import error_text
from pipelab.widgets.shown import Shown
from pipelab.widgets.timeline_view import TimelineView
from pipelab.widgets.traits import SPAN, Explains, as_span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8
"""The most runs that are told apart side by side."""

_PAGE = 560  # pixels that all timelines take together, so that they and the table are seen at once
_HEADER = 24  # pixels that the title of each takes above it
_LEAST = 60
_AROUND, _ROW = 42, 28  # pixels around the rows of a timeline, and of a row: those of layoutOf in geometry.js

Traces = Iterable[Trace] | Mapping[str, Trace]


class CompareView(Explains, Shown, W.VBox):
    """Up to eight traces on one time axis, and in numbers: which is shorter, which holds less, and by how much.

    Zooming or panning one of the timelines moves them all.

    Attributes:
        traces: what is shown, from the top, as a tuple; set it to other traces, or to a mapping that names them. The
            first is what the others are compared with; of several clocks, the first of each.
        span: the part of the time axis that is shown, begin and end in seconds; (0, 0) for all.
        comparison: the reports of all, as `pp.compare` gives them.
        message: the last refusal, "" when all is well.

    Args:
        traces: 1 to 8 of them, of any clocks; a mapping names each by its key.

    Raises:
        TypeError: something that is no trace.
        PipelabError: no trace, or more than eight.

    Example:
        >>> import pipelab as pp
        >>> costs = pp.Costs.uniform(4, latency=0.5)
        >>> runs = {name: pp.simulate(pp.schedule(name, num_ranks=4, num_microbatches=8), costs)
        ...         for name in ("gpipe", "1f1b")}
        >>> view = pp.CompareView(runs)
        >>> [round(difference, 3) for difference in view.differences["makespan"]]
        [0.0, 0.139]
        >>> view.remove("gpipe")
        >>> [trace.label for trace in view.traces]
        ['1f1b']
        >>> view.close()
    """

    traces = T.Any()
    span = T.Tuple(T.Float(), T.Float(), default_value=(0.0, 0.0)).tag(wants=SPAN)
    message = T.Unicode("", read_only=True)

    _is_moving = True  # until all parts are there

    def __init__(self, traces: Traces) -> None:
        shown = named(traces)
        self._timelines: list[TimelineView] = []
        self._links: list[W.Widget] = []
        self._stack = W.VBox()  # of its own, or the table would lose the focus with every timeline that goes
        self._table = CompareTable(self._wished_away)
        super().__init__([self._stack, self._table])
        self.add_class("pipelab")
        self._adopt(shown)

    def add(self, trace: Trace, name: str | None = None) -> None:
        """Show one more, below the others.

        Args:
            trace: of any clock.
            name: what to call it; its label when left out.

        Raises:
            TypeError: something else than a trace.
            PipelabError: there are eight already.
        """
        with self._explained():
            compare([trace])  # refuses what is no trace
            self._adopt(named([*self.traces, trace if name is None else trace.with_label(str(name))]))

    def remove(self, which: int | str) -> None:
        """Show one less.

        Args:
            which: its number from the top, from 0, or its label.

        Raises:
            PipelabError: there is no such trace, or it is the only one.
        """
        with self._explained():
            number = self._number_of(which)
            if len(self.traces) == 1:
                raise PipelabError(
                    "A CompareView shows at least one trace. Add another one before removing this."
                )
            self._adopt(self.traces[:number] + self.traces[number + 1 :])

    @property
    def comparison(self) -> Comparison:
        """The reports of all."""
        return self._comparison

    @property
    def differences(self) -> dict[str, tuple[float | None, ...]]:
        """For each number the differences of all to the first, where clocks differ to the first of the same clock.

        0.1 is a tenth more; of the bubble_fraction, which is a part of a whole, ten points more. None where it is not
        known.
        """
        return {measure.name: measure.changes for measure in measures(self._comparison)}

    @property
    def text(self) -> str:
        """All timelines in words, and the differences to the first, where clocks differ to that of the same clock."""
        found = measures(self._comparison)
        clocks = [trace.clock for trace in self.traces]
        first = "the first" if len(set(clocks)) == 1 else "the first of this clock"
        words = []
        for k, (trace, report) in enumerate(zip(self.traces, self._comparison.reports, strict=True)):
            words.append(describe_timeline(trace, report, most_ranks=2))
            told = [f"{one.name} {one.change_texts[k]}" for one in found if one.change_texts[k]]
            if told:
                words.append(f"Against {first}: {', '.join(told)}.")
        return " ".join(words)

    def static_figure(self) -> Figure:
        """The timelines below one another on one time axis."""
        return still_timelines(self.traces)

    def close(self) -> None:
        """Drop all parts; `traces` and `comparison` stay readable."""
        if self.comm is not None:
            self._unlink()
        super().close()

    # -- changes ------------------------------------------------------------------------------------------------

    def _adopt(self, traces: tuple[Trace, ...]) -> None:
        """Show other traces. Timelines are kept and reused: the first of them is who hides the static picture."""
        comparison = compare(traces)
        stop = max(report.makespan for report in comparison.reports)
        height = height_of_each(traces)
        self._is_moving = True
        try:
            if self.span[1] > stop:
                self.span = (0.0, 0.0)
            self._place(traces, stop, height)
            self.traces, self._comparison = traces, comparison
        finally:
            self._is_moving = False
        self._table.show(traces, comparison)
        self._say("")

    def _place(self, traces: tuple[Trace, ...], stop: float, height: int) -> None:
        for timeline, trace in zip(self._timelines, traces, strict=False):
            with timeline.hold_sync():
                if timeline.trace is not trace:
                    timeline.show(trace)
                timeline.time_stop, timeline.height, timeline.span = stop, height, self.span
        if len(self._timelines) == len(traces):
            return
        self._unlink()
        for trace in traces[len(self._timelines) :]:
            timeline = TimelineView(trace, compact=True, time_stop=stop, height=height)
            timeline.span = self.span
            timeline.observe(self._zoomed, "span")
            self._timelines.append(timeline)
        gone = self._timelines[len(traces) :]
        del self._timelines[len(traces) :]
        self._stack.children = tuple(self._timelines)
        for timeline in gone:
            timeline.unobserve_all()
            close_with_parts(timeline)
        self._link()

    def _link(self) -> None:
        """Let the front end move all timelines with one, without asking the kernel."""
        first, *others = self._timelines
        self._links = [W.jslink((first, "span"), (other, "span")) for other in others]

    def _unlink(self) -> None:
        for link in self._links:
            link.close()
        self._links = []

    def _zoomed(self, change: Mapping[str, Any]) -> None:
        """The front end has moved one timeline, and the others by itself."""
        if not self._is_moving:
            self._is_moving = True
            try:
                self.span = change["new"]
            finally:
                self._is_moving = False

    @T.observe("traces")
    def _traces_set(self, change: Mapping[str, Any]) -> None:
        if not self._is_moving:
            self._adopt(change["new"])

    @T.observe("span")
    def _span_set(self, change: Mapping[str, Any]) -> None:
        if self._is_moving:
            return
        self._is_moving = True
        try:
            for timeline in self._timelines:
                timeline.span = change["new"]
        finally:
            self._is_moving = False

    @T.validate("traces")
    def _valid_traces(self, proposal: Mapping[str, Any]) -> tuple[Trace, ...]:
        with self._explained():
            return named(proposal["value"])

    @T.validate("span")
    def _valid_span(self, proposal: Mapping[str, Any]) -> tuple[float, float]:
        with self._explained():
            return as_span(proposal["value"])

    def _wished_away(self, number: int) -> None:
        try:
            self.remove(number)
        except PipelabError:
            pass  # the sentence is there already
        except Exception as error:  # seen in the widget, not lost in a log
            self._say(error_text(error))

    def _number_of(self, which: int | str) -> int:
        labels = [trace.label for trace in self.traces]
        if which in labels:
            return labels.index(str(which))
        if isinstance(which, int) and not isinstance(which, bool) and 0 <= which < len(labels):
            return which
        raise PipelabError(
            f"There is no trace {which!r}; there are {', '.join(map(repr, labels))}, numbered from 0."
        )

    def _say(self, message: str) -> None:
        super()._say(message)
        self._table.alert = message

    def __repr__(self) -> str:
        return f"<CompareView: {', '.join(repr(trace) for trace in self.traces)}>"


def named(traces: Traces) -> tuple[Trace, ...]:
    """The traces, each under a name of its own: a second 1f1b is "1f1b (2)".

    Args:
        traces: in the order in which they are shown; a mapping names each by its key.

    Raises:
        TypeError: something that is no trace.
        PipelabError: no trace, or more than eight.
    """
    if not isinstance(traces, Trace | Iterable):
        compare(traces)  # says what was to be given
    if isinstance(traces, Mapping):
        compare(traces.values())
        given = [trace.with_label(str(name)) for name, trace in traces.items()]
    else:
        given = [traces] if isinstance(traces, Trace) else list(traces)
        compare(given)
    if len(given) > MOST:
        raise PipelabError(
            f"{len(given)} traces are too many to be told apart: a CompareView shows up to {MOST}. pp.compare(traces) "
            "makes a table of any number."
        )
    taken, found = set[str](), []
    for trace in given:
        label, count = trace.label, 1
        while label in taken:
            count += 1
            label = f"{trace.label} ({count})"
        taken.add(label)
        found.append(trace if label == trace.label else trace.with_label(label))
    return tuple(found)


def height_of_each(traces: tuple[Trace, ...]) -> int:
    """Pixels of each timeline: what the one with the most rows needs, or its share of the page."""
    rows = max(len(rows_of(trace)[1]) for trace in traces)
    share = _PAGE // len(traces) - _HEADER
    return max(_LEAST, min(_AROUND + rows * _ROW, share))
