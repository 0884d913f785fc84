"""Every named schedule, one family a module, and the table of them all.

Menus, tables and error messages read `SCHEDULES`; nothing else in pipelab knows a schedule by its name.
"""

from __future__ import annotations

from typing import Any

from pipelab.core.actions import MAX_CELLS, as_index
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import (
    asynchronous,
    automatic,
    bidirectional,
    building_block,
    interleaved,
    linear,
    sliced,
    v_shape,
    wave,
    zero_bubble,
)
from pipelab.core.schedules.info import ScheduleInfo, ScheduleTable
from pipelab.errors import PipelabError, one_of, reject_unknown

__all__ = ["SCHEDULES", "ScheduleInfo", "ScheduleTable", "schedule"]

SCHEDULES = ScheduleTable(
    (
        *linear.FAMILY,
        *interleaved.FAMILY,
        *zero_bubble.FAMILY,
        *v_shape.FAMILY,
        *bidirectional.FAMILY,
        *wave.FAMILY,
        *building_block.FAMILY,
        *automatic.FAMILY,
        *asynchronous.FAMILY,
        *sliced.FAMILY,
    )
)
"""Name -> what it is, where it comes from and how it is built."""


class _Required:
    """The default of an argument that has none, so that a misspelt one can be named before it is missed."""

    def __repr__(self) -> str:
        return "required"


_REQUIRED: Any = _Required()


def schedule(
    name: str,
    *,
    num_ranks: int = _REQUIRED,
    num_microbatches: int = _REQUIRED,
    stages_per_rank: int | None = None,
    **options: object,
) -> Schedule:
    """Build a schedule by its name.

    Args:
        name: a key of `SCHEDULES`.
        num_ranks: p, at least 1.
        num_microbatches: m, at least 1.
        stages_per_rank: v, at least 1; None takes the least that the schedule takes.
        **options: what this schedule takes beyond the sizes (`SCHEDULES[name].keywords`).

    Returns:
        The schedule, checked.

    Example:
        >>> import pipelab as pp
        >>> pp.schedule("1f1b", num_ranks=4, num_microbatches=8).num_stages
        4
        >>> pp.schedule("zb-v", num_ranks=4, num_microbatches=8).num_stages
        8

    Raises:
        PipelabError: an unknown name, a size that is impossible or too large.
        TypeError: a size that is missing, an unknown option.
    """
    one_of("schedule", name, SCHEDULES)
    info = SCHEDULES[name]
    sizes = {"num_ranks": num_ranks, "num_microbatches": num_microbatches}
    known = (*sizes, "stages_per_rank", *info.keywords)
    reject_unknown(f"schedule {name!r}", (key for key in options if key not in info.keywords), known)
    missing = [size for size, value in sizes.items() if value is _REQUIRED]
    if missing:
        raise TypeError(
            f"schedule({name!r}) needs {' and '.join(missing)} too, "
            f"such as schedule({name!r}, num_ranks=4, num_microbatches=8)."
        )
    p = _size("num_ranks", num_ranks)
    m = _size("num_microbatches", num_microbatches)
    least, most = info.stages_per_rank
    v = _size("stages_per_rank", least if stages_per_rank is None else stages_per_rank)
    if v < least or (most is not None and v > most):
        takers = [n for n, i in SCHEDULES.items() if i.stages_per_rank[0] <= v <= (i.stages_per_rank[1] or v)]
        raise PipelabError(
            f"{name} takes stages_per_rank={info.chunks}, not {v}. "
            f"Schedules that take {v}: {', '.join(takers) or 'none'}."
        )
    if p * m * v > MAX_CELLS:
        raise PipelabError(
            f"{name} with {p:,} ranks, {m:,} micro-batches and {v:,} stages per rank has at least "
            f"{p * m * v:,} cells; the limit is {MAX_CELLS:,} (2**22)."
        )
    return info.builder(p, m, v, **options)


def _size(name: str, value: int) -> int:
    number = as_index(name, value)
    if number < 1:
        raise PipelabError(f"{name} is {number}; it must be at least 1.")
    return number
