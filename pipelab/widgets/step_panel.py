"""Under the timeline of a StepView: what moves the step, the sentence about what changed, a row for each rank."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets as T

from pipelab.core.actions import CODES
from pipelab.core.moment import DONE, Moment, Moments, RankMoment
from pipelab.core.quantities import as_seconds
from pipelab.core.trace import Trace
from pipelab.plots.palette import INKS, MEMORY, OTHER_PAINT, PAINT_OF_CODE, PAINTS
from pipelab.widgets.assets import css, esm

SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Steps a second that the menu offers."""

SPEED, FASTEST = 2.0, 60.0
"""Steps a second at first, and the most that a page can show."""

_CHIPS = 8
"""The most micro-batches in flight that a row shows one by one."""


class StepPanel(anywidget.AnyWidget):
    """Buttons, a slider, a sentence and a table; they hold what they are told and say what is wished.

    Attributes:
        step: which moment; the slider sets it.
        num_steps: the last one.
        playing: whether the front end goes on by itself.
        speed: steps a second.
        table: what is seen at the moment, as `panel_table` makes it.
        alert: a refusal or an error; "" when all is well.
    """

    _esm = esm("element.js", "keys.js", "step.js")
    _css = css("base.css", "step.css")

    step = T.Int(0).tag(sync=True)
    num_steps = T.Int(1).tag(sync=True)
    playing = T.Bool(False).tag(sync=True)
    speed = T.Float(SPEED).tag(sync=True)
    table = T.Dict().tag(sync=True)
    alert = T.Unicode("").tag(sync=True)
    _look = T.Dict(
        {"paints": list(PAINTS), "inks": list(INKS), "memory": MEMORY, "speeds": list(SPEEDS)}
    ).tag(sync=True)

    def show(self, moments: Moments, moment: Moment, before: Moment | None) -> None:
        """Show a moment, in one message.

        Args:
            moments: that it is one of.
            moment: what to show.
            before: the one before it, to mark what is new; None at the first.
        """
        with self.hold_sync():
            self.num_steps = moments.num_steps
            self.step = moment.step
            self.table = panel_table(moments, moment, before)
            self.alert = ""


def panel_table(moments: Moments, moment: Moment, before: Moment | None) -> dict[str, Any]:
    """What the front end shows of a moment: texts, and numbers from 0 to 1 for lengths."""
    most = moments.most_kept
    rows = [
        {
            "does": one.does,
            "chips": _chips(moments.trace, one),
            "when": _when(one),
            "words": _why(one),
            "sentence": one.sentence,
            "flying": _flights(moment, one),
            "kept": moment.kept_text(one.rank),
            "most": f"No rank ever keeps more than {moment.amount_text(most)}.",
            "part": one.kept / most if most > 0 else 0.0,
            "is_new": before is not None and _state(one) != _state(before.ranks[one.rank]),
        }
        for one in moment.ranks
    ]
    when = f"{as_seconds(moment.time)} of {as_seconds(moments.trace.makespan)}"
    return {"step": moment.step, "when": when, "sentence": moment.changes, "rows": rows}


def _state(one: RankMoment) -> tuple[str, int]:
    return one.does, one.row


def _chips(trace: Trace, one: RankMoment) -> list[dict[str, Any]]:
    """The names of what runs or is waited for, each with its paint; an overlap has several."""
    if one.row < 0:
        return []
    table = trace.schedule.table
    if one.row < table.num_cells:
        members = table.action(one.row).parts
        return [{"name": str(m), "paint": int(PAINT_OF_CODE[CODES[m.kind]])} for m in members]
    return [{"name": one.action.removeprefix("the "), "paint": OTHER_PAINT}]


def _when(one: RankMoment) -> str:
    since = as_seconds(one.start)
    return f"since {since}" if one.does == DONE else f"{since} to {as_seconds(one.end)}"


def _why(one: RankMoment) -> str:
    """The end of the sentence: its beginning stands in the row already."""
    words = [one.reason[:1].upper() + one.reason[1:]]
    if one.beside:
        words.append(f"Meanwhile: {', '.join(one.beside)}.")
    return " ".join(words)


def _flights(moment: Moment, one: RankMoment) -> dict[str, Any]:
    """Micro-batches in flight as labels: the first ones and the last, and how many there are."""
    names = [moment.flight_name(*pair) for pair in one.in_flight]
    few = names if len(names) <= _CHIPS else [*names[: _CHIPS - 2], "…", names[-1]]
    return {"names": few, "count": len(names)}
