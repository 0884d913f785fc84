"""Which schedules the local engine runs. Without torch, so that a menu can ask before torch is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelab.core.actions import CODES, Action, Kind
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError

__all__ = ["check_scale", "check_schedule", "check_step", "check_updates"]


def check_schedule(schedule: Schedule) -> None:
    """Refuses what the local engine does not run.

    Raises:
        PipelabError: names the first action or property that is in the way.
    """
    placement = schedule.placement
    if schedule.slices > 1:
        raise PipelabError(
            f"The schedule {schedule.name!r} cuts each micro-batch into {schedule.slices} causal slices, which share "
            f"keys and values; a model that was written for whole sequences cannot run them one by one. It can be "
            f"simulated: pp.simulate(schedule, costs)."
        )
    if placement.num_model_stages * placement.chains != placement.num_stages:
        raise PipelabError(
            f"The schedule {schedule.name!r} runs {placement.chains} chains of stages that are not copies of one model "
            f"(`tied` names no original for some), such as an ensemble; a Pipeline has one model. Make one for each "
            f"model. The whole can be simulated: pp.simulate(schedule, costs)."
        )
    if placement.edges is not None:
        raise PipelabError(
            f"The schedule {schedule.name!r} has a stage graph of its own; the local engine runs a chain of stages. "
            f"It can be simulated: pp.simulate(schedule, costs)."
        )


def check_step(schedule: Schedule) -> None:
    """Refuses what is no single step: updates are the optimizer's, after it.

    Raises:
        PipelabError: names what is in the way, and what runs it.
    """
    remedy = "Run it with pp.train(pipe, batches, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))."
    if schedule.minibatches > 1:
        raise PipelabError(
            f"The schedule {schedule.name!r} is asynchronous: it updates the weights {schedule.minibatches} times "
            f"while micro-batches are in flight. pipe.step() runs one step and leaves the update to you. {remedy}"
        )
    updates = np.flatnonzero(schedule.table.kind == CODES[Kind.U])
    if len(updates):
        table, row = schedule.table, int(updates[0])
        action = Action(Kind.U, int(table.stage[row]), int(table.microbatch[row]))
        raise PipelabError(
            f"The schedule {schedule.name!r} holds {action}, an update of the weights. pipe.step() leaves the update "
            f"to you. {remedy}"
        )


def check_updates(schedule: Schedule) -> None:
    """Refuses what has no updates in flight: the loop over its steps is the user's.

    Raises:
        PipelabError: says how it is trained.
    """
    if not (schedule.table.kind == CODES[Kind.U]).any():
        raise PipelabError(
            f"The schedule {schedule.name!r} is synchronous: it holds no updates (U). Train with a loop over the "
            f"batches: optimizer.zero_grad(); pipe.step(x, y); optimizer.step()."
        )
    if schedule.placement.chains > 1:
        raise PipelabError(
            f"The schedule {schedule.name!r} updates the weights while {schedule.placement.chains} chains work on "
            f"copies of them; pp.train runs one chain. It can be simulated: pp.simulate(schedule, costs)."
        )


def check_scale(scale: Any) -> None:
    """Refuses a scale that is no function, such as the scaler itself or a number.

    Raises:
        TypeError: says what to pass.
    """
    if scale is not None and not callable(scale):
        raise TypeError(
            f"scale must be a function of the loss, such as scaler.scale, not {type(scale).__name__}."
        )
