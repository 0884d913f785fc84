"""Local search: judges orders as the simulator does, keeps caps, and never returns anything longer."""

from __future__ import annotations

import random

import pytest

from pipelab.core.costs import Costs, Links
from pipelab.core.dispatch import dispatch
from pipelab.core.jobs import Jobs
from pipelab.core.list_schedule import by_rule, plan_jobs
from pipelab.core.local_search import Timing, Workplace
from pipelab.core.lower_bound import lower_bound
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate

PLACES = [Placement.linear(3), Placement.v(2), Placement.looped(2, 2), Placement.bidirectional(2)]


def some_jobs(seed: int, latency: float = 0.4) -> Jobs:
    rng = random.Random(seed)
    placement = PLACES[seed % len(PLACES)]
    columns = [tuple(rng.uniform(0.5, 2) for _ in range(placement.num_model_stages)) for _ in range(3)]
    ranks = range(placement.num_ranks)
    links = Links([[latency * rng.uniform(0.5, 1.5) for _ in ranks] for _ in ranks])
    costs = Costs(*columns, links=links)
    return plan_jobs(placement, 6, costs, True, 2 * placement.num_stages // placement.num_ranks, None)


def listed(jobs: Jobs, priority: str = "oldest-first") -> Timing:
    return Workplace(jobs).timing(dispatch(jobs, by_rule(jobs, priority)))


def as_schedule(jobs: Jobs, timing: Timing) -> Schedule:
    return Schedule.from_table(jobs.table(timing.orders), jobs.placement)


@pytest.mark.parametrize("seed", range(12))
def test_it_judges_orders_as_the_simulator_does(seed):
    jobs = some_jobs(seed)
    timing = listed(jobs)
    again = Workplace(jobs).time(timing.orders)
    assert again.makespan == pytest.approx(timing.makespan)
    assert again.end == pytest.approx(timing.end)
    assert timing.makespan == pytest.approx(simulate(as_schedule(jobs, timing), jobs.costs).makespan)


@pytest.mark.parametrize("seed", range(12))
def test_what_it_finds_is_within_the_caps_and_no_longer(seed):
    jobs = some_jobs(seed)
    before = listed(jobs, "forward-first")
    after = Workplace(jobs).improve(before, 200, seed)
    one = as_schedule(jobs, after)
    assert after.makespan == pytest.approx(simulate(one, jobs.costs).makespan)
    assert jobs.lower_bound - 1e-9 <= after.makespan <= before.makespan
    assert all(peak <= cap for peak, cap in zip(one.peak_in_flight, jobs.caps, strict=True))
    assert after == Workplace(jobs).improve(before, 200, seed)


def test_it_does_find_something():
    before = [listed(some_jobs(n), "forward-first") for n in range(12)]
    after = [Workplace(some_jobs(n)).improve(timing, 200, 0) for n, timing in enumerate(before)]
    assert sum(b.makespan < 0.999 * a.makespan for a, b in zip(before, after, strict=True)) >= 5


def test_orders_that_wait_in_a_circle_have_no_time():
    jobs = plan_jobs(Placement.linear(2), 1, None, False, None, None)
    assert Workplace(jobs).time([[0, 2], [1, 3]]).makespan == 6
    assert Workplace(jobs).time([[2, 0], [1, 3]]) is None


def test_it_stops_where_it_is_good_enough_or_out_of_tries():
    jobs = some_jobs(0)
    before = listed(jobs, "forward-first")
    assert Workplace(jobs).improve(before, 200, 0, enough=before.makespan) is before
    assert Workplace(jobs).improve(before, 0, 0) is before


@pytest.mark.parametrize("seed", range(12))
def test_the_lower_bound_of_jobs_is_that_of_their_schedules(seed):
    jobs = some_jobs(seed, latency=0.0)
    one = as_schedule(jobs, listed(jobs))
    assert jobs.lower_bound == pytest.approx(lower_bound(one, simulate(one, jobs.costs).durations))
    assert some_jobs(seed, latency=0.5).lower_bound >= jobs.lower_bound
