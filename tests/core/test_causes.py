"""Why ranks idle: cases counted by hand, and the sum that must telescope."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.costs import Costs, Links
from pipelab.core.feed import Feed
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace

ULPS = 8
"""p x T, work and four differences are each rounded once: the sum holds all but the last bits of p x T."""


def causes(one, costs):
    return simulate(one, costs).report().idle_by_cause


def seconds(one, costs):
    return [round(x, 12) for x in causes(one, costs).causes.values()]


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "eager-1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 4), (3, 1), (4, 2), (4, 8), (3, 7)])
def test_equal_stages_and_free_links_leave_filling_and_draining(name, p, m):
    one = schedule(name, num_ranks=p, num_microbatches=m)
    assert list(causes(one, Costs.uniform(p)).causes.values()) == [0, 0, 0, p * (p - 1) * 3]


def test_latency_is_communication():
    """GPipe pays 2 (p-1) c, whatever m."""
    for m in (1, 5, 8):
        one = schedule("gpipe", num_ranks=4, num_microbatches=m)
        assert seconds(one, Costs.uniform(4, latency=0.5)) == [4 * 6 * 0.5, 0, 0, 36]


def test_bandwidth_is_communication():
    from pipelab.core.costs import StageBytes

    held = StageBytes((0, 0), (0, 0), (100, 0))
    costs = Costs((1, 1), (1, 1), (1, 1), bytes=held, links=Links(bandwidth=200))
    assert seconds(Schedule([["0F0", "0B0"], ["1F0", "1B0"]]), costs) == [2 * 1, 0, 0, 6]


def test_one_micro_batch_at_a_time_is_a_matter_of_order():
    one = schedule("naive", num_ranks=4, num_microbatches=8)
    assert seconds(one, Costs.uniform(4)) == [0, 0, 4 * (8 * 4 * 3 - 33), 36]


def test_a_stage_that_costs_more_is_imbalance():
    """Forwards of 1 and 3: 1 + 3 + 3 = 7 instead of 2 + 2 + 2 = 6."""
    one = schedule("forward-only", num_ranks=2, num_microbatches=2)
    assert seconds(one, Costs((1, 3), (0, 0), (0, 0))) == [0, 2, 0, 4]


def test_imbalance_is_negative_where_uneven_stages_help():
    """Rank 0 holds two stages of 1, rank 1 one of 2: 2 + 2 + 2 = 6. At a mean of 4/3: 16/3 on rank 0, then 4/3."""
    one = Schedule([["0F0", "1F0", "0F1", "1F1"], ["2F0", "2F1"]], Placement((0, 0, 1)))
    found = causes(one, Costs((1, 1, 2), (0,) * 3, (0,) * 3))
    assert found.imbalance == pytest.approx(2 * (6 - 20 / 3)) and found.total == pytest.approx(12 - 8)
    assert "-1.33 s" in str(found)


def test_the_mean_of_a_kind_is_over_its_cells_and_overlaps_are_a_kind():
    """Rank 0: F 0-1, then F&B 1-6, then B 6-9. Rank 1's forwards take 3: kinds F, B and the overlap have own means."""
    one = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "(1F1;1B0)OVERLAP_F_B", "1B1"]])
    costs = Costs((1, 3), (1, 1), (1, 1), overlap=(9, 5))
    found = causes(one, costs)
    means = {"F": (1 + 1 + 3) / 3, "B": 2, "overlap": 5}
    assert found.work == 2 * 1 + 2 * 2 + 3 + 5 + 2 == pytest.approx(3 * means["F"] + 3 * means["B"] + 5)
    step = means["F"] * 2 + means["overlap"] + means["B"] + means["B"]
    assert found.even_stages == pytest.approx(step)


def test_a_slow_feed_is_input():
    """Forwards of 1 on two ranks: 1 + 3 + 1; a worker of 3 makes it 9 + 1 + 1."""
    one = schedule("forward-only", num_ranks=2, num_microbatches=3)
    trace = simulate(one, Costs((1, 1), (0, 0), (0, 0)), feed=Feed(prepare=3.0))
    found = trace.report().idle_by_cause
    assert found.causes == {
        "input": 2 * (11 - 4),
        "communication": 0,
        "imbalance": 0,
        "order": 0,
        "fill and drain": 2 * 4 - 6,
    }
    assert str(found).splitlines()[1].split() == ["input", "14", "s", "63.6", "%"]


def test_updates_are_work_and_uneven_ones_imbalance():
    """1F1B of 6 seconds on two ranks; rank 0, the last to end, updates for 4, rank 1 for 2: at a mean of 3 it is 9."""
    costs = Costs((1, 1), (1, 1), (1, 1), update=(4, 2))
    found = causes(Schedule([["0F0", "0B0"], ["1F0", "1B0"]]), costs)
    assert found.work == 6 + 6 and list(found.causes.values()) == [0, 2 * (10 - 9), 0, 2 * 9 - 12]


def test_updates_within_the_order_are_a_kind():
    one = Schedule([["0F0", "0B0", "0U0"], ["1F0", "1B0", "1U0"]])
    found = causes(one, Costs((1, 1), (1, 1), (1, 1), update=(4, 2)))
    assert found.work == 12 and list(found.causes.values())[:2] == [0, 2]


def test_taking_turns_on_a_link_is_communication():
    """Two transfers of 3 take turns: 1 + 3 + 3 + 1 = 8 instead of 3 with free links."""
    one = schedule("forward-only", num_ranks=2, num_microbatches=2)
    for links, makespan in ((Links(3.0, serial=True), 8), (Links(3.0, blocking=True), 9), (Links(3.0), 6)):
        found = causes(one, Costs((1, 1), (0, 0), (0, 0), links=links))
        assert found.makespan == makespan and found.communication == 2 * (makespan - 3)


def test_a_measured_step_is_laid_over_the_replay_of_its_own_durations():
    """2 + 1 + 3 + 2 = 8 of the 10 seconds are the chain of actions; the mean costs 1.5 and 2.5 take as long."""
    one = Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")
    found = Trace.from_times(one, [0, 8, 3, 4], [2, 10, 4, 7], clock="wall").report().idle_by_cause
    assert found.measured and found.causes == {
        "communication, waiting, overhead": 2 * (10 - 8),
        "imbalance": 0,
        "order": 0,
        "fill and drain": 2 * 8 - 8,
    }
    assert found.total == 12 == sum((6, 6))


def test_the_print_shows_each_cause_and_the_sum():
    lines = str(causes(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs.uniform(4))).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "cause",
        "communication",
        "imbalance",
        "order",
        "fill and drain",
        "together",
    ]
    assert lines[-1].split() == ["together", "36", "s", "27.3", "%"]


def test_frames_and_html_have_the_causes():
    found = causes(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs.uniform(4))
    frame = found.to_frame()
    assert list(frame.columns) == ["cause", "idle [s]", "fraction"] and frame["fraction"].sum() == 36 / 132
    assert "<td>fill and drain</td><td>36 s</td>" in found._repr_html_()


def test_a_run_without_any_work_has_no_idle_time():
    found = causes(Schedule([["0F0", "0B0"]]), Costs.uniform(1, 0, 0, 0))
    assert found.total == 0 and found.columns()["fraction"].tolist() == [0] * 4


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_causes_of_any_run_add_up_to_its_idle_time(random_schedule, random_costs, seed, other):
    one, rng = random_schedule(seed), random.Random(seed * 7919 + other)
    costs = random_costs(other, one)
    links = replace(costs.links, **rng.choice([{}, {"serial": True}, {"blocking": True}]))
    feed = Feed(rng.random(), 3 * rng.random(), rng.randint(1, 3), queue=2) if rng.random() < 0.4 else None
    report = simulate(one, replace(costs, links=links), feed=feed).report()
    found = report.idle_by_cause
    total = one.num_ranks * report.makespan
    assert abs(found.total - math.fsum([total, -found.work])) <= ULPS * math.ulp(total)
    assert found.total == pytest.approx(math.fsum(report.bubble_time), abs=1e-9)
    assert found.communication >= 0 and found.order >= 0 and found.fill_and_drain >= -1e-9
    assert found.input >= 0 and ("input" in found.causes) == (feed is not None)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_without_transfers_nothing_is_communication_and_with_equal_costs_nothing_is_imbalance(
    random_schedule, random_costs, seed, other
):
    one = random_schedule(seed)
    free = replace(random_costs(other, one), links=Links())
    assert causes(one, free).communication == 0
    assert causes(one, Costs.uniform(one.num_model_stages, 0.1, 0.2, 0.3)).imbalance == pytest.approx(
        0, abs=1e-12
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_times_that_keep_the_order_can_be_split(random_schedule, random_costs, seed, other):
    """A measured step: every cell later by what it had to wait for anyhow."""
    one = random_schedule(seed)
    trace = simulate(one, random_costs(other, one))
    cells = one.table.num_cells
    late = np.sort(np.random.default_rng(seed).random(cells)).cumsum()[
        np.argsort(np.argsort(trace.start[:cells], kind="stable"))
    ]
    measured = Trace.from_times(one, trace.start[:cells] + late, trace.end[:cells] + late, clock="wall")
    found = measured.report().idle_by_cause
    total = one.num_ranks * measured.makespan
    assert abs(found.total - math.fsum([total, -found.work])) <= ULPS * math.ulp(total)
    assert found.communication >= -1e-9


@pytest.mark.parametrize("name", SCHEDULES)
def test_of_every_schedule_the_causes_add_up_and_the_path_is_the_makespan(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    costs = Costs.uniform(one.num_model_stages, latency=0.1, update=0.5)
    trace = simulate(one, costs, feed=Feed(0.1, 0.2, workers=2))
    report, path = trace.report(), trace.critical_path()
    assert report.idle_by_cause.total == pytest.approx(sum(report.bubble_time))
    assert report.idle_by_cause.imbalance == 0 and min(report.idle_by_cause.causes.values()) >= 0
    assert (path.end - path.start + path.wait).sum() == pytest.approx(trace.makespan)
