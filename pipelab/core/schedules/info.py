"""What `SCHEDULES` says about each schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelab.core.schedule import Schedule

__all__ = ["ScheduleInfo"]


@dataclass(frozen=True)
class ScheduleInfo:
    """One schedule: where it comes from, what it promises, how it is built.

    Attributes:
        name: how `schedule(name, ...)` calls it.
        family: which idea it belongs to.
        paper: where it was published, or "" where it is folklore.
        constraint: what the sizes must fulfil, in words; "" for none.
        formulas: idle time and peak in formulas of p ranks, m micro-batches, v stages per rank, rank r.
        description: one line.
        builder: called with (num_ranks, num_microbatches, stages_per_rank, **options).
        stages_per_rank: the least and the most v; None for no bound.
        keywords: the options that the builder takes.
    """

    name: str
    family: str
    paper: str
    constraint: str
    formulas: str
    description: str
    builder: Callable[..., Schedule]
    stages_per_rank: tuple[int, int | None] = (1, 1)
    keywords: tuple[str, ...] = ()
