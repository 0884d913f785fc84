"""Small changes to an order by hand. Each makes a new schedule, which is checked like any other."""

from __future__ import annotations

from pipelab.core.actions import Action
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError

__all__ = ["move", "swap"]

_EDITED = " (edited)"


def swap(schedule: Schedule, first: Action | str, second: Action | str) -> Schedule:
    """Exchange two cells of one rank; see `Schedule.swap`."""
    (rank, a), (other_rank, b) = _find(schedule, first), _find(schedule, second)
    if rank != other_rank:
        raise PipelabError(
            f"{schedule.name}: {first} is on rank {rank} and {second} on rank {other_rank}; only cells of one rank "
            f"can be exchanged, since each stage stays on its rank."
        )
    orders = [list(order) for order in schedule.orders]
    orders[rank][a], orders[rank][b] = orders[rank][b], orders[rank][a]
    return _with_orders(schedule, orders)


def move(
    schedule: Schedule, action: Action | str, before: Action | str | None, after: Action | str | None
) -> Schedule:
    """Take a cell out and put it elsewhere on its rank; see `Schedule.move`."""
    target = after if before is None else before
    if target is None or (before is not None and after is not None):
        raise TypeError("move() takes either before= or after=, a cell of the same rank.")
    (rank, a), (other_rank, b) = _find(schedule, action), _find(schedule, target)
    if rank != other_rank:
        raise PipelabError(
            f"{schedule.name}: {action} is on rank {rank} and {target} on rank {other_rank}; a cell stays on its rank."
        )
    orders = [list(order) for order in schedule.orders]
    cell = orders[rank].pop(a)
    orders[rank].insert(b - (a < b) + (after is not None and a != b), cell)
    return _with_orders(schedule, orders)


def _find(schedule: Schedule, action: Action | str) -> tuple[int, int]:
    """The rank and the position of a cell."""
    wanted = action if isinstance(action, Action) else Action.parse(action)
    for rank, order in enumerate(schedule.orders):
        if wanted in order:
            return rank, order.index(wanted)
    for order in schedule.orders:
        for cell in order:
            if wanted in cell.members:
                raise PipelabError(f"{wanted} is a member of {cell} in {schedule.name}; name the whole cell.")
    raise PipelabError(f"{wanted} is not in {schedule.name}.")


def _with_orders(schedule: Schedule, orders: list[list[Action]]) -> Schedule:
    return Schedule(
        orders,
        schedule.placement,
        name=schedule.name
        if schedule.name.endswith(_EDITED)
        else schedule.name[: 200 - len(_EDITED)] + _EDITED,
        minibatches=schedule.minibatches,
        slices=schedule.slices,
    )
