"""What `Pipeline` was given, as a plan."""

from __future__ import annotations

from collections.abc import Sequence

from pipelab.core.plan import Plan, VirtualDevices
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split


def as_plan(
    split: Split | Plan, schedule: Schedule | None, devices: str | Sequence[str] | VirtualDevices
) -> Plan:
    """The plan of a pipeline, from a plan or from its parts.

    Raises:
        TypeError: something is missing, or of another type.
        PipelabError: the parts do not fit together.
    """
    if not isinstance(devices, (str, VirtualDevices, Sequence)):
        raise TypeError(
            f"devices must be 'auto', one name a rank, or pp.virtual(n), not {type(devices).__name__}."
        )
    given = (
        devices if isinstance(devices, (str, VirtualDevices)) else tuple(str(device) for device in devices)
    )
    if isinstance(split, Plan):
        if schedule is not None:
            raise TypeError("A Plan brings its own schedule: Pipeline(model, plan, loss_fn=...).")
        return (
            split if given == "auto" else Plan(split.split, split.schedule, devices=given, links=split.links)
        )
    if not isinstance(split, Split):
        raise TypeError(
            f"split must be a Split such as pp.Split(['blocks.4']), or a Plan, not {type(split).__name__}."
        )
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "schedule is missing: Pipeline(model, split, pp.schedule('1f1b', num_ranks=..., num_microbatches=...))."
        )
    return Plan(split, schedule, devices=given)
