"""Every named schedule, one family a module, and the table of them all.

Menus, tables and error messages read `SCHEDULES`; nothing else in pipelab knows a schedule by its name.
"""

from __future__ import annotations

from pipelab.core.actions import MAX_CELLS, as_index
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import interleaved, linear
from pipelab.core.schedules.info import ScheduleInfo, ScheduleTable
from pipelab.errors import PipelabError, one_of, reject_unknown

__all__ = ["SCHEDULES", "ScheduleInfo", "ScheduleTable", "schedule"]

SCHEDULES = ScheduleTable((*linear.FAMILY, *interleaved.FAMILY))
"""Name -> what it is, where it comes from and how it is built."""


def schedule(
    name: str, *, num_ranks: int, num_microbatches: int, stages_per_rank: int = 1, **options: object
) -> Schedule:
    """Build a schedule by its name.

    Args:
        name: a key of `SCHEDULES`.
        num_ranks: p, at least 1.
        num_microbatches: m, at least 1.
        stages_per_rank: v, at least 1; more than 1 only where the schedule loops.
        **options: what this schedule takes beyond the sizes (`SCHEDULES[name].keywords`).

    Returns:
        The schedule, checked.

    Example:
        >>> import pipelab as pp
        >>> pp.schedule("1f1b", num_ranks=4, num_microbatches=8).num_stages
        4

    Raises:
        PipelabError: an unknown name, a size that is impossible or too large.
        TypeError: an unknown option.
    """
    one_of("schedule", name, SCHEDULES)
    info = SCHEDULES[name]
    reject_unknown(f"schedule {name!r}", (key for key in options if key not in info.keywords), info.keywords)
    p = _size("num_ranks", num_ranks)
    m = _size("num_microbatches", num_microbatches)
    v = _size("stages_per_rank", stages_per_rank)
    least, most = info.stages_per_rank
    if v < least or (most is not None and v > most):
        takers = [n for n, i in SCHEDULES.items() if i.stages_per_rank[0] <= v <= (i.stages_per_rank[1] or v)]
        raise PipelabError(
            f"{name} takes stages_per_rank={least}, not {v}. "
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
