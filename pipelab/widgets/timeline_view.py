"""The timeline, live: zoom, hover over an action or a gap and read why, follow a micro-batch through all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as T

from pipelab.core.trace import Trace
from pipelab.core.waits import neighbours, reason
from pipelab.core.why import Why
from pipelab.plots.critical_path import describe_path, path_sentence
from pipelab.plots.timeline import check_trace
from pipelab.widgets.assets import css, esm
from pipelab.widgets.markup import error_text
from pipelab.widgets.shown import Shown
from pipelab.widgets.timeline_columns import describe, overruns, pack
from pipelab.widgets.timeline_still import still_timeline
from pipelab.widgets.traits import SPAN, Explains, Refused, as_span, check_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCRIPTS = (
    "geometry.js",
    "shown.js",
    "element.js",
    "keys.js",
    "timeline_sheet.js",
    "timeline_axis.js",
    "timeline_paint.js",
    "timeline_over.js",
    "timeline_parts.js",
    "timeline_hover.js",
    "timeline_hands.js",
    "timeline.js",
)
_HEIGHT = "pixels, a whole number from 60 on, or None for what the rows need"
_PACKED = ("trace", "predicted", "memory", "memory_limit")
"""What the columns are made of: another one of these, and they are sent anew."""


class TimelineView(Explains, Shown, anywidget.AnyWidget):
    """A trace as a timeline that answers: what is this action, and why does this rank wait?

    Hover over an action and read what it is, over a gap and read what the rank waits for. A click on an action follows
    its micro-batch through all ranks. The wheel zooms once the timeline has the focus (or with Ctrl), dragging pans,
    a double click shows all again; every one of these has a key too.

    Attributes:
        trace: what is shown; set it to another `Trace` to move the picture.
        predicted: a trace of the same schedule, as outlines over the filled actions; or None.
        memory: whether what each rank holds is drawn below.
        memory_limit: bytes; a line, and the first action over it marked. None for no limit.
        critical_path: whether the actions are marked that make the step as long as it is.
        selected: the row of the trace that is selected; -1 for none.
        span: the part of the time axis that is shown, begin and end in seconds; (0, 0) for all.
        moment: seconds; a line there, and what has not happened yet is faint. -1 for none.
        time_stop: where the time axis ends, seconds; 0 for where the trace does. Several views get the same.
        title: in place of the headline; "" for the headline.
        compact: without title lines but the first, legend, buttons and hints.
        height: pixels of the drawing; None for what the rows need.
        message: the last refusal or error of an answer, "" when all is well.

    Args:
        trace: of any clock.
        predicted, memory, critical_path, memory_limit, height, time_stop, title, compact: as above.

    Raises:
        TypeError: something else than a trace.
        PipelabError: a prediction of another schedule, or a limit where no bytes are known.

    Example:
        >>> import pipelab as pp
        >>> from pipelab.widgets.timeline_view import TimelineView
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> view = TimelineView(pp.simulate(one, pp.Costs.uniform(4)))
        >>> print(view.why(rank=2, time=5).sentence)
        Rank 2 waits 2 s for 2B0, from 4 s to 6 s: it needs 3B0 of rank 3.
        >>> view.trace = pp.simulate(one, pp.Costs.uniform(4, latency=0.5))
        >>> view.close()
    """

    _esm = esm(*_SCRIPTS)
    _css = css("base.css", "timeline.css")

    _columns = T.Bytes(b"").tag(sync=True)
    _meta = T.Dict().tag(sync=True)

    trace = T.Any()
    predicted = T.Any(None, allow_none=True)
    memory_limit = T.Any(None, allow_none=True)
    memory = T.Bool(False).tag(sync=True)
    critical_path = T.Bool(False).tag(sync=True)
    selected = T.Int(-1).tag(sync=True)
    span = T.Tuple(T.Float(), T.Float(), default_value=(0.0, 0.0)).tag(sync=True, wants=SPAN)
    moment = T.Float(-1.0).tag(sync=True)
    time_stop = T.Float(0.0).tag(sync=True)
    title = T.Unicode("").tag(sync=True)
    compact = T.Bool(False).tag(sync=True)
    height = T.Int(None, allow_none=True, min=60).tag(sync=True, wants=_HEIGHT)
    message = T.Unicode("", read_only=True).tag(sync=True)

    def __init__(
        self,
        trace: Trace,
        *,
        predicted: Trace | None = None,
        memory: bool = False,
        critical_path: bool = False,
        memory_limit: float | None = None,
        height: int | None = None,
        time_stop: float = 0.0,
        title: str = "",
        compact: bool = False,
    ) -> None:
        check_trace(trace)
        _check_predicted(predicted, trace)
        _check_limit(memory_limit, trace)
        self._remark = ""
        self._serial = 0
        self._is_moving = True  # until all is there to be sent at once
        columns, meta = pack(trace, predicted=predicted, memory=memory, memory_limit=memory_limit)
        super().__init__(
            trace=trace,
            predicted=predicted,
            memory=memory,
            memory_limit=memory_limit,
            critical_path=critical_path,
            height=height,
            time_stop=time_stop,
            title=title,
            compact=compact,
            _columns=columns,
            _meta={**meta, "serial": 0},
        )
        self._is_moving = False
        self.on_msg(self._asked)

    def show(self, trace: Trace, *, predicted: Trace | None = None, remark: str = "") -> None:
        """Show another trace in place of the last one; one message to the front end.

        What was selected stays selected, and a zoom stays, as long as the schedule is the same and reaches that far.

        Args:
            trace: of any clock.
            predicted: of the same schedule, as outlines.
            remark: a sentence for below the headline.

        Raises:
            TypeError: something else than a trace.
            PipelabError: a prediction of another schedule, or no known bytes where there is a limit.
        """
        with self.hold_sync():
            with self._explained():
                check_trace(trace)
                _check_predicted(predicted, trace)
                _check_limit(self.memory_limit, trace)
            self._remark = remark
            old = self.trace
            self._is_moving = True
            try:
                self.predicted = None  # for a moment, as it may be of another schedule than the trace
                self.trace = trace
                self.predicted = predicted
            finally:
                self._is_moving = False
            self._moved(old)

    def why(self, rank: int, time: float) -> Why:
        """What a rank does at a moment; in a gap, the chain of actions that it waits for (see `Trace.why`)."""
        return self.trace.why(rank, time)  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        """The timeline in words."""
        trace: Trace = self.trace
        curves = trace.memory() if self.memory_limit is not None else ()
        over = overruns(trace, curves, self.memory_limit)
        words = describe(trace, curves=self.memory, over=over, predicted=self.predicted)
        return f"{words} {describe_path(trace.critical_path())}" if self.critical_path else words

    def static_figure(self) -> Figure:
        """The whole timeline as matplotlib draws it, with the same options."""
        return still_timeline(
            self.trace,
            predicted=self.predicted,
            memory=self.memory,
            critical_path=self.critical_path,
            memory_limit=self.memory_limit,
            title=self.title,
            remark=self._remark,
            moment=self.moment,
        )

    @T.validate("trace")
    def _valid_trace(self, proposal: Mapping[str, Any]) -> Trace:
        with self._explained():
            check_trace(proposal["value"])
            if not self._is_moving:
                _check_limit(self.memory_limit, proposal["value"])
        return proposal["value"]  # type: ignore[no-any-return]

    @T.validate("predicted")
    def _valid_predicted(self, proposal: Mapping[str, Any]) -> Trace | None:
        if not self._is_moving:
            with self._explained():
                _check_predicted(proposal["value"], self.trace)
        return proposal["value"]  # type: ignore[no-any-return]

    @T.validate("memory_limit")
    def _valid_limit(self, proposal: Mapping[str, Any]) -> float | None:
        if not self._is_moving:
            with self._explained():
                _check_limit(proposal["value"], self.trace)
        return proposal["value"]  # type: ignore[no-any-return]

    @T.validate("selected")
    def _valid_selected(self, proposal: Mapping[str, Any]) -> int:
        row, rows = proposal["value"], len(self.trace.start)
        with self._explained():
            if not -1 <= row < rows:
                raise Refused(
                    f"selected is {row}; {self.trace.label} has rows 0 to {rows - 1}, and -1 is none."
                )
        return int(row)

    @T.validate("span")
    def _valid_span(self, proposal: Mapping[str, Any]) -> tuple[float, float]:
        with self._explained():
            return as_span(proposal["value"])

    @T.validate("moment", "time_stop")
    def _valid_time(self, proposal: Mapping[str, Any]) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        is_none = name == "moment" and value == -1
        with self._explained():
            if not (is_none or 0 <= value < math.inf):
                raise Refused(f"{name} is {value:g}; give seconds from 0 on.")
        return float(value)

    @T.observe(*_PACKED)
    def _packed_changed(self, change: Mapping[str, Any]) -> None:
        if self._is_moving:
            return
        if change["name"] == "trace":
            self._remark = ""
            if self.predicted is not None and self.predicted.schedule != self.trace.schedule:
                self._is_moving = True
                try:
                    self.predicted = None
                finally:
                    self._is_moving = False
        self._moved(change["old"] if change["name"] == "trace" else self.trace)

    def _moved(self, old: Trace) -> None:
        """Send what is shown now."""
        trace: Trace = self.trace
        columns, meta = pack(
            trace,
            predicted=self.predicted,
            memory=self.memory,
            memory_limit=self.memory_limit,
            remark=self._remark,
        )
        self._serial += 1
        with self.hold_sync():
            if trace is not old and trace.schedule != old.schedule:
                self.selected = -1
                self.span = (0.0, 0.0)
            self._stay_inside(max(meta["stop"], self.time_stop))
            self._columns, self._meta = columns, {**meta, "serial": self._serial}
            self._say("")

    def _stay_inside(self, stop: float) -> None:
        """A part of the axis, or a moment, that a shorter trace does not have is let go."""
        if self.span[0] >= stop or self.span[1] - self.span[0] > stop:
            self.span = (0.0, 0.0)
        elif self.span[1] > stop:
            self.span = (self.span[0] - (self.span[1] - stop), stop)
        if self.moment > stop:
            self.moment = -1.0

    def _asked(self, _: object, content: Mapping[str, Any], __: object) -> None:
        """Answer the front end. Causes are looked for only now, so that a slider's tick never waits for them."""
        answers: dict[object, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "why": self._answer_why,
            "links": self._answer_links,
            "path": self._answer_path,
        }
        if not isinstance(content, Mapping) or content.get("what") not in answers:
            return
        if content.get("serial") != self._serial:
            return  # about what is not shown any more
        try:
            reply = answers[content["what"]](content)
            self._say("")
        except Exception as error:
            self._say(error_text(error))
            reply = {"error": error_text(error)}
        self.send({"what": content["what"], "id": content.get("id"), "serial": self._serial, **reply})

    def _answer_why(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        trace: Trace = self.trace
        time = min(max(float(asked["time"]), 0.0), trace.makespan)
        found = trace.why(asked["rank"], time)
        return {"sentence": found.sentence, "rows": found.rows.tolist()}

    def _answer_links(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        row = int(asked["row"])
        before, after = neighbours(self.trace, row)
        return {"row": row, "before": before, "after": after, "sentence": reason(self.trace, row)}

    def _answer_path(self, _: Mapping[str, Any]) -> dict[str, Any]:
        path = self.trace.critical_path()
        return {"rows": path.rows.tolist(), "sentence": path_sentence(path), "words": describe_path(path)}

    def __repr__(self) -> str:
        return f"<TimelineView of {self.trace!r}>"


def _check_predicted(predicted: object, trace: Trace) -> None:
    if predicted is None:
        return
    check_trace(predicted)
    if predicted.schedule != trace.schedule:  # type: ignore[attr-defined]
        raise Refused(
            f"predicted is of another schedule than {trace.label}, so its actions are no outlines of these. Simulate "
            f"trace.schedule, or show both in a CompareView."
        )


def _check_limit(limit: object, trace: Trace) -> None:
    check_limit(limit)
    if limit is not None and trace.bytes is None:
        raise Refused(
            f"memory_limit is in bytes, and how many bytes the stages of {trace.label} hold is not known. Simulate "
            f"with costs that know them, such as profile.costs(...), or leave the limit out."
        )
