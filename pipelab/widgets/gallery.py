"""The Lab's pictures: the timelines of the setting, one above the other, and beneath them those that were pinned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W
import traitlets as T
from matplotlib.figure import Figure

from pipelab.core.trace import Trace
from pipelab.widgets.closing import close_with_parts
from pipelab.widgets.compare_still import still_timelines
from pipelab.widgets.compare_view import CompareView
from pipelab.widgets.exhibit import Exhibit
from pipelab.widgets.markup import heading
from pipelab.widgets.timeline_view import TimelineView

TOGGLES = ("memory", "critical_path")


class Gallery:
    """Timelines and what was pinned, made when they are first needed and kept until the end.

    Args:
        first: what is shown before anything else.
        wish: called with one of `TOGGLES` and a value when a person presses a button of a timeline, with "pinned" and
            what is left when one takes a pinned timeline away.

    Attributes:
        upper: the first timeline.
        lower: the second one, on the same time axis; None until there has been one.
        compare: what was pinned; None while nothing is.
        box: all of them.
    """

    def __init__(self, first: Trace, wish: Callable[[str, Any], None]) -> None:
        self._wish = wish
        self._shown: Exhibit | None = None
        self._pinned: tuple[Trace, ...] = ()
        self.upper = self._new_view(first)
        self.lower: TimelineView | None = None
        self.compare: CompareView | None = None
        self._heading: W.HTML | None = None
        self.box = W.VBox([self.upper])
        self._link: T.link | None = None

    def show(
        self, shown: Exhibit, *, memory: bool, critical_path: bool, memory_limit: float | None = None
    ) -> None:
        """Show what is to be shown.

        Args:
            shown: the traces.
            memory, critical_path, memory_limit: of all timelines; a limit only where bytes are known.
        """
        if len(shown.traces) > 1 and self.lower is None:
            self.lower = self._new_view(shown.traces[1])
            self._link = T.link((self.upper, "span"), (self.lower, "span"))
            self._arrange()
        views = [self.upper] if self.lower is None else [self.upper, self.lower]
        for view, trace, remark in zip(views, shown.traces, shown.remarks, strict=False):
            limit = memory_limit if trace.bytes is not None else None
            with view.hold_sync():
                view.time_stop = shown.stop
                view.memory, view.critical_path = memory, critical_path
                if limit is None:  # before there is a trace whose bytes are not known, or after
                    view.memory_limit = None
                if self._is_new(view, trace, shown):
                    view.show(trace, predicted=shown.outline if view is self.upper else None, remark=remark)
                view.memory_limit = limit
        if self.lower is not None:
            self.lower.layout.display = "" if len(shown.traces) > 1 else "none"
        self._shown = shown

    def show_pinned(self, traces: Sequence[Trace]) -> None:
        """Show these beneath, on a time axis of their own; none takes the comparison away."""
        self._pinned = tuple(traces)
        if not traces:
            if self.compare is not None:
                gone = (self.compare, self._heading)
                self.compare = self._heading = None
                self._arrange()
                for widget in gone:
                    close_with_parts(widget)
        elif self.compare is None:
            self.compare, self._heading = CompareView(traces), W.HTML(heading("Pinned"))
            self.compare.observe(self._removed, "traces")
            self._arrange()
        else:
            self.compare.traces = self._pinned

    @property
    def text(self) -> str:
        """The timelines that can be seen, in words."""
        return " ".join(view.text for view in self._visible())

    def static_figure(self) -> Figure:
        """The timelines that can be seen; what was pinned is not part of it."""
        views = self._visible()
        return still_timelines([view.trace for view in views]) if len(views) > 1 else views[0].static_figure()

    def close(self) -> None:
        """Drop the widgets."""
        if self._link is not None:
            self._link.unlink()
        for view in (self.upper, self.lower):
            if view is not None:
                view.unobserve_all()
        close_with_parts(self.box)

    def _visible(self) -> list[TimelineView]:
        two = self._shown is not None and len(self._shown.traces) > 1 and self.lower is not None
        return [self.upper, self.lower] if two and self.lower is not None else [self.upper]

    def _new_view(self, trace: Trace) -> TimelineView:
        view = TimelineView(trace)
        view.observe(lambda change: self._wish(change.name, change.new), list(TOGGLES))
        return view

    def _is_new(self, view: TimelineView, trace: Trace, shown: Exhibit) -> bool:
        """Whether a timeline has to be drawn anew; a run's progress or a message changes none."""
        if self._shown is None or view.trace is not trace:
            return True
        return shown.outline is not self._shown.outline or shown.remarks != self._shown.remarks

    def _removed(self, change: Any) -> None:
        if change.new != self._pinned:  # by a button of the comparison
            self._wish("pinned", change.new)

    def _arrange(self) -> None:
        parts = (self.upper, self.lower, self._heading, self.compare)
        self.box.children = tuple(part for part in parts if part is not None)
