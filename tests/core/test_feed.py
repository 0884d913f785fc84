"""The feed: what it is, and the laws of what comes through it."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.costs import Costs, Links
from pipelab.core.feed import Feed, queued
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError


def cells(trace: Trace) -> tuple[list[float], list[float]]:
    count = trace.schedule.table.num_cells
    return trace.start[:count].tolist(), trace.end[:count].tolist()


def widest(one: Schedule) -> int:
    return int(np.bincount(one.table.cell).max())


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_an_infinitely_fast_feed_equals_no_feed(random_schedule, random_costs, seed, other, workers, room):
    one = random_schedule(seed)
    costs = random_costs(other, one)
    costs = replace(costs, links=replace(costs.links, serial=other % 2 == 0, blocking=other % 3 == 0))
    feed = Feed(workers=workers, queue=widest(one) + room)
    assert cells(simulate(one, costs, feed=feed)) == cells(simulate(one, costs))


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("queue", [1, 2])
def test_an_infinitely_fast_feed_equals_no_feed_for_every_schedule(name, queue):
    for p, m in ((2, 4), (4, 8)):
        one = schedule(name, num_ranks=p, num_microbatches=m)
        costs = Costs.uniform(one.num_model_stages, forward=1.25, latency=0.5)
        if widest(one) > 1 and queue == 1:
            continue
        assert cells(simulate(one, costs, feed=Feed(queue=queue))) == cells(simulate(one, costs))


def growth(name: str, costs: Costs, feed: Feed, more: int) -> float:
    """How much longer a step takes that has `more` micro-batches more."""
    p = costs.num_stages
    long, short = (
        simulate(schedule(name, num_ranks=p, num_microbatches=m), costs, feed=feed).makespan
        for m in (60 + more, 60)
    )
    return long - short


@pytest.mark.parametrize("name", ["forward-only", "gpipe", "1f1b"])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_one_worker_slower_than_the_slowest_stage_sets_the_period(name, p):
    backward = 0 if name == "forward-only" else 2
    costs = Costs(tuple(range(1, p + 1)), (backward,) * p, (0,) * p)
    slow = p + backward + 3.0
    wanted = slow if name != "gpipe" else slow + backward  # GPipe's backwards come when all is fed
    assert growth(name, costs, Feed(prepare=slow), 1) == wanted


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("load", "prepare", "slowest"), [(1, 12, 2), (3, 12, 1), (1, 30, 5), (7, 7, 7)])
@pytest.mark.parametrize("queue", [1, 3])
def test_workers_divide_the_period_until_the_loader_or_a_stage_is_the_bottleneck(
    workers, load, prepare, slowest, queue
):
    costs = Costs((1, slowest, 1), (0,) * 3, (0,) * 3)
    feed = Feed(load=load, prepare=prepare, workers=workers, queue=queue)
    wanted = max(load, prepare / workers, slowest)
    assert growth("forward-only", costs, feed, workers) == pytest.approx(workers * wanted, rel=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_queue_never_passes_its_bound_and_a_better_feed_is_never_slower(
    random_schedule, random_costs, seed
):
    one, rng = random_schedule(seed), random.Random(seed)
    costs = replace(random_costs(seed, one), links=Links(serial=rng.random() < 0.5))
    times = [rng.random() * 4 for _ in range(one.num_microbatches)]
    feed = Feed(
        rng.random(), times, workers=rng.randint(1, 3), queue=widest(one) + rng.randint(0, 2), bytes=10
    )
    trace = simulate(one, costs, feed=feed)
    waited = queued(trace)
    assert waited.peak <= feed.queue and waited.peak_bytes <= feed.queue * 10
    assert (waited.entered <= waited.left).all() and (np.diff(waited.entered) >= 0).all()
    assert sorted(waited.microbatch.tolist()) == list(range(one.num_microbatches))
    for better in (
        replace(feed, workers=feed.workers + 1),
        replace(feed, queue=feed.queue + 1),
        replace(feed, load=feed.load / 2),
        replace(feed, prepare=tuple(x / 2 for x in times)),
    ):
        found = simulate(one, costs, feed=better)
        assert (found.end[: one.table.num_cells] <= trace.end[: one.table.num_cells] + 1e-9).all()


def test_a_schedule_whose_order_is_not_ascending_is_fed_in_its_order():
    one = Schedule([["0F3", "0F0", "0F2", "0F1"], ["1F3", "1F0", "1F2", "1F1"]])
    trace = simulate(one, Costs.uniform(2), feed=Feed(load=(4, 3, 2, 1), queue=1))
    rows = trace.lane == trace.lanes.index("load:0")
    assert trace.microbatch[rows].tolist() == [3, 0, 2, 1]
    assert trace.durations[rows].tolist() == [1, 4, 2, 3]
    assert trace.start[:4].tolist() == [1, 5, 7, 10]


def test_loaders_are_held_up_by_busy_workers_and_workers_by_a_full_queue():
    one = Schedule([["0F0", "0F1", "0F2", "0F3", "0F4"]])
    trace = simulate(one, Costs((10,), (0,), (0,)), feed=Feed(load=1, prepare=2, queue=1))
    rows = {lane: np.flatnonzero(trace.lane == k) for k, lane in enumerate(trace.lanes)}
    assert trace.start[rows["compute"]].tolist() == [3, 13, 23, 33, 43]
    # 0 enters at 3 and leaves at once, 1 enters at 5; 2 is ready at 7, and held up until 1 leaves at 13
    assert trace.start[rows["prepare:0"]].tolist() == [1, 3, 5, 13, 23]
    assert trace.start[rows["load:0"]].tolist() == [0, 1, 3, 5, 13]
    waited = queued(trace)
    assert waited.entered.tolist() == [3, 5, 13, 23, 33] and waited.left.tolist() == [3, 13, 23, 33, 43]
    time, count = waited.steps()
    assert dict(zip(time, count, strict=True)) == {0: 0, 3: 0, 5: 1, 13: 1, 23: 1, 33: 1, 43: 0}


def test_two_chains_share_the_loader_and_their_input_waits_on_two_ranks():
    one = Schedule([["0F0", "3F1"], ["2F1", "1F0"]], Placement.bidirectional(2))
    trace = simulate(one, Costs.uniform(2), feed=Feed(load=1.0, queue=2))
    rows = trace.lane == trace.lanes.index("load:0")
    assert (trace.rank[rows].tolist(), trace.stage[rows].tolist()) == ([0, 1], [0, 2])
    waited = queued(simulate(one, Costs((5, 5), (0, 0), (0, 0)), feed=Feed(queue=2)))
    assert waited.steps(0)[1].tolist() == [0] and waited.rank.tolist() == [0, 1]


def test_each_of_several_first_stages_needs_the_micro_batch():
    branches = Placement((0, 1, 2), edges=((0, 2), (1, 2)))
    one = Schedule([["0F0", "0F1"], ["1F1", "1F0"], ["2F0", "2F1"]], branches)
    trace = simulate(one, Costs((1, 4, 1), (0,) * 3, (0,) * 3), feed=Feed(load=2.0, queue=1))
    assert cells(trace)[0] == [2, 4, 4, 8, 12, 13]  # 0 takes micro-batch 0, 1 waits for micro-batch 1


def test_a_queue_that_is_too_short_for_one_cell_is_refused_with_the_size_that_works():
    one = Schedule([["(0F0;0F1)OVERLAP_F_B"]])
    with pytest.raises(PipelabError, match=r"takes 2 micro-batches at once.*room for 1. Give it room for 2"):
        simulate(one, Costs.uniform(1), feed=Feed(queue=1))
    assert simulate(one, Costs.uniform(1), feed=Feed(queue=2, load=1.0)).makespan == 4


def test_without_a_feed_nothing_was_queued():
    assert queued(simulate(Schedule([["0F0"]]), Costs.uniform(1))) is None


def test_lanes_of_a_strange_file_are_refused_when_they_do_not_fit():
    trace = simulate(Schedule([["0F0", "0F1"]]), Costs.uniform(1), feed=Feed())
    data = json.loads(json.dumps(trace.to_dict()))
    assert queued(Trace.from_dict(data)).left.tolist() == [0, 1]
    data["others"]["microbatch"][-1] = 0
    with pytest.raises(PipelabError, match="do not have each micro-batch once"):
        queued(Trace.from_dict(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"load": -1}, r"load is -1; it must be finite and not negative, in seconds"),
        ({"prepare": [1, math.nan]}, r"prepare\[1\] is nan"),
        ({"load": "fast"}, r"load is 'fast'; it must be seconds, or one number a micro-batch"),
        ({"load": True}, "load is 'True'; it must be a number"),
        ({"prepare": ["1"]}, r"prepare\[0\] is '1'; it must be a number of seconds"),
        ({"prepare": None}, "prepare is 'None'"),
        ({"workers": 0}, "workers is 0; it must be from 1 to 200"),
        ({"workers": 201}, "workers is 201"),
        ({"queue": 0}, "queue is 0; it must have room for at least 1"),
        ({"bytes": math.inf}, "bytes is inf"),
    ],
)
def test_impossible_feeds_are_refused(arguments, message):
    with pytest.raises(PipelabError, match=message):
        Feed(**arguments)


def test_numbers_that_are_no_integers_and_strangers_are_wrong_calls():
    with pytest.raises(TypeError, match="workers must be an integer"):
        Feed(workers=1.5)
    with pytest.raises(TypeError, match="feed must be a Feed, not float"):
        simulate(Schedule([["0F0"]]), Costs.uniform(1), feed=1.0)


def test_one_number_a_micro_batch_means_as_many_as_there_are():
    with pytest.raises(PipelabError, match="prepare has 3 numbers, but the schedule has 2 micro-batches"):
        simulate(Schedule([["0F0", "0F1"]]), Costs.uniform(1), feed=Feed(prepare=[1, 2, 3]))


@pytest.mark.parametrize("feed", [Feed(), Feed(1, (1, 2.5), workers=3, queue=7, bytes=2**20)])
def test_a_feed_survives_json(feed):
    assert Feed.from_dict(json.loads(json.dumps(feed.to_dict()))) == feed
    assert hash(feed) == hash(replace(feed))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"load": "1"}, "feed.load must be a finite number"),
        ({"prepare": [1, None]}, r"feed.prepare\[1\] must be a finite number"),
        ({"workers": 1.5}, "feed.workers must be an integer"),
        ({"queue": [1]}, "feed.queue must be an integer"),
        ({"speed": 1}, "feed has the unknown key 'speed'"),
    ],
)
def test_wrong_fields_are_named(data, message):
    with pytest.raises(PipelabError, match=message):
        Feed.from_dict(data)
