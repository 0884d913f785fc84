"""What the Lab says below its controls: how far the hand has come, what is uneven, and how the last run went."""

from __future__ import annotations

from pipelab.core.quantities import as_seconds
from pipelab.widgets.measurement import NO_MODEL
from pipelab.widgets.setting import Setting

RUNNING = "Running ..."

_SAME = 0.005  # a share that rounds to no percent


def progress(setting: Setting, first: Setting) -> str:
    """How much shorter the step is than where the Lab began; "" where nothing has moved.

    Args:
        setting: what it is set to.
        first: what it was set to in the beginning.
    """
    if setting is first or setting.plan == first.plan:
        return ""
    now, before = setting.predicted.makespan, first.predicted.makespan
    change = now / before - 1 if before else 0.0
    if abs(change) < _SAME:
        return f"Predicted {as_seconds(now)}, as long as where the Lab began."
    much = f"{100 * abs(change):.0f} % {'less' if change < 0 else 'more'}"
    return f"Predicted {as_seconds(now)}, {much} than where the Lab began ({as_seconds(before)})."


def lines_of_run(*, can_run: bool, running: bool, hint: str, hints: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be said of runs: one thing, that which holds now.

    Args:
        can_run: whether there is a model.
        running: whether a run is under way.
        hint: how the last run of the plan that is shown went, or "".
        hints: what else there would be to say of what is shown.
    """
    if not can_run:
        return (NO_MODEL,)
    if running:
        return (RUNNING,)
    return (hint,) if hint else hints
