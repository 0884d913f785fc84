"""The virtual clock: actions that were timed one at a time, placed on as many ideal devices as one likes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelab.core.actions import CODES, Kind
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate

Times = NDArray[np.float64]

SAMPLES = 5
"""Of fewer samples a median still follows single late wake-ups of the machine."""


def steps_needed(schedule: Schedule) -> int:
    """How many steps have at least `SAMPLES` actions of each kind and model stage."""
    table, model_stage = schedule.table, np.array(schedule.placement.model_stages)
    groups = np.stack([table.kind, model_stage[table.stage]])
    _, counts = np.unique(groups, axis=1, return_counts=True)
    return math.ceil(SAMPLES / int(counts.min()))


def placed(
    schedule: Schedule, durations: Times, links: Links | None = None, bytes: StageBytes | None = None
) -> tuple[Times, Times]:
    """Start and end of each cell on devices of its own, free of contention.

    An action's duration is the median over all of its kind and model stage, so one late wake-up of the machine does
    not become a feature of the picture. What a cell overlaps ran one after the other; such cells are a kind.

    Args:
        schedule: what was run.
        durations: shape (steps, cells) or (cells,): seconds, each action timed alone, in table order.
        links: between the virtual devices; None is free.
        bytes: that each stage sends; links of a finite bandwidth need them.
    """
    table, count = schedule.table, schedule.num_model_stages
    stage = np.array(schedule.placement.model_stages)[table.cell_stages]

    def medians(kind: Kind) -> tuple[float, ...] | None:
        own = table.cell_kinds == CODES[kind]
        if not own.any():
            return None
        samples = [durations[..., own & (stage == s)] for s in range(count)]
        return tuple(float(np.median(one)) if one.size else 0.0 for one in samples)

    none = (0.0,) * count
    costs = Costs(
        forward=medians(Kind.F) or none,
        input_grad=medians(Kind.I) or none,
        weight_grad=medians(Kind.W) or none,
        backward=medians(Kind.B),
        update=medians(Kind.U),
        overlap=medians(Kind.OVERLAP),
        bytes=bytes,
        links=links or Links(),
    )
    trace = simulate(schedule, costs)
    cells = table.num_cells
    return trace.start[:cells], trace.end[:cells]  # without the transfers of links that take turns
