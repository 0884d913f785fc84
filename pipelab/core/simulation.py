"""Simulation: the longest path through a schedule under given costs.

An action starts when its rank is free and its inputs have arrived. A transfer between two ranks takes latency
+ bytes / bandwidth and overlaps with compute; on one rank it is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from pipelab.core.costs import Costs
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

__all__ = ["simulate", "simulate_many"]


def simulate(schedule: Schedule, costs: Costs) -> Trace:
    """Predict when each action of a schedule starts and ends.

    Args:
        schedule: any schedule.
        costs: seconds per model stage; `schedule.num_model_stages` of them.

    Returns:
        A trace with the clock "simulated", in seconds, one row a cell.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> simulate(one, pp.Costs.uniform(4)).makespan
        33.0

    Raises:
        PipelabError: costs for another number of stages, or links for another number of ranks.
        TypeError: something else than a schedule and costs.
    """
    _check_fit(schedule, costs)
    durations = np.array(_durations(schedule, costs))[schedule.workload.which]
    found = _transfers(schedule, costs)
    transfers = found if isinstance(found, float) else np.array(found)
    start, end = schedule.recurrence.times(durations, transfers)
    return Trace.from_times(schedule, start, end, clock="simulated", bytes=costs.bytes)


def simulate_many(schedule: Schedule, costs_list: Iterable[Costs]) -> FloatArray:
    """Predict how long a schedule takes under each of many costs.

    Args:
        schedule: any schedule.
        costs_list: K costs.

    Returns:
        Shape (K,): makespans in seconds.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("gpipe", num_ranks=4, num_microbatches=8)
        >>> simulate_many(one, [pp.Costs.uniform(4), pp.Costs.uniform(4, latency=0.5)])
        array([33., 36.])

    Raises:
        PipelabError: as `simulate`, for the first of the costs that do not fit.
    """
    durations, transfers = [], []
    hops = len(schedule.workload.hops)
    for costs in costs_list:
        _check_fit(schedule, costs)
        durations.append(_durations(schedule, costs))
        moves = _transfers(schedule, costs)
        transfers.append([moves] * hops if isinstance(moves, float) else moves)
    if not durations:
        return np.zeros(0)
    moved = np.array(transfers, dtype=np.float64).reshape(len(transfers), hops)
    return schedule.recurrence.makespans(
        np.array(durations).T.copy(), schedule.workload.which, moved.T.copy()
    )


def _check_fit(schedule: Schedule, costs: Costs) -> None:
    for value, kind in ((schedule, Schedule), (costs, Costs)):
        if not isinstance(value, kind):
            raise TypeError(f"simulate() takes a Schedule and Costs, not {type(value).__name__}.")
    if costs.num_stages != schedule.num_model_stages:
        raise PipelabError(
            f"{schedule.name} has {schedule.num_model_stages} model stages, but the costs are for "
            f"{costs.num_stages}. Make them for schedule.num_model_stages = {schedule.num_model_stages}."
        )
    if costs.links.num_ranks not in (None, schedule.num_ranks):
        raise PipelabError(
            f"{schedule.name} has {schedule.num_ranks} ranks, but links are for {costs.links.num_ranks}."
        )


def _durations(schedule: Schedule, costs: Costs) -> list[float]:
    return [costs.seconds_of(work) for work in schedule.workload.works]


def _transfers(schedule: Schedule, costs: Costs) -> list[float] | float:
    """Seconds of each hop; one number where all are the same."""
    links = costs.links
    sizeless = costs.bytes is None or (isinstance(links.bandwidth, float) and math.isinf(links.bandwidth))
    if sizeless and isinstance(links.latency, float):
        return links.latency
    outputs = costs.bytes.outputs if costs.bytes is not None else (0.0,) * costs.num_stages
    return [links.seconds(source, target, outputs[stage]) for source, target, stage in schedule.workload.hops]
