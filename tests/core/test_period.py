"""The period of chained steps: against steps written one behind the other, and what one can see by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pipelab.core.actions import Action, Kind
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import period, simulate
from pipelab.errors import PipelabError

STEPS = [
    name
    for name in SCHEDULES
    if schedule(name, num_ranks=4, num_microbatches=8).minibatches == 1  # others hold several steps
]


def chained(one: Schedule, steps: int, updates: bool) -> Schedule:
    """One schedule of many steps: the micro-batches of each come behind those of the one before."""
    m = one.num_microbatches

    def later(action: Action, by: int) -> Action:
        if action.members:
            return Action.overlap(*(later(member, by) for member in action.members))
        return Action(action.kind, action.stage, action.microbatch + by)

    orders = []
    for rank, order in enumerate(one.orders):
        ends = [Action(Kind.U, s, m - 1) for s in one.placement.stages_of(rank)] if updates else []
        orders.append([later(action, n * m) for n in range(steps) for action in [*order, *ends]])
    return Schedule(orders, one.placement)


def by_chaining(one: Schedule, costs: Costs) -> float:
    """How much the 12 steps after the first 24 add, a step; up to four resources settle in multiples of 12."""
    updates = costs.update is not None and one.has_backward
    long, short = (simulate(chained(one, steps, updates), costs).makespan for steps in (36, 24))
    return (long - short) / 12


def by_chaining_fed(one: Schedule, costs: Costs, feed: Feed) -> float:
    """As `by_chaining`, with the seconds of the feed repeated; up to six workers settle in multiples of 60."""

    def makespan(steps: int) -> float:
        through = replace(feed, load=feed.load * steps, prepare=feed.prepare * steps)
        return simulate(chained(one, steps, costs.update is not None), costs, feed=through).makespan

    return (makespan(180) - makespan(120)) / 60


def whole_costs(one: Schedule, rng: random.Random) -> Costs:
    def some() -> tuple[int, ...]:
        return tuple(rng.randint(0, 5) for _ in range(one.num_stages))

    held = StageBytes(some(), some(), some())
    links = Links(rng.randint(0, 3), 1.0, serial=rng.random() < 0.3, blocking=rng.random() < 0.3)
    return Costs(some(), some(), some(), update=rng.choice([None, some()]), bytes=held, links=links)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_what_steps_add_that_follow_each_other(random_schedule, seed):
    rng = random.Random(seed)
    one = random_schedule(seed)
    if one.placement.chains > 1 or one.num_ranks > 3 or (one.table.kind == 4).any():
        one = schedule(
            rng.choice(["gpipe", "1f1b", "eager-1f1b"]), num_ranks=3, num_microbatches=rng.randint(1, 5)
        )
    costs = whole_costs(one, rng)
    assert period(one, costs) == pytest.approx(by_chaining(one, costs), rel=1e-13)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (2, 1), (4, 2), (4, 8), (3, 7), (8, 16)])
def test_where_rank_0_works_from_beginning_to_end_it_is_the_makespan(name, p, m):
    one = schedule(name, num_ranks=p, num_microbatches=m)
    rng = random.Random(p * m)
    uneven = Costs(*(tuple(rng.random() for _ in range(p)) for _ in range(3)), links=Links(0.1))
    for costs in (Costs.uniform(p), uneven):
        assert period(one, costs) == simulate(one, costs).makespan


@pytest.mark.parametrize(("p", "m"), [(2, 3), (4, 7), (4, 8), (8, 16)])
def test_zb_h2_gains_what_it_does_not_show_within_one_step(p, m):
    one = schedule("zb-h2", num_ranks=p, num_microbatches=m)
    costs = Costs.uniform(p)
    trace = simulate(one, costs)
    assert period(one, costs) == 3 * m == max(trace.report().busy)  # nothing is idle any more
    assert trace.makespan == 3 * m + p - 1
    assert trace.report().span_bubble == 0


def test_forwards_alone_come_as_fast_as_the_slowest_stage():
    one = schedule("forward-only", num_ranks=3, num_microbatches=4)
    assert period(one, Costs((1, 5, 2), (0,) * 3, (0,) * 3)) == 20


def test_independent_members_go_at_the_pace_of_the_slowest():
    one = Schedule([["0F0", "0F1"], ["1F2", "1F3"]], Placement((0, 1), chains=2))
    assert period(one, Costs((1, 3), (0, 0), (0, 0))) == 6


def test_updates_and_blocking_sends_belong_to_a_ranks_step():
    one = schedule("forward-only", num_ranks=2, num_microbatches=4)
    assert period(one, replace(Costs.uniform(2), links=Links(0.5, blocking=True))) == 4 * 1.5
    assert period(one, replace(Costs.uniform(2), links=Links(2.0))) == 4
    assert period(one, replace(Costs.uniform(2), links=Links(2.0, serial=True))) == 8
    both = schedule("1f1b", num_ranks=2, num_microbatches=4)
    assert period(both, Costs.uniform(2, update=5)) == 15 + 5


@pytest.mark.parametrize("name", STEPS)
def test_it_lies_between_the_busiest_rank_and_the_makespan(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    rng = random.Random(name)
    for costs in (
        Costs.uniform(one.num_model_stages),
        Costs.uniform(one.num_model_stages, rng.random(), latency=0.3),
    ):
        trace = simulate(one, costs)
        found = period(one, costs)
        assert max(trace.report().busy) <= found * (1 + 1e-12) and found <= trace.makespan * (1 + 1e-12)


def test_costs_that_do_not_fit_are_refused():
    one = schedule("gpipe", num_ranks=2, num_microbatches=2)
    with pytest.raises(PipelabError, match="costs are for 3"):
        period(one, Costs.uniform(3))


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "forward-only"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 3), (4, 8)])
def test_a_feed_slower_than_the_pipeline_sets_the_pace(name, p, m):
    one = schedule(name, num_ranks=p, num_microbatches=m)
    costs = Costs((1e-3,) * p, (0,) * p, (0,) * p)
    for feed in (
        Feed(load=5),
        Feed(prepare=5),
        Feed(prepare=15, workers=3),
        Feed(load=5, prepare=9, workers=2),
    ):
        assert period(one, costs, feed=feed) == pytest.approx(5 * m, abs=0.1)
    assert period(one, costs, feed=Feed(prepare=1e-3, workers=4)) == period(one, costs)


def test_a_feed_that_is_behind_in_one_step_alone_is_not_in_a_chain_of_them():
    """What the first step waits for, later ones do not: the workers go on while backwards run."""
    one = schedule("1f1b", num_ranks=4, num_microbatches=8)
    costs, feed = Costs.uniform(4), Feed(prepare=3, queue=2)
    assert period(one, costs, feed=feed) == 33 < simulate(one, costs, feed=feed).makespan == 36
    assert period(one, costs, feed=Feed(prepare=10)) == 80
    assert period(one, costs, feed=Feed(load=5)) == 40


@pytest.mark.parametrize("seed", range(60))
def test_with_a_feed_it_is_what_steps_add_that_follow_each_other(seed):
    """Also where workers do not share the micro-batches of a step evenly, and where the queue holds several steps."""
    rng = random.Random(seed)
    p, m = rng.randint(1, 3), rng.randint(1, 6)
    one = schedule(rng.choice(["gpipe", "1f1b", "zb-h2"]), num_ranks=p, num_microbatches=m)
    costs = whole_costs(one, rng)
    workers = rng.randint(1, 6)
    load, prepare = (tuple(rng.choice([0, 0, top]) for _ in range(m)) for top in (8, 15 * workers))
    feed = Feed(load, prepare, workers=workers, queue=rng.choice([1, 1, 2, 3, 12]))
    assert period(one, costs, feed=feed) == pytest.approx(by_chaining_fed(one, costs, feed), rel=1e-12)


def test_a_short_queue_keeps_a_feed_from_working_ahead_into_the_next_step():
    one = schedule("1f1b", num_ranks=1, num_microbatches=4)
    costs, feed = Costs((3,), (1,), (1,)), Feed((2, 0, 2, 0), (0, 1, 20, 1), workers=2, queue=1)
    assert period(one, costs, feed=feed) == by_chaining_fed(one, costs, feed) == 25
    assert period(one, costs, feed=replace(feed, queue=2)) == 22


@pytest.mark.parametrize("name", STEPS)
def test_with_a_feed_it_lies_between_the_pace_of_the_feed_and_the_makespan(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    costs = Costs.uniform(one.num_model_stages, latency=0.25)
    for feed in (Feed(load=2, prepare=7, workers=3, queue=4), Feed(prepare=50, queue=8)):
        found, count = period(one, costs, feed=feed), one.num_microbatches
        pace = count * max(2.0 if feed.load else 0.0, feed.prepare / feed.workers)
        assert max(pace, period(one, costs)) <= found * (1 + 1e-12)
        assert found <= simulate(one, costs, feed=feed).makespan * (1 + 1e-12)


@pytest.mark.parametrize("name", ["pipedream", "pipedream-2bw"])
def test_several_mini_batches_in_one_table_have_no_period(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    with pytest.raises(
        PipelabError, match=r"holds \d+ mini-batches.*drain in between.*time between late updates"
    ):
        period(one, Costs.uniform(4))


def test_the_other_order_is_told_by_the_name_of_the_function():
    one = schedule("gpipe", num_ranks=2, num_microbatches=2)
    with pytest.raises(TypeError, match=r"^period\(\) takes .* in this order, not Costs and Schedule"):
        period(Costs.uniform(2), one)
