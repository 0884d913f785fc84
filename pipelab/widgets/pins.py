"""The part of the Lab that compares: plans kept beneath the one that the hand moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import traitlets as T

from pipelab.core.quantities import counted
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.widgets.controls import MOST_PINNED, Controls
from pipelab.widgets.gallery import Gallery
from pipelab.widgets.setting import Setting

MEASURED = "measured: "
"""Begins the label of what was measured of a pinned plan."""


class Pins(T.HasTraits):
    """Keeps up to four plans for comparison.

    Attributes:
        pinned: what was predicted of each, and behind that what was measured; each trace with a label of its own.
    """

    pinned = T.Any((), read_only=True)

    _lock: threading.RLock
    _controls: Controls
    _gallery: Gallery
    _setting: Setting
    plan: Any
    measured: Any
    measured_plan: Any
    _explained: Callable[[], AbstractContextManager[None]]
    _check_open: Callable[[], None]

    def pin(self) -> Trace:
        """Keep this plan below, to compare others with it: its prediction, and its measurement if there is one.

        Returns:
            The prediction, as it now stands in `pinned`; its label says what the plan is.

        Raises:
            PipelabError: as many as can be compared are pinned already, or the Lab is closed.
        """
        with self._explained():
            self._check_open()
            if count_of_plans(self.pinned) >= MOST_PINNED:
                raise PipelabError(f"{MOST_PINNED} plans are pinned; unpin one first, such as lab.unpin(0).")
            taken = {plan_of(trace) for trace in self.pinned}
            label = name = plan_label(self._setting)
            number = 2
            while name in taken:
                name, number = f"{label} ({number})", number + 1
            trace = self._setting.predicted.with_label(name)
            kept = [*self.pinned, trace]
            if self.measured is not None and self.measured_plan == self.plan:
                kept.append(self.measured.with_label(MEASURED + name))
            self._pin(tuple(sorted(kept, key=lambda one: one.label.startswith(MEASURED))))
        return trace

    def unpin(self, number: int | None = None) -> None:
        """Take a pinned timeline away, a prediction with what was measured of its plan.

        Args:
            number: its index in `pinned`; None takes all of them.

        Raises:
            PipelabError: there is none of that number.
        """
        with self._explained():
            if number is not None and not 0 <= number < len(self.pinned):
                raise PipelabError(
                    f"There is no pinned timeline {number}; there are {len(self.pinned)}, from 0."
                )
            gone = {one.label for k, one in enumerate(self.pinned) if number in (None, k)}
            gone |= {MEASURED + label for label in gone}
            self._pin(tuple(one for one in self.pinned if one.label not in gone))

    def _pin(self, traces: tuple[Trace, ...]) -> None:
        with self._lock:
            self._gallery.show_pinned(traces)
            self._controls.show_pins(count_of_plans(traces))
            self.set_trait("pinned", traces)


def plan_label(setting: Setting) -> str:
    """What tells one plan from another: the schedule, its sizes, and where the stages begin.

    Example:
        >>> from pipelab.core.profile import Affine, Profile
        >>> line = (Affine(0.0, 1.0),) * 3
        >>> profile = Profile(("a", "b", "c"), line, line, line, (8, 8, 8), line, line, 4, (1, 4), "cpu")
        >>> plan_label(Setting.start(profile, num_ranks=3, num_microbatches=4, schedule="1f1b"))
        '1f1b · 3 ranks · m 4 · cuts b | c'
    """
    per_rank = setting.stages_per_rank
    parts = [
        setting.schedule.name,
        counted(setting.num_ranks, "rank"),
        *([f"{per_rank} stages each"] if per_rank > 1 else []),
        f"m {setting.num_microbatches}",
    ]
    cuts = setting.split.cuts
    parts += [f"cuts {' | '.join(cuts)}"] if cuts else []
    return " · ".join(parts)


def plan_of(trace: Trace) -> str:
    """The label of the plan that a pinned trace is of."""
    return trace.label.removeprefix(MEASURED)


def count_of_plans(traces: Iterable[Trace]) -> int:
    """How many plans the traces are of."""
    return len({plan_of(trace) for trace in traces})
