"""The four bubbles, on a run small enough to count by hand, and their laws."""

from __future__ import annotations

import gc
import json
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Kind
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

ONE = Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")


def report(**more):
    """Rank 0 computes from 0 to 2 and from 8 to 10, rank 1 from 3 to 4 and from 4 to 7."""
    return Trace.from_times(ONE, [0, 8, 3, 4], [2, 10, 4, 7], clock="wall", **more).report()


def test_each_bubble_by_its_definition():
    found = report()
    assert found.makespan == 10
    assert found.busy == (4, 4) and found.bubble_time == (6, 6)
    assert found.bubble_fraction == 12 / 20
    assert found.bubble_ratio == 12 / 8
    assert found.span_bubble == 1 - 8 / (2 * 10)
    assert found.peak_in_flight == (1, 1) and found.peak_bytes is None
    assert (found.clock, found.label, found.num_ranks) == ("wall", "one", 2)


def test_the_span_bubble_is_0_where_every_rank_works_without_a_break():
    found = simulate(schedule("forward-only", num_ranks=4, num_microbatches=8), Costs.uniform(4)).report()
    assert found.span_bubble == 0 and found.bubble_fraction == 3 / 11


def test_peaks_in_bytes_where_they_are_known():
    found = report(bytes=StageBytes((100, 200), (7, 9), (0, 0)))
    assert found.peak_bytes == (207, 409)


def test_a_run_without_any_work_has_no_bubble():
    found = simulate(ONE, Costs.uniform(2, 0, 0, 0)).report()
    assert (found.makespan, found.bubble_fraction, found.bubble_ratio, found.span_bubble) == (0, 0, 0, 0)


def test_the_print_has_a_line_a_rank_and_names_every_bubble():
    lines = str(report(bytes=StageBytes((100, 200), (7, 9), (0, 0)))).splitlines()
    assert lines[0].split("  ")[0] == "rank" and lines[0].endswith("peak memory")
    assert lines[1].split() == ["0", "4", "s", "6", "s", "60.0", "%", "1", "207", "B"]
    assert lines[3].split() == [
        "all",
        "8",
        "s",
        "12",
        "s",
        "60.0",
        "%",
        "at",
        "most",
        "1",
        "at",
        "most",
        "409",
        "B",
    ]
    assert lines[4] == (
        "makespan 10 s (wall clock), bubble fraction 60.0 %, bubble ratio 150.0 %, span bubble 60.0 %"
    )


def test_labels_are_escaped_in_html():
    html = report(label="<img onerror=x>")._repr_html_()
    assert "<img" not in html and "&lt;img" in html and "wall clock" in html


def test_frames_name_units():
    frame = report(bytes=StageBytes((1, 2), (3, 4), (5, 6))).to_frame()
    assert list(frame.columns) == [
        "rank",
        "busy [s]",
        "bubble time [s]",
        "bubble fraction",
        "peak in flight",
        "peak memory [bytes]",
        "sent [bytes]",
    ]
    assert frame["sent [bytes]"].tolist() == [5, 5] and frame["bubble time [s]"].tolist() == [6, 6]


def test_dicts_hold_every_number():
    data = json.loads(json.dumps(report().to_dict()))
    assert data["busy"] == [4, 4] and data["bubble_fraction"] == 0.6 and data["peak_bytes"] is None

    assert data["bytes_sent"] is None and data["period"] is None
    assert data["idle_by_cause"]["fill and drain"] == 8


def test_every_rank_sends_outputs_forward_and_gradients_backward():
    """Stage 0 of rank 0 gives 100 to rank 1; stage 1 gives 10 to stage 2 on its own rank, which gives 7 to rank 0."""
    one = Schedule(
        [["0F0", "3F0", "3B0", "0B0"], ["1F0", "2F0", "2B0", "1B0"]], Placement((0, 1, 1, 0)), name="v"
    )
    held = StageBytes((0,) * 4, (0,) * 4, (100, 10, 7, 5))
    equal = (1,) * 4
    found = simulate(one, Costs(equal, equal, equal, bytes=held)).report()
    assert found.bytes_sent == (100 + 7, 7 + 100)
    assert simulate(one, Costs.uniform(4)).report().bytes_sent is None


def test_on_one_rank_nothing_is_sent():
    assert Trace.from_times(
        Schedule([["0F0", "0B0"]]), [0, 1], [1, 2], clock="wall", bytes=StageBytes((1,), (1,), (1,))
    ).report().bytes_sent == (0,)


def test_the_period_is_that_of_the_costs_and_unknown_for_a_measured_run():
    one = schedule("zb-h2", num_ranks=4, num_microbatches=8)
    found = simulate(one, Costs.uniform(4)).report()
    assert (found.makespan, found.period) == (27, 24)
    assert report().period is None


def test_the_cost_of_a_step_and_of_a_thousand():
    cost = report().cost(1.8)
    assert cost.per_step == pytest.approx(1.8 * 2 * 10 / 3600) and cost.per_1000_steps == pytest.approx(10)
    assert str(cost) == "0.01 a step, 10 per 1,000 steps (2 devices at 1.8 an hour, 10 s a step)"
    assert report().cost(0).per_step == 0


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "3", None, True])
def test_prices_that_are_none_are_refused(wrong):
    with pytest.raises(
        PipelabError, match=r"price_per_hour is .*price of one device for an hour, finite and not"
    ):
        report().cost(wrong)


def test_what_takes_longer_is_not_worked_out_unasked():
    found = simulate(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs.uniform(4)).report()
    assert str(found) and not {"idle_by_cause", "period", "bytes_sent"} & set(vars(found))
    assert found.idle_by_cause is found.idle_by_cause


def test_a_trace_and_its_report_die_without_the_garbage_collector():
    trace = simulate(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs.uniform(4))
    trace.report().to_dict(), trace.critical_path(), trace.why(1, 5.0)
    alive = [weakref.ref(trace), weakref.ref(trace.report())]
    gc.disable()
    try:
        del trace
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()


def test_reports_are_equal_copied_and_pickled():
    found = report()
    assert found == report() == pickle.loads(pickle.dumps(found)) and hash(found) == hash(report())
    assert found != report(label="other") and "_trace" not in repr(found)
    assert pickle.loads(pickle.dumps(found)).idle_by_cause == found.idle_by_cause


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_bytes_sent_are_those_of_every_need_across_ranks(random_schedule, all_prerequisites, seed, other):
    one = random_schedule(seed)
    sizes = np.random.default_rng(other).integers(0, 100, one.num_model_stages).tolist()
    ranks, model_stage = one.placement.ranks, one.placement.model_stages
    sent = [0] * one.num_ranks
    for order in one.orders:
        for cell in order:
            for member in cell.members or (cell,):
                for need in all_prerequisites(member, one.placement):
                    giver = min(need, key=str)
                    if ranks[giver.stage] != ranks[member.stage]:
                        sender = giver.stage if giver.kind is Kind.F else member.stage
                        sent[ranks[giver.stage]] += sizes[model_stage[sender]]
    cells = one.table.num_cells
    times = simulate(one, Costs.uniform(one.num_model_stages))
    zeros = (0,) * one.num_model_stages
    found = Trace.from_times(
        one, times.start[:cells], times.end[:cells], clock="wall", bytes=StageBytes(zeros, zeros, sizes)
    )
    assert found.report().bytes_sent == tuple(sent)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_laws_of_every_run(random_schedule, random_costs, seed, other):
    one = random_schedule(seed)
    found = simulate(one, random_costs(other, one)).report()
    for busy, idle in zip(found.busy, found.bubble_time, strict=True):
        assert busy + idle == pytest.approx(found.makespan) and busy >= 0
    assert 0 <= found.span_bubble <= found.bubble_fraction + 1e-12 <= 1 + 1e-12
    work = sum(found.busy)
    if work:
        assert found.bubble_ratio == pytest.approx(
            found.bubble_fraction * one.num_ranks * found.makespan / work
        )


def test_the_period_is_that_of_a_feed_that_goes_on():
    costs = Costs.uniform(4)
    one = schedule("1f1b", num_ranks=4, num_microbatches=8)
    fed = [simulate(one, costs, feed=Feed(**feed)).report() for feed in ({"prepare": 10}, {"load": 5})]
    assert [report.period for report in fed] == [80, 40]


def test_of_several_mini_batches_each_is_a_step():
    """They follow each other within the table: there is no period of tables, and each update is paid for."""
    costs = Costs.uniform(4)
    one, many = (
        simulate(schedule("pipedream-2bw", num_ranks=4, num_microbatches=8, num_minibatches=n), costs)
        for n in (1, 6)
    )
    assert many.report().period is None
    assert (
        many.report().cost(3.0).seconds == many.makespan / 6 < one.report().cost(3.0).seconds == one.makespan
    )


def test_steps_that_follow_each_other_are_priced_by_the_period():
    zb_h2 = simulate(schedule("zb-h2", num_ranks=4, num_microbatches=8), Costs.uniform(4)).report().cost(2.5)
    assert (zb_h2.seconds, zb_h2.period) == (27, 24)
    assert zb_h2.per_1000_steps == pytest.approx(75) and zb_h2.per_1000_chained_steps == pytest.approx(
        66.667, rel=1e-4
    )
    assert "66.7 per 1,000 steps that follow each other without a break (24 s a step)" in str(zb_h2)
    flat = simulate(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs.uniform(4)).report().cost(2.5)
    assert "follow" not in str(flat) and flat.per_1000_chained_steps == pytest.approx(flat.per_1000_steps)
    pipedream = simulate(schedule("pipedream", num_ranks=2, num_microbatches=4), Costs.uniform(2)).report()
    assert pipedream.cost(1).per_1000_chained_steps is None
