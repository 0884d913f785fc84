"""A plan as the code that makes it, shortest where a name and sizes say all, complete where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.costs import Costs
    from pipelab.core.plan import Devices, Plan

__all__ = ["devices_code", "plan_code", "schedule_code"]


def plan_code(plan: Plan, prefix: str = "") -> str:
    """The call that makes an equal plan.

    Args:
        plan: any.
        prefix: before each name of pipelab, such as "pp."; without one, `from pipelab import *` is what it needs.
    """
    parts = [f"{prefix}{plan.split!r}", schedule_code(plan.schedule, prefix)]
    if plan.devices != "auto":
        parts.append(f"devices={devices_code(plan.devices, prefix)}")
    if plan.links is not None:
        parts.append(f"links={prefix}{plan.links!r}")
    return f"{prefix}Plan({', '.join(parts)})"


def schedule_code(order: Schedule, prefix: str = "", costs: Costs | None = None) -> str:
    """The call that makes an equal schedule: by its name and sizes, or with every cell.

    Args:
        order: any.
        prefix: as for `plan_code`.
        costs: for which it was searched, if it was; a line before must then name them `costs`.
    """
    sizes = f"num_ranks={order.num_ranks}, num_microbatches={order.num_microbatches}"
    if order.name in SCHEDULES and order.stages_per_rank != SCHEDULES[order.name].stages_per_rank[0]:
        sizes += f", stages_per_rank={order.stages_per_rank}"
    if _is_built(order):
        return f"{prefix}schedule({order.name!r}, {sizes})"
    if costs is not None and _is_built(order, costs=costs):
        return f"{prefix}schedule({order.name!r}, {sizes}, costs=costs)"
    return _table_code(order, prefix)


def devices_code(devices: Devices, prefix: str = "") -> str:
    """The value of `devices=`."""
    if isinstance(devices, str | tuple):
        return repr(devices if isinstance(devices, str) else list(devices))
    parts = [str(devices.count)]
    parts += [f"threads={devices.threads}"] if devices.threads != 1 else []
    parts += [f"device={devices.device!r}"] if devices.device != "cpu" else []
    return f"{prefix}virtual({', '.join(parts)})"


def _is_built(order: Schedule, **options: object) -> bool:
    """Whether `schedule` makes an equal one from the name, the sizes and these options."""
    info = SCHEDULES.get(order.name)
    if info is None or not set(options) <= set(info.keywords):
        return False
    try:
        built = schedule(
            order.name,
            num_ranks=order.num_ranks,
            num_microbatches=order.num_microbatches,
            stages_per_rank=order.stages_per_rank,
            **options,
        )
    except (PipelabError, TypeError):  # a table of one's own under a name that means something else
        return False
    return built == order


def _table_code(order: Schedule, prefix: str) -> str:
    parts = [repr([[str(action) for action in rank] for rank in order.orders])]
    if order.placement != Placement(order.placement.ranks):
        parts.append(_placement_code(order.placement, prefix))
    parts.append(f"name={order.name!r}")
    for name in ("minibatches", "slices"):
        parts += [f"{name}={getattr(order, name)}"] if getattr(order, name) != 1 else []
    return f"{prefix}Schedule({', '.join(parts)})"


def _placement_code(placement: Placement, prefix: str) -> str:
    parts = [repr(placement.ranks)]
    parts += [f"chains={placement.chains}"] if placement.chains != 1 else []
    parts += [f"tied={dict(placement.tied)!r}"] if placement.tied else []
    parts += [f"edges={placement.edges!r}"] if placement.edges is not None else []
    return f"{prefix}Placement({', '.join(parts)})"
