"""A step played like a film: forward and back from one change to the next, with what every rank does and waits for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as T

from pipelab.core.moment import Moment, Moments
from pipelab.core.quantities import as_seconds
from pipelab.core.trace import Trace
from pipelab.widgets.markup import error_text
from pipelab.widgets.shown import Shown
from pipelab.widgets.step_panel import FASTEST, SPEED, StepPanel
from pipelab.widgets.timeline_still import still_timeline
from pipelab.widgets.timeline_view import TimelineView
from pipelab.widgets.traits import Explains, Refused

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOLD = 8
"""The most ranks that the words are about."""


class StepView(Explains, Shown, W.VBox):
    """A trace, moment by moment: for teaching, and to find out what a schedule does just there.

    There is a moment for each time at which anything starts or ends. At each a sentence says what changes, and for
    every rank a row says what it does or what it waits for, which micro-batches it has in flight and what it keeps.
    The arrow keys step once the slider has the focus, the space bar plays and pauses.

    Attributes:
        trace: what is shown; set it to another `Trace` to begin anew with that one.
        step: which moment, from 0 to `num_steps`.
        time: seconds: when that moment is.
        playing: whether the front end steps on by itself.
        speed: steps a second while it does.
        message: the last refusal, "" when all is well.

    Args:
        trace: of any clock.
        step: where to begin.
        height: pixels of the timeline; None for what its rows need.

    Raises:
        TypeError: something else than a trace.
        PipelabError: a step that takes no time at all, or a moment that it does not have.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
        >>> view = pp.StepView(pp.simulate(one, pp.Costs.uniform(2)), step=2)
        >>> print(view.now.changes)
        At 2 s: rank 0 ends 0F1 and waits to start 0B0; rank 1 ends 1F0 and starts 1B0.
        >>> view.step = view.num_steps
        >>> view.time
        9.0
        >>> view.close()
    """

    trace = T.Any()
    step = T.Int(0)
    time = T.Float(0.0, read_only=True)
    playing = T.Bool(False)
    speed = T.Float(SPEED)
    message = T.Unicode("", read_only=True)

    _is_moving = True  # until all parts are there

    def __init__(self, trace: Trace, *, step: int = 0, height: int | None = None) -> None:
        moments = Moments(trace)
        moment = moments.at(step)
        self._moments = moments
        self._timeline = TimelineView(trace, height=height)
        self._panel = StepPanel()
        super().__init__([self._timeline, self._panel])
        self.add_class("pipelab")
        self._adopt(moments, moment)
        self._panel.observe(self._wished, ["step", "playing", "speed"])

    def show(self, trace: Trace, *, step: int = 0) -> None:
        """Show another trace.

        Args:
            trace: of any clock.
            step: where to begin.

        Raises:
            TypeError: something else than a trace.
            PipelabError: a step that takes no time at all, or a moment that it does not have.
        """
        with self._explained():
            moments = Moments(trace)
            self._adopt(moments, moments.at(step))

    @property
    def num_steps(self) -> int:
        """How many steps lead from the first moment to the last."""
        return self._moments.num_steps

    @property
    def times(self) -> tuple[float, ...]:
        """The time of each moment, seconds; `num_steps` + 1 of them."""
        return tuple(self._moments.times.tolist())

    @property
    def now(self) -> Moment:
        """What every rank does at the moment that is shown."""
        return self._now

    def next(self) -> None:
        """One step on; at the last moment nothing happens."""
        self.step = min(self.step + 1, self.num_steps)

    def previous(self) -> None:
        """One step back; at the first moment nothing happens."""
        self.step = max(self.step - 1, 0)

    def go_to(self, time: float) -> None:
        """Show the last moment that is not after a time.

        Args:
            time: seconds, such as the start of an action.
        """
        self.step = self._moments.step_at(time)

    def play(self) -> None:
        """Let the front end step on; from the beginning if it is at the end."""
        if self.step == self.num_steps:
            self.step = 0
        self.playing = True

    def pause(self) -> None:
        """Stay at the moment that is shown."""
        self.playing = False

    @property
    def text(self) -> str:
        """The moment in words."""
        now, trace = self._now, self._moments.trace
        ranks = now.ranks if len(now.ranks) <= _TOLD else (*now.ranks[: _TOLD - 1], now.ranks[-1])
        words = [
            f"Step {now.step} of {self.num_steps} of {trace.label} ({trace.clock} clock), {as_seconds(now.time)} of "
            f"{as_seconds(trace.makespan)}.",
            now.changes,
            *(f"{one.sentence} It keeps {now.kept_text(one.rank)}." for one in ranks),
        ]
        if len(ranks) < len(now.ranks):
            words.insert(-1, f"({len(now.ranks) - len(ranks)} ranks left out.)")
        return " ".join(words)

    def static_figure(self) -> Figure:
        """The timeline, a line at the moment, and the sentence about it."""
        return still_timeline(self._moments.trace, moment=self._now.time, remark=self._now.changes)

    # -- changes ------------------------------------------------------------------------------------------------

    def _adopt(self, moments: Moments, moment: Moment) -> None:
        """Show a moment, perhaps of another trace."""
        before = moments.at(moment.step - 1) if moment.step else None
        is_other = moments is not self._moments
        self._moments, self._now, self._is_moving = moments, moment, True
        try:
            self.trace, self.step = moments.trace, moment.step
            self.set_trait("time", moment.time)
        finally:
            self._is_moving = False
        with self._timeline.hold_sync():
            if is_other:
                self._timeline.show(moments.trace)
            self._timeline.moment = moment.time
        self._panel.show(moments, moment, before)
        self._say("")

    @T.observe("trace", "step")
    def _moved(self, change: Mapping[str, Any]) -> None:
        if self._is_moving:
            return
        if change["name"] == "trace":
            moments = Moments(self.trace)
            self._adopt(moments, moments.at(0))
        else:
            self._adopt(self._moments, self._moments.at(self.step))

    @T.observe("playing", "speed")
    def _film_changed(self, change: Mapping[str, Any]) -> None:
        if not self._is_moving:
            setattr(self._panel, change["name"], change["new"])

    def _wished(self, change: Mapping[str, Any]) -> None:
        """A person, or the film, moved something."""
        name = change["name"]
        if getattr(self, name) == change["new"]:
            return
        try:
            setattr(self, name, change["new"])
        except Exception as error:  # seen in the widget, not lost in a log
            self._say(error_text(error))
            setattr(self._panel, name, getattr(self, name))

    @T.validate("trace")
    def _valid_trace(self, proposal: Mapping[str, Any]) -> Trace:
        if not self._is_moving:
            with self._explained():
                Moments(proposal["value"])
        return proposal["value"]  # type: ignore[no-any-return]

    @T.validate("step")
    def _valid_step(self, proposal: Mapping[str, Any]) -> int:
        if not self._is_moving:
            with self._explained():
                self._moments.at(proposal["value"])
        return int(proposal["value"])

    @T.validate("speed")
    def _valid_speed(self, proposal: Mapping[str, Any]) -> float:
        speed = float(proposal["value"])
        with self._explained():
            if not (math.isfinite(speed) and 0 < speed <= FASTEST):
                raise Refused(f"speed is {speed:g}; give steps a second, above 0 and at most {FASTEST:g}.")
        return speed

    def _say(self, message: str) -> None:
        super()._say(message)
        self._panel.alert = message

    def __repr__(self) -> str:
        return f"<StepView: step {self._now.step} of {self.num_steps}, {self._moments.trace!r}>"
