"""Schedules found by search: as short as the optimum where that can be computed, within every cap, never longer than
the closed forms that keep the cap."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise, product

import pytest

from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.list_schedule import plan_jobs
from pipelab.core.local_search import Workplace
from pipelab.core.lower_bound import lower_bound
from pipelab.core.memory import peaks
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.schedules.automatic import _numbers
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

from .exact_search import ExactSearch

SIZES = list(product((1, 2, 3, 4, 6), (1, 2, 3, 5, 9)))


def auto(p: int, m: int, **options: object) -> Schedule:
    return schedule("zb-auto", num_ranks=p, num_microbatches=m, **options)


def some_costs(rng: random.Random, stages: int, latency: float = 0.0) -> Costs:
    columns = [tuple(round(rng.uniform(0.6, 2.0), 1) for _ in range(stages)) for _ in range(3)]
    return Costs(*columns, links=Links(latency))


def makespan(one: Schedule, costs: Costs) -> float:
    return simulate(one, costs).makespan


@dataclass(frozen=True)
class Case:
    p: int
    m: int
    cap: int
    costs: Costs

    @property
    def optimum(self) -> float:
        seconds = (list(self.costs.forward), list(self.costs.input_grad), list(self.costs.weight_grad))
        return ExactSearch(self.m, seconds, self.costs.links.latency, [self.cap] * self.p).run()


def small_cases() -> list[Case]:
    rng, cases = random.Random(1), []
    for _ in range(40):
        p = rng.choice((2, 3, 3, 4))
        m = rng.choice((3, 4, 5) if p == 4 else (3, 4, 5, 6))
        equal = Costs.uniform(p, 1.0, rng.choice((1.0, 1.3, 1.7)), rng.choice((0.5, 0.8, 1.0, 1.4)))
        latency = rng.choice((0.0, 0.0, 0.3))
        uneven = some_costs(rng, p, latency)
        cases.append(Case(p, m, rng.choice((p, p, p + 1, 2 * p)), rng.choice((equal, uneven, uneven))))
    return cases


def count_optimal(cases: list[Case], optima: list[float]) -> int:
    found = [
        makespan(auto(case.p, case.m, costs=case.costs, max_in_flight=case.cap), case.costs) for case in cases
    ]
    assert all(one >= best - 1e-9 for one, best in zip(found, optima, strict=True))
    return sum(one <= best + 1e-9 for one, best in zip(found, optima, strict=True))


def test_the_optimum_of_small_cases_is_found_and_most_of_it_without_local_search(monkeypatch):
    cases = small_cases()
    optima = [case.optimum for case in cases]
    assert count_optimal(cases, optima) == 40
    monkeypatch.setattr(Workplace, "improve", lambda self, timing, *rest: timing)
    assert count_optimal(cases, optima) >= 33


def test_the_exact_search_knows_what_is_known():
    unit = ([1.0] * 3,) * 3
    assert ExactSearch(3, unit, 0.0, [3] * 3).run() == 3 * 3 + 2  # ZB-H1, and the bound
    assert ExactSearch(4, ([1.0, 1.0],) * 3, 0.0, [1, 1]).run() == 4 * 5  # one at a time: there, back and W


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_every_size_runs_within_p_and_is_no_longer_than_what_fits(p, m):
    one, costs = auto(p, m), Costs.uniform(p)
    assert sorted(one.table.texts()) == sorted(
        f"{s}{k}{i}" for s in range(p) for k in "FIW" for i in range(m)
    )
    assert max(one.peak_in_flight) <= p
    bound = lower_bound(one, simulate(one, costs).durations)
    others = [makespan(schedule(name, num_ranks=p, num_microbatches=m), costs) for name in ("1f1b", "zb-h1")]
    assert bound <= makespan(one, costs) <= min(others)
    assert m < p or makespan(one, costs) == bound == 3 * m + p - 1


@pytest.mark.parametrize("seed", range(12))
def test_a_looser_cap_never_hurts_and_every_cap_holds(seed):
    rng = random.Random(seed)
    p, m = rng.randint(2, 5), rng.randint(3, 9)
    costs = some_costs(rng, p, rng.choice((0.0, 0.5)))
    spans = []
    for cap in (1, 2, p, 2 * p):
        one = auto(p, m, costs=costs, max_in_flight=cap)
        assert max(one.peak_in_flight) <= cap
        spans.append(makespan(one, costs))
    assert all(tight * 1.02 >= loose for tight, loose in pairwise(spans))
    mixed = [rng.randint(1, p) for _ in range(p)]
    one = auto(p, m, costs=costs, max_in_flight=mixed)
    assert all(peak <= cap for peak, cap in zip(one.peak_in_flight, mixed, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_with_twice_the_memory_it_is_no_longer_than_zb_h2(seed):
    rng = random.Random(seed)
    p, m = rng.randint(2, 5), rng.randint(4, 12)
    costs = some_costs(rng, p)
    h2 = makespan(schedule("zb-h2", num_ranks=p, num_microbatches=m), costs)
    assert makespan(auto(p, m, costs=costs, max_in_flight=2 * p - 1), costs) <= h2 + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_bytes_are_a_cap_of_their_own(seed):
    rng = random.Random(seed)
    p, m = rng.randint(2, 4), rng.randint(3, 7)
    held = StageBytes(*(tuple(float(rng.randint(1, 9)) for _ in range(p)) for _ in range(3)))
    columns = [tuple(rng.uniform(0.6, 2) for _ in range(p)) for _ in range(3)]
    costs = Costs(*columns, bytes=held)
    least = max(2 * w + a for w, a in zip(held.parameters, held.activations, strict=True))
    for cap in (least, least + 7, least + 40):
        one = auto(p, m, costs=costs, max_bytes=cap)
        assert peaks(one, held).max() <= cap
    both = auto(p, m, costs=costs, max_bytes=least + 40, max_in_flight=2)
    assert peaks(both, held).max() <= least + 40 and max(both.peak_in_flight) <= 2


def test_without_a_cap_it_keeps_to_p_and_twice_that_is_shorter_where_there_is_latency():
    costs = Costs.uniform(4, latency=0.5)
    least = auto(4, 12, costs=costs)
    assert max(least.peak_in_flight) <= 4 and least == auto(4, 12, costs=costs, max_in_flight=4)
    assert makespan(auto(4, 12, costs=costs, max_in_flight=8), costs) < makespan(least, costs)


@pytest.mark.parametrize(("name", "early"), [("1f1b", True), ("zb-h1", False), ("zb-h2", False)])
def test_what_is_known_is_judged_as_it_is_and_a_b_as_i_and_then_w(name, early):
    jobs = plan_jobs(Placement.linear(4), 8, None, True, None, None)
    known = schedule(name, num_ranks=4, num_microbatches=8)
    judged = Workplace(jobs).time(_numbers(jobs, known)).makespan
    assert (
        judged < makespan(known, Costs.uniform(4)) if early else judged == makespan(known, Costs.uniform(4))
    )


def test_a_whole_backward_that_is_much_cheaper_is_kept_whole():
    costs = Costs((1.0,) * 3, (1.0,) * 3, (1.0,) * 3, backward=(0.5,) * 3)
    one = auto(3, 5, costs=costs)
    assert one.orders == schedule("1f1b", num_ranks=3, num_microbatches=5).orders and one.name == "zb-auto"


def test_the_same_arguments_give_the_same_schedule():
    costs = some_costs(random.Random(7), 4, 0.3)
    assert auto(4, 9, costs=costs) == auto(4, 9, costs=costs)


@pytest.mark.parametrize("seed", range(6))
def test_zb_v_by_costs_is_no_longer_than_its_closed_form_nor_larger(seed):
    rng = random.Random(seed)
    p, m = rng.randint(1, 4), rng.randint(2, 9)
    costs = some_costs(rng, 2 * p, rng.choice((0.0, 0.3)))
    closed, found = (
        schedule("zb-v", num_ranks=p, num_microbatches=m, **options) for options in ({}, {"costs": costs})
    )
    assert (found.name, found.placement) == (closed.name, closed.placement)
    assert makespan(found, costs) <= makespan(closed, costs) + 1e-9
    assert all(a <= b for a, b in zip(found.peak_in_flight, closed.peak_in_flight, strict=True))
    tight = schedule("zb-v", num_ranks=p, num_microbatches=m, costs=costs, max_in_flight=p + 1)
    assert max(tight.peak_in_flight) <= p + 1


def test_zb_v_by_costs_gains_where_f_i_and_w_differ():
    costs = Costs.uniform(8, 1.0, 1.3, 0.5)
    closed, found = (
        schedule("zb-v", num_ranks=4, num_microbatches=8, **options) for options in ({}, {"costs": costs})
    )
    assert makespan(found, costs) <= makespan(closed, costs) - 0.5 + 1e-9


@pytest.mark.parametrize("name", ("zb-auto", "zb-v"))
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_in_flight": 0}, PipelabError, r"max_in_flight is 0 on rank 0, .* max_in_flight=[12] would do"),
        ({"max_bytes": 1}, PipelabError, r"max_bytes needs costs with bytes"),
        ({"costs": Costs.uniform(3)}, PipelabError, r"costs are for 3 stages"),
        ({"costs": 1}, TypeError, r"costs must be Costs, not int"),
        ({"cost": 1}, TypeError, r"unexpected keyword 'cost'; did you mean 'costs'"),
    ],
)
def test_messages(name, options, error, message):
    with pytest.raises(error, match=message):
        schedule(name, num_ranks=4, num_microbatches=4, **options)


def test_the_table_of_schedules_knows_the_options():
    assert (
        SCHEDULES["zb-auto"].keywords == SCHEDULES["zb-v"].keywords == ("costs", "max_in_flight", "max_bytes")
    )


@pytest.mark.parametrize(("p", "m"), [(2000, 4), (8, 1000)])
def test_a_step_that_is_too_large_to_search_is_a_closed_form_or_one_list_schedule(p, m):
    auto = schedule("zb-auto", num_ranks=p, num_microbatches=m)
    unit = Costs.uniform(p)
    known = [schedule(name, num_ranks=p, num_microbatches=m) for name in ("1f1b", "zb-h1")]
    assert simulate(auto, unit).makespan == min(simulate(one, unit).makespan for one in known)
    capped = schedule("zb-auto", num_ranks=p, num_microbatches=m, max_in_flight=2)
    assert max(capped.peak_in_flight) <= 2 and auto.name == capped.name == "zb-auto"
