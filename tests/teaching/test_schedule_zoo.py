from __future__ import annotations

import itertools

import pytest

import pipelab as pp
from pipelab.teaching.schedule_zoo import CAP, WARM_HELD, WARM_SECONDS, candidates, warm_report, with_warmup


@pytest.mark.parametrize(
    ("name", "warmup"),
    [
        ("naive", [0, 0, 0, 0]),
        ("1f1b", [3, 2, 1, 0]),
        ("eager-1f1b", [6, 4, 2, 0]),
        ("gpipe", [8, 8, 8, 8]),
    ],
)
def test_known_warm_ups_make_the_schedules_of_these_names(name, warmup):
    assert with_warmup(warmup).orders == pp.schedule(name, num_ranks=4, num_microbatches=8).orders


@pytest.mark.parametrize("name", candidates().schedules)
def test_every_schedule_of_the_table_gets_a_verdict_that_agrees_with_a_simulation(name):
    order = pp.schedule(name, num_ranks=8, num_microbatches=32, stages_per_rank=_own(name))
    share = 8 / order.num_model_stages
    run = pp.simulate(order, pp.Costs.uniform(order.num_model_stages, share, share, share)).report()
    verdict = pp.exercise("07.1").check(name)
    assert f"{run.makespan:g} s" in verdict.message
    assert ("but a rank holds" in verdict.message) is (max(run.peak_in_flight) * share > CAP)
    if verdict:
        assert max(run.peak_in_flight) * share <= CAP


def _own(name):
    least, most = pp.SCHEDULES[name].stages_per_rank
    return max(least, 2) if most is None else least


def test_exactly_the_warm_ups_that_keep_both_limits_are_right():
    right = [[4, 3, 2, 0], [5, 4, 2, 0], [4, 3, 1, 0], [3, 2, 1, 0], [4, 4, 2, 0]]
    for warmup in right:
        found = warm_report(warmup)
        keeps = found.makespan <= WARM_SECONDS and max(found.peak_in_flight) <= WARM_HELD
        assert bool(pp.exercise("07.3").check(warmup)) is keeps


def test_there_is_an_own_warm_up_and_none_that_is_shorter_within_the_cap():
    times = []
    for warmup in itertools.product(range(WARM_HELD), range(WARM_HELD), range(3), range(2)):
        if list(warmup) == sorted(warmup, reverse=True):
            found = warm_report(warmup)
            if max(found.peak_in_flight) <= WARM_HELD:
                times.append(found.makespan)
    assert min(times) == WARM_SECONDS
