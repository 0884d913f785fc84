"""Which traces the Lab's picture shows, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelab.core.trace import Trace

VIEWS = ("predicted", "measured", "both")


@dataclass(frozen=True)
class Exhibit:
    """What to draw.

    Attributes:
        traces: from the top.
        remarks: for each trace a sentence, or "".
        hints: sentences for below the controls.
        same_plan: whether what is measured is of the plan that is predicted.
    """

    traces: tuple[Trace, ...]
    remarks: tuple[str, ...]
    hints: tuple[str, ...]
    same_plan: bool


def exhibit(predicted: Trace, measured: Trace | None, *, view: str, is_current: bool) -> Exhibit:
    """Choose what to draw; without a measurement every view shows the prediction.

    Args:
        is_current: whether the measurement is of the plan that is predicted.
    """
    if measured is None:
        missing = "Nothing has been measured yet, so this is the prediction. Press Run, or call lab.run()."
        return Exhibit((predicted,), ("",), (missing,) if view == "measured" else (), True)
    remark = "" if is_current else "of an older plan: press Run again"
    hints = () if is_current else ("The plan has changed since the last run.",)
    if view == "both":
        return Exhibit((predicted, measured), ("", remark), hints, is_current)
    shown, remark = (measured, remark) if view == "measured" else (predicted, "")
    return Exhibit((shown,), (remark,), hints, is_current)
