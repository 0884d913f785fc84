"""Schedules found by search, for the costs that one has (arXiv 2401.10241, section 3).

A portfolio, under one cap on what a rank holds: the closed forms that keep the cap; list scheduling with backwards
first, W in the gaps, and several limits on how far forwards may run ahead (`Jobs.ahead`: the length of the warm-up and
so the repeated block) with several degrees of patience; a search over those limits, rank by rank; a local search on
the critical path of the best. What the simulator finds shortest is taken. It stops early where it meets the lower
bound. All of it is plain Python with a fixed number of tries: at 8 ranks and 64 micro-batches below a second, at 16
and 256 a few; and the same arguments give the same schedule. Steps of more than `_SEARCHED` are not searched: there the
best closed form that keeps the cap is taken, or one order by list scheduling where none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, product

from pipelab.core.actions import CODES, KINDS, Kind
from pipelab.core.costs import Costs
from pipelab.core.dispatch import dispatch
from pipelab.core.jobs import Jobs
from pipelab.core.list_schedule import by_rule, plan_jobs
from pipelab.core.local_search import Timing, Workplace
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import linear, zero_bubble
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.simulation import simulate

__all__ = ["FAMILY", "search_from"]

_PATIENCE: tuple[tuple[float, ...], ...] = (
    (),
    (0, 0, 1),
    (0, 0, 0.5),
    (1, 0, 1),
    (0.5, 0, 1),
    (0, 0, 1.5),
    (0.5, 0.5, 0.5),
)
"""How long F, I and W wait for something more urgent; see `dispatch`. The most fruitful first."""

_DISPATCHES = (12, 60, 60_000)
"""The least and the most orders that are made by list scheduling, and how many actions they may have together."""

_TRIES = (30, 1500, 300_000)
"""The same for the moves of the local search."""

_KEPT = 3
"""From how many of the shortest orders each search goes on."""

_SEARCHED = (256, 16_384)
"""Up to how many ranks, and actions, a step is searched; beyond them a search would take minutes."""

_KNOWN = ("1f1b", "zb-h1", "zb-h2")

_CLOSE = 1e-9
"""Two makespans this near are one: sums of decimals are not exact."""


def _count(limits: tuple[int, int, int], actions: int) -> int:
    least, most, together = limits
    return max(least, min(most, together // actions))


def _search(jobs: Jobs, known: Sequence[Schedule], name: str) -> Schedule:
    """Find a short order.

    Args:
        jobs: F, I and W of all stages, their costs and caps.
        known: schedules of the same stages and micro-batches: those that keep the caps are where the search begins,
            and how far each of them runs ahead is tried as a limit for list scheduling.
        name: of the result.

    Returns:
        The shortest found, by the simulator under `jobs.costs`.
    """
    place, ranks = Workplace(jobs), range(jobs.placement.num_ranks)
    numbers = [_numbers(jobs, one) for one in known]
    fits = [all(map(place.fits, ranks, orders)) for orders in numbers]
    if len(ranks) > _SEARCHED[0] or len(jobs.columns[0]) > _SEARCHED[1]:
        fitting = [one for one, fit in zip(known, fits, strict=True) if fit]
        return _shortest(fitting or [_dispatched(jobs)], jobs, name)
    timings = [place.time(orders) for orders, fit in zip(numbers, fits, strict=True) if fit]
    found = [timing for timing in timings if timing is not None]
    if not any(_is_best(timing, jobs) for timing in found):
        found += _listed(place, [_ahead(jobs, orders) for orders in numbers])
    starts = sorted({timing.orders: timing for timing in found}.values(), key=_makespan)[:_KEPT]
    tries = _count(_TRIES, len(jobs.columns[0])) // _KEPT
    best = starts[0]
    for seed, timing in enumerate(starts):
        if not _is_best(best, jobs):
            best = min(best, place.improve(timing, tries, seed, jobs.lower_bound), key=_makespan)
    searched = Schedule.from_table(jobs.table(best.orders), jobs.placement)
    whole = [
        one for one, fit in zip(known, fits, strict=True) if fit and (one.table.kind == CODES[Kind.B]).any()
    ]
    return _shortest([searched, *whole], jobs, name)


def _shortest(found: Iterable[Schedule], jobs: Jobs, name: str) -> Schedule:
    return min(found, key=lambda one: simulate(one, jobs.costs).makespan).with_name(name)


def _dispatched(jobs: Jobs) -> Schedule:
    orders = dispatch(jobs, by_rule(jobs, "backward-first"), ()).orders
    return Schedule.from_table(jobs.table(orders), jobs.placement)


def _makespan(timing: Timing) -> float:
    return timing.makespan


def _is_best(timing: Timing, jobs: Jobs) -> bool:
    """Whether there is nothing left to gain."""
    return timing.makespan <= jobs.lower_bound * (1 + _CLOSE)


def _numbers(jobs: Jobs, schedule: Schedule) -> list[list[int]]:
    """The order of each rank as numbers of `jobs`; B is I and W."""
    number = {
        cell: n for n, cell in enumerate(zip(*(column.tolist() for column in jobs.columns), strict=True))
    }
    orders: list[list[int]] = [[] for _ in range(schedule.num_ranks)]
    table = schedule.table
    rows = (column.tolist() for column in (table.rank, table.kind, table.stage, table.microbatch))
    for rank, code, stage, microbatch in zip(*rows, strict=True):
        kinds = (1, 2) if KINDS[code] is Kind.B else (jobs.kinds.index(KINDS[code]),)
        orders[rank] += [number[kind, stage, microbatch] for kind in kinds]
    return orders


def _ahead(jobs: Jobs, orders: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The most forwards without their I that each rank has in an order, as far as the cap lets it."""
    steps = [(1, -1, 0)[kind] for kind in jobs.columns[0].tolist()]
    most = [max(accumulate(steps[number] for number in order)) for order in orders]
    return tuple(most if jobs.caps is None else map(min, most, jobs.caps))


def _listed(place: Workplace, limits: Iterable[tuple[int, ...]]) -> list[Timing]:
    """Orders by list scheduling, within a number of tries: every limit with every patience, then limits near the best.

    The limits near one differ from it by one on one rank; the search goes on from whatever is shorter.
    """
    jobs = place.jobs
    least, most = (
        jobs.chunks_of_one,
        jobs.caps or (jobs.num_microbatches * jobs.placement.num_stages,) * len(jobs.chunks_of_one),
    )
    urgency = by_rule(jobs, "backward-first")
    left = _count(_DISPATCHES, len(urgency))
    made: dict[tuple[tuple[int, ...], tuple[float, ...]], Timing] = {}

    def make(ahead: tuple[int, ...], patience: tuple[float, ...]) -> Timing:
        if (ahead, patience) not in made:
            made[ahead, patience] = place.timing(dispatch(replace(jobs, ahead=ahead), urgency, patience))
        return made[ahead, patience]

    def is_over() -> bool:
        return len(made) >= left or any(_is_best(timing, jobs) for timing in made.values())

    for patience, ahead in product(_PATIENCE, dict.fromkeys((*limits, most))):
        if not is_over():
            make(ahead, patience)
    for ahead, patience in sorted(made, key=lambda key: made[key].makespan)[:_KEPT]:
        rank, since = 0, 0  # since: how many neighbours were no better
        while since < 2 * len(ahead) and not is_over():
            near = list(ahead)
            near[rank // 2] = min(max(near[rank // 2] + (-1, 1)[rank % 2], least[rank // 2]), most[rank // 2])
            if make(tuple(near), patience).makespan < make(ahead, patience).makespan * (1 - _CLOSE):
                ahead, since = tuple(near), 0
            else:
                rank, since = (rank + 1) % (2 * len(ahead)), since + 1
    return list(made.values())


def search_from(
    known: Schedule,
    costs: Costs | None,
    max_in_flight: int | Iterable[int] | None = None,
    max_bytes: float | Iterable[float] | None = None,
) -> Schedule:
    """Find an order for given costs that is not longer than a known one.

    Args:
        known: a schedule of F, I and W; its name stays.
        costs: seconds per stage, links, bytes; None is F = I = W = 1 without latency.
        max_in_flight: the most chunks that a rank has in flight, one number or one a rank. None is what the known one
            takes; where `max_bytes` is given, none.
        max_bytes: the most bytes that a rank holds, weights included; needs `costs.bytes`.
    """
    if max_in_flight is None and max_bytes is None:
        max_in_flight = known.peak_in_flight
    jobs = plan_jobs(known.placement, known.num_microbatches, costs, True, max_in_flight, max_bytes)
    return _search(jobs, [known], known.name)


def _zb_auto(
    num_ranks: int,
    num_microbatches: int,
    stages_per_rank: int,
    *,
    costs: Costs | None = None,
    max_in_flight: int | Iterable[int] | None = None,
    max_bytes: float | Iterable[float] | None = None,
) -> Schedule:
    """ZB-1p and ZB-2p, and whatever lies between.

    Args:
        num_ranks: p.
        num_microbatches: m.
        stages_per_rank: 1.
        costs: seconds per stage, links, bytes; None is F = I = W = 1 without latency.
        max_in_flight: the most micro-batches that a rank has in flight, one number or one a rank. None is p (ZB-1p);
            where `max_bytes` is given, none.
        max_bytes: the most bytes that a rank holds, weights included; needs `costs.bytes`.
    """
    p, m = num_ranks, num_microbatches
    if max_in_flight is None and max_bytes is None:
        max_in_flight = p
    jobs = plan_jobs(Placement.linear(p), m, costs, True, max_in_flight, max_bytes)
    builders = [info.builder for info in (*linear.FAMILY, *zero_bubble.FAMILY) if info.name in _KNOWN]
    return _search(jobs, [builder(p, m, 1) for builder in builders], "zb-auto")


FAMILY = (
    ScheduleInfo(
        name="zb-auto",
        family="zero bubble",
        paper="ZB-1p and ZB-2p of Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 3",
        constraint="max_in_flight >= 1",
        formulas="searched for costs=; idle at least max over ranks of (work + shortest head + shortest tail) - work; "
        "peak at most max_in_flight (p where neither it nor max_bytes= is given), or max_bytes",
        description="Searched for your costs under a cap of micro-batches or bytes: p is ZB-1p, 2p is ZB-2p.",
        builder=_zb_auto,
        keywords=("costs", "max_in_flight", "max_bytes"),
    ),
)
