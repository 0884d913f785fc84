"""The virtual clock: actions that were timed one at a time, placed on as many ideal devices as one likes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelab.core.actions import KINDS
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate

Times = NDArray[np.float64]


def placed(
    schedule: Schedule, durations: Times, links: Links | None = None, bytes: StageBytes | None = None
) -> tuple[Times, Times]:
    """Start and end of each cell on devices of its own, free of contention.

    An action's duration is the median over the micro-batches of its kind and stage, so one late wake-up of the
    machine does not become a feature of the picture; nothing is run twice.

    Args:
        schedule: what was run.
        durations: shape (cells,): seconds, each action timed alone, in table order.
        links: between the virtual devices; None is free.
        bytes: that each stage sends; links of a finite bandwidth need them.
    """
    table = schedule.table
    stages = schedule.placement.num_stages
    medians = {}
    for code in np.unique(table.kind):
        for stage in range(stages):
            chosen = (table.kind == code) & (table.stage == stage)
            if chosen.any():
                medians[int(code), stage] = float(np.median(durations[chosen]))

    def per_stage(kind: str) -> tuple[float, ...]:
        code = [str(k) for k in KINDS].index(kind)
        return tuple(medians.get((code, stage), 0.0) for stage in range(stages))

    forward, backward = per_stage("F"), per_stage("B")
    costs = Costs(
        forward=forward,
        input_grad=backward,
        weight_grad=(0.0,) * stages,
        backward=backward,
        bytes=bytes,
        links=links or Links(),
    )
    trace = simulate(schedule, costs)
    cells = schedule.table.num_cells
    return trace.start[:cells], trace.end[:cells]  # without the transfers of links that take turns
