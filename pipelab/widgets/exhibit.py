"""Which traces the Lab shows, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelab.core.gap import pace_sentence
from pipelab.core.trace import Trace

VIEWS = ("over", "both", "predicted", "measured")
"""The measurement with the prediction's outlines over it, the two below one another, or one of them."""

_CHANGED = "The plan has changed since the last run."


@dataclass(frozen=True)
class Exhibit:
    """What to show.

    Attributes:
        traces: from the top.
        remarks: for each trace a sentence, or "".
        outline: laid over the first trace as outlines, or None.
        hints: sentences for below the controls.
    """

    traces: tuple[Trace, ...]
    remarks: tuple[str, ...] = ("",)
    outline: Trace | None = None
    hints: tuple[str, ...] = ()

    @property
    def stop(self) -> float:
        """Seconds at which the shared time axis ends; 0 where there is but one trace."""
        return max(trace.makespan for trace in self.traces) if len(self.traces) > 1 else 0.0


def exhibit(predicted: Trace, measured: Trace | None, *, view: str, is_current: bool) -> Exhibit:
    """Choose what to show; without a measurement every view shows the prediction.

    Args:
        view: one of `VIEWS`.
        is_current: whether the measurement is of the plan that is predicted. One of an older plan is never laid over
            a prediction: "over" then shows what the hand moves. One of this plan whose actions all took longer says so.
    """
    if measured is None:
        missing = "Nothing has been measured yet, so this is the prediction. Press Run, or call lab.run()."
        return Exhibit((predicted,), hints=(missing,) if view == "measured" else ())
    remark = pace_sentence(predicted, measured) if is_current else "of an older plan: press Run again"
    hints = () if is_current else (_CHANGED,)
    if view == "both":
        return Exhibit((predicted, measured), ("", remark), hints=hints)
    if view == "measured":
        return Exhibit((measured,), (remark,), hints=hints)
    if view == "predicted":
        return Exhibit((predicted,), hints=hints)
    if is_current:
        return Exhibit((measured,), (remark,), outline=predicted)
    return Exhibit((predicted,), hints=(f"{_CHANGED} This is the prediction; press Run to measure it.",))
