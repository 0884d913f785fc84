"""Simulation: the longest path through a schedule under given costs.

An action starts when its rank is free and its inputs have arrived. A transfer between two ranks takes latency
+ bytes / bandwidth and overlaps with compute; on one rank it is free. Links that carry one transfer at a time, sends
that block, updates that end the step and a feed are further lanes of the same recurrence (`lanes`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.costs import Costs
from pipelab.core.feed import Feed
from pipelab.core.intake import Intake, intake_of, taken_on_one_rank
from pipelab.core.lanes import Features, Lanes, lanes_of
from pipelab.core.max_plus import cycle_mean
from pipelab.core.recurrence import FloatArray, Recurrence
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

__all__ = ["Tasks", "period", "simulate", "simulate_many", "tasks_of"]


def simulate(schedule: Schedule, costs: Costs, *, feed: Feed | None = None) -> Trace:
    """Predict when each action of a schedule starts and ends.

    Args:
        schedule: any schedule.
        costs: seconds per model stage; `schedule.num_model_stages` of them. With `costs.update` an update of each
            stage on a rank ends the rank's step, unless the schedule runs no backward or updates by itself. A replica
            is updated on its rank as its original is on its own; the exchange of their gradients is not modelled.
        feed: how micro-batches are loaded and prepared; None has all of them ready from the start.

    Returns:
        A trace with the clock "simulated", in seconds, one row a cell; then rows for the transfers (where links are
        serial or blocking), for loading and preparing (with a feed) and for the updates.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> simulate(one, pp.Costs.uniform(4)).makespan
        33.0
        >>> simulate(one, pp.Costs.uniform(4), feed=pp.Feed(load=4.0)).makespan
        44.0

    Raises:
        PipelabError: costs for another number of stages, links for another number of ranks, or a feed for another
            number of micro-batches.
        TypeError: something else than a schedule, costs and a feed.
    """
    _check_fit("simulate", schedule, costs)
    features = _features(schedule, costs)
    if feed is not None or features.any:
        return _with_lanes(schedule, costs, features, feed)
    durations = np.array(_durations(schedule, costs))[schedule.workload.which]
    start, end = schedule.recurrence.times(durations, _transfers(schedule, costs))
    return Trace.from_times(schedule, start, end, clock="simulated", bytes=costs.bytes, costs=costs)


def simulate_many(schedule: Schedule, costs_list: Iterable[Costs]) -> FloatArray:
    """Predict how long a schedule takes under each of many costs.

    Args:
        schedule: any schedule.
        costs_list: K costs; those with the same lanes (see `Links`, and `update` in `Costs`) run at once.

    Returns:
        Shape (K,): makespans in seconds.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("gpipe", num_ranks=4, num_microbatches=8)
        >>> simulate_many(one, [pp.Costs.uniform(4), pp.Costs.uniform(4, latency=0.5)])
        array([33., 36.])

    Raises:
        PipelabError: as `simulate`, for the first of the costs that do not fit.
        TypeError: something else than a schedule and a list of costs.
    """
    if (
        not isinstance(schedule, Schedule)
        or isinstance(costs_list, Costs | str)
        or not isinstance(costs_list, Iterable)
    ):
        raise TypeError(
            "simulate_many() takes a Schedule and a list of Costs, in this order, not "
            f"{type(schedule).__name__} and {type(costs_list).__name__}. For one Costs call simulate()."
        )
    groups: dict[Features, list[int]] = {}
    many: list[Costs] = []
    for costs in costs_list:
        _check_fit("simulate_many", schedule, costs)
        groups.setdefault(_features(schedule, costs), []).append(len(many))
        many.append(costs)
    found = np.zeros(len(many))
    for features, numbers in groups.items():
        found[numbers] = _makespans(schedule, features, [many[k] for k in numbers])
    return found


def period(schedule: Schedule, costs: Costs, *, feed: Feed | None = None) -> float:
    """Seconds per step when steps follow each other without a barrier.

    A rank begins its next step when its own part of this one is over, updates included; what it computes needs only
    inputs of its own step. So a rank that ends early starts early, and the steps mesh as far as the order of the
    ranks lets them: 1F1B's period is its makespan, since rank 0 works on the step from its beginning to its end,
    while ZB-H2's is shorter (arXiv 2401.10241). Where ranks do not depend on each other (an ensemble), it is the
    period of the slowest. A feed goes on from step to step too: it loads and prepares for the next while there is
    room in the queue, and its workers take turns across steps.

    It is exact, not found by waiting for two steps that look alike: the longest chains from each rank's beginning to
    each rank's end make a max-plus matrix, whose critical cycle has the period as its mean (`max_plus`). That takes
    O(actions x lanes + lanes^3), where ranks are lanes, links that are serial, the loader, each worker, and each
    place in the queue (up to m).

    Args:
        schedule: any schedule of one mini-batch.
        costs: seconds per model stage; `schedule.num_model_stages` of them.
        feed: how micro-batches are loaded and prepared, the same in each step; None has all of them there in time.

    Returns:
        Seconds; at least the busiest rank's work, at most the makespan.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> period(one, pp.Costs.uniform(4)), period(one, pp.Costs.uniform(4), feed=pp.Feed(load=5.0))
        (33.0, 40.0)

    Raises:
        PipelabError: as `simulate`; or a schedule of several mini-batches, which follow each other within it already.
        TypeError: as `simulate`.
    """
    _check_fit("period", schedule, costs)
    if schedule.minibatches > 1:
        raise PipelabError(
            f"{schedule.name} holds {schedule.minibatches} mini-batches, which follow each other without a break "
            "within the table; chained tables would drain in between. For the seconds that a mini-batch takes, look "
            "at the time between late updates in simulate(schedule, costs)."
        )
    features = _features(schedule, costs)
    if feed is not None:
        intake, fed = _fed(schedule, costs, feed)
        lanes = lanes_of(schedule, features, intake, chained=True)
        seconds, moves = _lane_seconds(schedule, costs, fed)
        carried = lanes.recurrence.carries(seconds[lanes.which], moves)
        weights, steps = np.empty_like(carried), np.empty_like(lanes.ago)
        weights[:, lanes.follows], steps[lanes.follows] = carried, lanes.ago
        return cycle_mean(weights, steps)
    if features.any:
        lanes = lanes_of(schedule, features)
        seconds, moves = _lane_seconds(schedule, costs)
        return cycle_mean(lanes.recurrence.carries(seconds[lanes.which], moves))
    durations = np.array(_durations(schedule, costs))[schedule.workload.which]
    return cycle_mean(schedule.recurrence.carries(durations, np.array(_hop_seconds(schedule, costs))))


def _check_fit(caller: str, schedule: Schedule, costs: Costs) -> None:
    if not (isinstance(schedule, Schedule) and isinstance(costs, Costs)):
        given = f"{type(schedule).__name__} and {type(costs).__name__}"
        raise TypeError(f"{caller}() takes a Schedule and Costs, in this order, not {given}.")
    if costs.num_stages != schedule.num_model_stages:
        raise PipelabError(
            f"{schedule.name} has {schedule.num_model_stages} model stages, but the costs are for "
            f"{costs.num_stages}. Make them for schedule.num_model_stages = {schedule.num_model_stages}."
        )
    if costs.links.num_ranks not in (None, schedule.num_ranks):
        raise PipelabError(
            f"{schedule.name} has {schedule.num_ranks} ranks, but links are for {costs.links.num_ranks}."
        )


def _features(schedule: Schedule, costs: Costs) -> Features:
    links = costs.links
    updates = costs.update is not None and schedule.has_backward
    if updates:
        updates = not (schedule.table.kind == CODES[Kind.U]).any()
    return Features(links.serial and not links.blocking, links.blocking, updates)


def _durations(schedule: Schedule, costs: Costs) -> list[float]:
    return [costs.seconds_of(work) for work in schedule.workload.works]


def _transfers(schedule: Schedule, costs: Costs) -> FloatArray | float:
    """Seconds of each hop; one number where all are the same."""
    links = costs.links
    if not links.has_bandwidth and isinstance(links.latency, float):
        return links.latency
    return np.array(_hop_seconds(schedule, costs))


def _hop_seconds(schedule: Schedule, costs: Costs) -> list[float]:
    """Seconds of each hop; 0 for the last, which goes nowhere."""
    outputs = costs.bytes.outputs if costs.bytes is not None else (0.0,) * costs.num_stages
    return [
        costs.links.seconds(source, target, outputs[stage])
        for source, target, stage in schedule.workload.hops
    ]


def _lane_seconds(
    schedule: Schedule, costs: Costs, fed: tuple[FloatArray, ...] = ()
) -> tuple[FloatArray, FloatArray]:
    """Seconds of each class of `Lanes`, in its order, and of each hop."""
    hops = np.array(_hop_seconds(schedule, costs))
    updates = np.zeros(costs.num_stages) if costs.update is None else np.array(costs.update)
    seconds = np.concatenate([_durations(schedule, costs), hops, updates, *fed])
    return seconds, hops


def _makespans(schedule: Schedule, features: Features, many: list[Costs]) -> FloatArray:
    if features.any:
        lanes = lanes_of(schedule, features)
        pairs = [_lane_seconds(schedule, costs) for costs in many]
        seconds, moves = (np.array(column).T.copy() for column in zip(*pairs, strict=True))
        return lanes.recurrence.makespans(seconds, lanes.which, moves)
    hops = len(schedule.workload.hops)
    durations = np.array([_durations(schedule, costs) for costs in many])
    transfers = [np.broadcast_to(_transfers(schedule, costs), hops) for costs in many]
    return schedule.recurrence.makespans(
        durations.T.copy(), schedule.workload.which, np.array(transfers).T.copy()
    )


def _with_lanes(schedule: Schedule, costs: Costs, features: Features, feed: Feed | None) -> Trace:
    lanes, tasks = _run_lanes(schedule, costs, features, feed)
    start, end = tasks.start[tasks.task], tasks.end[tasks.task]
    cells = schedule.table.num_cells
    return Trace.from_times(
        schedule,
        start[:cells],
        end[:cells],
        clock="simulated",
        bytes=costs.bytes,
        costs=costs,
        feed=feed,
        lanes=lanes.names,
        others={**lanes.others, "start": start[cells:], "end": end[cells:]} if lanes.others else None,
    )


def _run_lanes(
    schedule: Schedule, costs: Costs, features: Features, feed: Feed | None
) -> tuple[Lanes, Tasks]:
    intake, fed = (None, ()) if feed is None else _fed(schedule, costs, feed)
    lanes = lanes_of(schedule, features, intake)
    seconds, moves = _lane_seconds(schedule, costs, fed)
    start, end = lanes.recurrence.times(seconds[lanes.which], moves)
    return lanes, Tasks(lanes.recurrence, lanes.task, start, end, moves)


@dataclass(frozen=True, eq=False, repr=False)
class Tasks:
    """When each task of a simulation runs, also those that have no row in the trace: for asking why.

    Attributes:
        recurrence: the tasks, and what each waits for.
        task: shape (rows,): the task of each row of the trace.
        start: shape (tasks,): seconds.
        end: shape (tasks,): seconds.
        moves: shape (hops,): seconds of the transfers that are no task themselves.
    """

    recurrence: Recurrence
    task: IntArray
    start: FloatArray
    end: FloatArray
    moves: FloatArray


def tasks_of(schedule: Schedule, costs: Costs, feed: Feed | None = None) -> Tasks:
    """Run a simulation once more and keep all that it knows; `simulate` keeps the rows only.

    Args:
        schedule: any schedule.
        costs: seconds per model stage.
        feed: how micro-batches come, or None.

    Raises:
        PipelabError: as `simulate`.
    """
    _check_fit("simulate", schedule, costs)
    features = _features(schedule, costs)
    if feed is not None or features.any:
        return _run_lanes(schedule, costs, features, feed)[1]
    durations = np.array(_durations(schedule, costs))[schedule.workload.which]
    moves = np.array(_hop_seconds(schedule, costs))
    start, end = schedule.recurrence.times(durations, moves)
    return Tasks(schedule.recurrence, np.arange(schedule.table.num_cells), start, end, moves)


def _fed(schedule: Schedule, costs: Costs, feed: Feed) -> tuple[Intake, tuple[FloatArray, FloatArray]]:
    """How micro-batches come, and seconds of loading and preparing them in that order."""
    if not isinstance(feed, Feed):
        raise TypeError(f"feed must be a Feed, not {type(feed).__name__}.")
    load, prepare = feed.seconds(schedule.num_microbatches)
    starts = (
        None if taken_on_one_rank(schedule) else simulate(schedule, costs).start[: schedule.table.num_cells]
    )
    intake = intake_of(schedule, feed, starts)
    return intake, (load[intake.microbatch], prepare[intake.microbatch])
