"""Closed forms from the papers, with what they assume.

p ranks, m micro-batches, v stages per rank, r rank; F and B are seconds of one stage for one micro-batch. All
forms here assume that every stage costs the same and that links are free. The simulator needs none of these
assumptions; the tests hold it to these forms where they apply.

Example:
    >>> form = closed_form("1f1b")
    >>> form.makespan(4, 8), form.bubble_fraction(4, 8) == (4 - 1) / (8 + 4 - 1)
    (33.0, True)
    >>> form.peak_in_flight(4, 8)
    (4, 3, 2, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelab.core.actions import as_index
from pipelab.core.schedules import SCHEDULES
from pipelab.errors import PipelabError, one_of

__all__ = ["FORMS", "ClosedForm", "closed_form"]

Idle = Callable[[int, int, int, float, float], float]
Peak = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class ClosedForm:
    """What a paper promises for one schedule.

    Attributes:
        name: the schedule.
        assumptions: when it holds, in words.
        idle: seconds that each rank idles, called with (p, m, v, F, B).
        peak: the most micro-batches in flight on rank r (chunks, where v > 1), called with (p, m, v, r).
        has_backward: whether B is run at all.
        multiple: whether the form needs m mod p = 0 where v > 1.
    """

    name: str
    assumptions: str
    idle: Idle
    peak: Peak
    has_backward: bool = True
    multiple: bool = False

    @property
    def paper(self) -> str:
        """Where the schedule and the form are from."""
        return SCHEDULES[self.name].paper

    @property
    def formulas(self) -> str:
        """The form as text."""
        return SCHEDULES[self.name].formulas

    def bubble_time(self, p: int, m: int, v: int = 1, F: float = 1.0, B: float = 2.0) -> float:
        """Idle seconds of one rank; of every rank the same.

        Args:
            p: ranks.
            m: micro-batches.
            v: stages per rank.
            F: seconds of one stage's forward.
            B: seconds of one stage's backward.

        Raises:
            PipelabError: sizes for which the form does not hold.
        """
        p, m, v = self._sizes(p, m, v)
        return float(self.idle(p, m, v, F, B))

    def busy(self, m: int, v: int = 1, F: float = 1.0, B: float = 2.0) -> float:
        """Seconds that one rank computes: m v (F + B)."""
        return m * v * (F + B * self.has_backward)

    def makespan(self, p: int, m: int, v: int = 1, F: float = 1.0, B: float = 2.0) -> float:
        """Seconds of the whole step: busy and idle time of a rank."""
        return self.busy(m, v, F, B) + self.bubble_time(p, m, v, F, B)

    def bubble_fraction(self, p: int, m: int, v: int = 1, F: float = 1.0, B: float = 2.0) -> float:
        """Idle / (p x makespan); the GPipe paper's bubble."""
        return self.bubble_time(p, m, v, F, B) / self.makespan(p, m, v, F, B)

    def bubble_ratio(self, p: int, m: int, v: int = 1, F: float = 1.0, B: float = 2.0) -> float:
        """Idle / busy; the Megatron paper's bubble."""
        return self.bubble_time(p, m, v, F, B) / self.busy(m, v, F, B)

    def peak_in_flight(self, p: int, m: int, v: int = 1) -> tuple[int, ...]:
        """For each rank the most micro-batches in flight (chunks, where v > 1)."""
        p, m, v = self._sizes(p, m, v)
        return tuple(self.peak(p, m, v, rank) for rank in range(p))

    def _sizes(self, p: int, m: int, v: int) -> tuple[int, int, int]:
        p, m, v = as_index("p", p), as_index("m", m), as_index("v", v)
        if min(p, m, v) < 1:
            raise PipelabError(f"p={p}, m={m}, v={v}; all are at least 1.")
        if self.multiple and v > 1 and m % p:
            raise PipelabError(
                f"The closed form of {self.name} needs m mod p = 0, not m={m} at p={p}. Simulate it."
            )
        return p, m, v


_UNIFORM = "equal stages, free links"

FORMS: Mapping[str, ClosedForm] = MappingProxyType(
    {
        form.name: form
        for form in (
            ClosedForm(
                name="naive",
                assumptions=_UNIFORM,
                idle=lambda p, m, v, F, B: m * (p - 1) * (F + B),
                peak=lambda p, m, v, r: 1,
            ),
            ClosedForm(
                name="forward-only",
                assumptions=f"{_UNIFORM}; m mod p = 0 where v > 1",
                idle=lambda p, m, v, F, B: (p - 1) * F,
                peak=lambda p, m, v, r: 1,
                has_backward=False,
            ),
            ClosedForm(
                name="gpipe",
                assumptions=_UNIFORM,
                idle=lambda p, m, v, F, B: (p - 1) * (F + B),
                peak=lambda p, m, v, r: m,
            ),
            ClosedForm(
                name="1f1b",
                assumptions=_UNIFORM,
                idle=lambda p, m, v, F, B: (p - 1) * (F + B),
                peak=lambda p, m, v, r: min(m, p - r),
            ),
            ClosedForm(
                name="eager-1f1b",
                assumptions=_UNIFORM,
                idle=lambda p, m, v, F, B: (p - 1) * (F + B),
                peak=lambda p, m, v, r: min(m, 2 * (p - 1 - r) + 1),
            ),
            ClosedForm(
                name="interleaved-1f1b",
                assumptions=f"{_UNIFORM}; m mod p = 0",
                idle=lambda p, m, v, F, B: (p - 1) * (F + B),
                peak=lambda p, m, v, r: min(m * v, (v - 1) * p + 2 * (p - 1 - r) + 1),
                multiple=True,
            ),
        )
    }
)
"""The closed form of every schedule that has one."""


def closed_form(name: str) -> ClosedForm:
    """The closed form of a schedule.

    Args:
        name: of the schedule, as in `SCHEDULES`.

    Raises:
        PipelabError: there is none for this name.
    """
    one_of("closed form", name, FORMS)
    return FORMS[name]
