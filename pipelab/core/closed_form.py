"""What a formula says about a schedule, with what it assumes.

p ranks, m micro-batches, v stages per rank, r rank; F, I, W and B are seconds of one stage for one micro-batch,
F&B of a forward and a backward that overlap, c of one hop between ranks. All formulas assume that every stage
costs the same. They give a number also where their assumptions are broken; `holds` says which one is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TypedDict, Unpack

from pipelab.core.actions import MAX_CELLS, as_index
from pipelab.core.placement import MAX_STAGES
from pipelab.errors import PipelabError, reject_unknown

__all__ = ["EQUAL_SECONDS", "Assumption", "ClosedForm", "Seconds", "Terms", "at_most"]

_LIMITS = {"p": (MAX_STAGES, "2**16"), "m": (MAX_CELLS, "2**22"), "v": (MAX_STAGES, "2**16")}
"""No schedule is larger, and some forms make a list of the ranks or of groups of micro-batches."""


@dataclass(frozen=True)
class Terms:
    """What formulas are made of.

    Attributes:
        p: ranks.
        m: micro-batches.
        v: stages per rank.
        F: seconds of one stage's forward.
        I: seconds of one stage's gradient of its input. (The Zero Bubble papers write B for it.)
        W: seconds of one stage's gradient of its weights.
        B: seconds of one stage's whole backward.
        overlap: F&B, seconds of a forward and a backward that overlap.
        c: seconds of one hop between ranks.

    Example:
        >>> Terms.of(4, 8, B=3.0).I
        1.5

    Raises:
        PipelabError: a size below 1 or above `MAX_STAGES` (p and v) or `MAX_CELLS` (m); seconds that are negative
            or infinite.
        TypeError: sizes that are no integers, seconds that are no numbers.
    """

    p: int
    m: int
    v: int
    F: float
    I: float  # noqa: E741 - the letter of the field
    W: float
    B: float
    overlap: float
    c: float

    def __post_init__(self) -> None:
        sizes = {name: as_index(name, getattr(self, name)) for name in ("p", "m", "v")}
        for name, (limit, power) in _LIMITS.items():
            if sizes[name] > limit:
                raise PipelabError(f"{name} is too large; the limit is {limit:,} ({power}).")
        if min(sizes.values()) < 1:
            given = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise PipelabError(f"{given}; all are at least 1.")
        for name, size in sizes.items():
            object.__setattr__(self, name, size)
        for field in fields(self)[3:]:
            object.__setattr__(self, field.name, _seconds(field.name, getattr(self, field.name)))

    @classmethod
    def of(
        cls,
        p: int,
        m: int,
        v: int = 1,
        F: float = 1.0,
        B: float | None = None,
        *,
        I: float | None = None,  # noqa: E741
        W: float | None = None,
        overlap: float | None = None,
        c: float = 0.0,
    ) -> Terms:
        """Fill in what is left out.

        Args:
            p: ranks.
            m: micro-batches.
            v: stages per rank.
            F: seconds of F.
            B: seconds of B; None means I + W.
            I: seconds of I; with W left out too, both are half of B, and 1 where B is left out as well.
            W: seconds of W.
            overlap: seconds of F&B; None means F + B, one after the other.
            c: seconds of one hop.

        Raises:
            PipelabError: only one of I and W, or as `Terms`.
        """
        if (I is None) != (W is None):
            raise PipelabError("Give both I and W, or neither: the other one does not follow from it.")
        F = _seconds("F", F)
        B = None if B is None else _seconds("B", B)
        if I is None or W is None:
            I = W = 1.0 if B is None else B / 2  # noqa: E741
        B = _seconds("I", I) + _seconds("W", W) if B is None else B
        return cls(p, m, v, F, I, W, B, F + B if overlap is None else overlap, c)

    def about(self, words: str) -> str:
        """The values of those terms that are named in words, such as "p=4, m=2"."""
        named = {"overlap" if name == "F&B" else name for name in re.findall(r"F&B|\b[a-zA-Z]\b", words)}
        return ", ".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if f.name in named)


class Seconds(TypedDict, total=False):
    """What formulas take by keyword; all in seconds."""

    I: float | None  # noqa: E741
    W: float | None
    overlap: float | None
    c: float


def _seconds(name: str, given: object) -> float:
    if not isinstance(given, Real) or isinstance(given, bool):
        raise TypeError(f"{name} must be a number of seconds, not {given!r}.")
    try:
        seconds = float(given)
    except OverflowError:
        raise PipelabError(f"{name} is too large; it must be finite.") from None
    if not 0 <= seconds < math.inf:
        raise PipelabError(f"{name} is {given!r}; it must be finite and not negative.")
    return seconds


@dataclass(frozen=True)
class Assumption:
    """What must be so for a formula to hold.

    Attributes:
        words: such as "m >= p".
        test: whether it is so.
    """

    words: str
    test: Callable[[Terms], bool]


def at_most(a: float, b: float) -> bool:
    """a <= b, up to rounding: 0.1 + 0.2 is at most 0.3."""
    return a <= b or math.isclose(a, b)


EQUAL_SECONDS = Assumption("F = I = W", lambda t: math.isclose(t.F, t.I) and math.isclose(t.I, t.W))


def _work(t: Terms) -> float:
    return t.m * t.v * (t.F + t.B)


@dataclass(frozen=True)
class ClosedForm:
    """What is known about one schedule without running it.

    Attributes:
        assumptions: when it holds, in words.
        idle: seconds that a rank idles: of all ranks, or of the worst one (`assumptions` say so).
        peak: the most micro-batches in flight on rank r (chunks, where v > 1).
        conditions: those of the assumptions that the terms can tell.
        work: seconds that this rank is busy.
        stages_per_rank: the least and the most v; None for no bound. Where v is left out, it is the least.

    Example:
        >>> form = ClosedForm("equal stages", lambda t: (t.p - 1) * (t.F + t.B), lambda t, r: t.m)
        >>> form.makespan(4, 8), form.bubble_fraction(4, 8) == (4 - 1) / (8 + 4 - 1)
        (33.0, True)
    """

    assumptions: str
    idle: Callable[[Terms], float]
    peak: Callable[[Terms, int], int]
    conditions: tuple[Assumption, ...] = ()
    work: Callable[[Terms], float] = _work
    stages_per_rank: tuple[int, int | None] = (1, None)

    @classmethod
    def where(
        cls,
        *conditions: Assumption,
        idle: Callable[[Terms], float],
        peak: Callable[[Terms, int], int],
        work: Callable[[Terms], float] = _work,
        also: str = "equal stages",
    ) -> ClosedForm:
        """A form whose words of assumption are those of its conditions.

        Args:
            *conditions: what the terms can tell.
            idle: as the attribute.
            peak: as the attribute.
            work: as the attribute.
            also: what is assumed besides.
        """
        words = "; ".join([also, *(condition.words for condition in conditions)])
        return cls(words, idle, peak, conditions, work)

    def bounded(self, stages_per_rank: tuple[int, int | None]) -> ClosedForm:
        """The form of a schedule that takes only some v: that is one more assumption.

        Args:
            stages_per_rank: as the attribute.
        """
        least, most = stages_per_rank
        if stages_per_rank == self.stages_per_rank:
            return self
        if least == most:
            words = f"v = {least}"
        else:
            words = f"v >= {least}" if most is None else f"{least} <= v <= {most}"
        bounds = Assumption(words, lambda t: least <= t.v <= (t.v if most is None else most))
        return replace(
            self,
            assumptions=f"{self.assumptions}; {words}",
            conditions=(bounds, *self.conditions),
            stages_per_rank=stages_per_rank,
        )

    def bubble_time(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> float:
        """Idle seconds of a rank.

        Args:
            p: ranks.
            m: micro-batches.
            v: stages per rank; None is the least that the schedule takes.
            F: seconds of F.
            B: seconds of B; None means I + W.
            **seconds: any of I, W, overlap and c, as in `Terms.of`.

        Raises:
            PipelabError: sizes or seconds that `Terms` refuses.
            TypeError: the same, or an unknown keyword.
        """
        return float(self.idle(self._terms(p, m, v, F, B, seconds)))

    def busy(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> float:
        """Seconds that this rank computes; arguments as of `bubble_time`."""
        return float(self.work(self._terms(p, m, v, F, B, seconds)))

    def makespan(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> float:
        """Seconds of the whole step, busy and idle; arguments as of `bubble_time`."""
        terms = self._terms(p, m, v, F, B, seconds)
        return float(self.work(terms) + self.idle(terms))

    def bubble_fraction(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> float:
        """Idle / makespan, the GPipe paper's bubble; arguments as of `bubble_time`."""
        whole = self.makespan(p, m, v, F, B, **seconds)
        return self.bubble_time(p, m, v, F, B, **seconds) / whole if whole else 0.0

    def bubble_ratio(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> float:
        """Idle / busy, the Megatron paper's bubble; arguments as of `bubble_time`."""
        busy, idle = self.busy(p, m, v, F, B, **seconds), self.bubble_time(p, m, v, F, B, **seconds)
        return idle / busy if busy else (math.inf if idle else 0.0)

    def peak_in_flight(self, p: int, m: int, v: int | None = None) -> tuple[int, ...]:
        """For each rank the most micro-batches in flight (chunks, where v > 1)."""
        terms = self._terms(p, m, v, 1.0, None, {})
        return tuple(self.peak(terms, rank) for rank in range(terms.p))

    def holds(
        self,
        p: int,
        m: int,
        v: int | None = None,
        F: float = 1.0,
        B: float | None = None,
        **seconds: Unpack[Seconds],
    ) -> str:
        """Whether the assumptions hold that the terms can tell; arguments as of `bubble_time`.

        Sizes that the schedule does not take break one of them. Options of a schedule, such as num_slices, are no
        terms: the formula is that of their defaults, as its assumptions say.

        Returns:
            "" where they hold, else a sentence that names the first that does not.

        Example:
            >>> import pipelab as pp
            >>> pp.theory.closed_form("zb-h1").holds(4, 2)
            'The formula assumes m >= p; here p=4, m=2. Simulate it.'
        """
        terms = self._terms(p, m, v, F, B, seconds)
        for assumption in self.conditions:
            if not assumption.test(terms):
                return f"The formula assumes {assumption.words}; here {terms.about(assumption.words)}. Simulate it."
        return ""

    def _terms(self, p: int, m: int, v: int | None, F: float, B: float | None, seconds: Seconds) -> Terms:
        known = Seconds.__annotations__
        reject_unknown("closed form", (key for key in seconds if key not in known), known)
        return Terms.of(p, m, self.stages_per_rank[0] if v is None else v, F, B, **seconds)
