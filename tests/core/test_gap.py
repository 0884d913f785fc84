"""Why a measured step differs from the predicted one: cases counted by hand, and shares that add up."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pp
from pipelab.core.feed import Feed
from pipelab.core.gap import Gap, explain_gap, pace_sentence, replayed
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

ONE = pp.Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")  # a chain: 0F0, 1F0, 1B0, 0B0
PREDICTED = pp.simulate(ONE, pp.Costs.uniform(2))  # 1 + 1 + 2 + 2 = 6


def measured(start, end, **options):
    return Trace.from_times(ONE, start, end, clock="wall", **options)


def shares(gap):
    return {part.cause: round(part.seconds, 9) for part in gap.parts if part.seconds}


def test_a_step_as_predicted_has_no_gap():
    gap = explain_gap(PREDICTED, PREDICTED)
    assert gap.difference == 0 == gap.error and shares(gap) == {} and gap.replayed == 6


def test_longer_actions_are_told_by_their_kind():
    gap = explain_gap(PREDICTED, pp.simulate(ONE, pp.Costs.uniform(2, forward=1.5, weight_grad=0.5)))
    assert shares(gap) == {"F": 1.0, "B": -1.0}
    details = {part.cause: part.detail for part in gap.parts}
    assert details["F"] == "1.5 s instead of 1 s in the mean"
    assert details["B"] == "1.5 s instead of 2 s in the mean"


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (
            2.8,
            "about 2.8 × as long as profiled: the machine is busier than when it was profiled; profile again.",
        ),
        (0.5, "about 0.5 × as long as profiled: the machine was busier when it was profiled; profile again."),
        (1.2, ""),
        (0.85, ""),
    ],
)
def test_most_actions_longer_by_one_factor_are_told_in_a_sentence(factor, said):
    one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    predicted = pp.simulate(one, pp.Costs.uniform(4))
    start, end = predicted.start * factor, predicted.end * factor
    end[-1] *= 9  # one slow action is no slow machine
    ran = Trace.from_times(one, start, end, clock="virtual")
    assert pace_sentence(predicted, ran).removeprefix("Actions took ") == said
    assert len(pace_sentence(predicted, ran)) <= 110  # or a headline would cut it
    assert (
        pace_sentence(predicted, pp.simulate(one, pp.Costs.uniform(4, forward=9))) == ""
    )  # nothing was measured


def test_ranks_that_run_beside_one_another_are_to_be_profiled_so():
    one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    predicted = pp.simulate(one, pp.Costs.uniform(2))
    times = 2 * predicted.start, 2 * predicted.end
    ran = Trace.from_times(one, *times, clock="wall", devices=("cpu", "cpu"))
    said = pace_sentence(predicted, ran)
    assert (
        said.endswith("the machine is busier, if only by ranks; profile with ranks=2.") and len(said) <= 110
    )


def test_i_and_w_are_kinds_of_their_own():
    one = pp.schedule("zb-h1", num_ranks=2, num_microbatches=4)
    gap = explain_gap(
        pp.simulate(one, pp.Costs.uniform(2)), pp.simulate(one, pp.Costs.uniform(2, input_grad=2))
    )
    assert [part.cause for part in gap.parts] == ["F", "I", "W", "spread", "start", "waiting", "outside"]
    assert set(shares(gap)) == {"I"}


def test_an_action_that_nobody_waits_for_has_no_share():
    """Rank 1 is done while rank 0 still computes I and W: a longer W there changes nothing."""
    one = pp.Schedule([["0F0", "0I0", "0W0"], ["1F0", "1I0", "1W0"]])
    predicted, slower = (pp.simulate(one, pp.Costs((1, 1), (1, 1), (1, last))) for last in (1, 1.5))
    gap = explain_gap(predicted, slower)
    assert shares(gap) == {} and {part.cause: part.detail for part in gap.parts}["W"].startswith(
        "1.25 s instead"
    )


def test_one_action_that_takes_longer_than_its_kind_is_spread():
    """In the mean 2 seconds each: 1 and 3 still hide behind the other rank, 3 and 1 do not."""
    one = pp.Schedule([["0F0", "0F1"], ["1F0", "1F1"]])
    even = Trace.from_times(one, [0, 2, 2, 4], [2, 4, 4, 6], clock="wall")
    uneven = Trace.from_times(one, [0, 1, 1, 4], [1, 4, 3, 6], clock="wall")
    assert shares(explain_gap(even, uneven)) == {}
    uneven = Trace.from_times(one, [0, 3, 3, 5], [3, 4, 5, 7], clock="wall")
    assert shares(explain_gap(even, uneven)) == {"spread": 1.0}


def test_a_rank_that_starts_late_is_start_and_any_later_delay_is_waiting():
    gap = explain_gap(PREDICTED, measured([0, 7, 1.5, 2.5], [1, 9, 2.5, 4.5]))
    assert gap.difference == 3 and shares(gap) == {"start": 0.5, "waiting": 2.5}
    details = {part.cause: part.detail for part in gap.parts}
    assert details["start"] == "first actions late by 500 ms together"
    assert details["waiting"].startswith("others late by 2.5 s together")


def test_transfers_are_waiting_and_what_the_prediction_had_of_them_is_taken_off():
    free, slow = (pp.simulate(ONE, pp.Costs.uniform(2, latency=x)) for x in (0.0, 0.25))
    assert shares(explain_gap(free, slow)) == {"waiting": 0.5}
    assert shares(explain_gap(slow, free)) == {"waiting": -0.5}


def test_updates_after_the_last_action_are_outside():
    with_updates = pp.simulate(ONE, pp.Costs.uniform(2, update=0.75))
    gap = explain_gap(PREDICTED, with_updates)
    assert shares(gap) == {"outside": 0.75} and gap.parts[-1].detail == "750 ms after the last action"
    assert shares(explain_gap(with_updates, with_updates)) == {}


def test_the_actions_alone_are_the_durations_handed_over_in_no_time():
    gap = explain_gap(PREDICTED, measured([0, 7, 1.5, 2.5], [1, 9, 2.5, 4.5]))
    assert gap.replayed == 6 == replayed(ONE, np.array([1.0, 2.0, 1.0, 2.0]))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_shares_of_any_two_runs_add_up_to_the_difference(random_schedule, random_costs, seed, other):
    one, rng = random_schedule(seed), random.Random(seed * 7919 + other)
    traces = []
    for number in (other, other + 1):
        costs = random_costs(number, one)
        links = replace(costs.links, **rng.choice([{}, {"serial": True}, {"blocking": True}]))
        feed = (
            Feed(rng.random(), 3 * rng.random(), rng.randint(1, 3), queue=2) if rng.random() < 0.4 else None
        )
        traces.append(pp.simulate(one, replace(costs, links=links), feed=feed))
    if rng.random() < 0.5:  # a measured run knows no links
        traces[1] = replace(traces[1], costs=None, feed=None)
    gap = explain_gap(*traces)
    assert sum(part.seconds for part in gap.parts) == pytest.approx(gap.difference, abs=1e-9)
    assert gap.difference == traces[1].makespan - traces[0].makespan


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_run_is_itself_again_from_its_durations_and_delays(random_schedule, random_costs, seed):
    from pipelab.core.gap import _Run

    one = random_schedule(seed)
    trace = pp.simulate(one, random_costs(seed, one))
    run = _Run.of(trace)
    assert replayed(one, run.seconds, run.moves, run.delay) + run.after == pytest.approx(trace.makespan)


def test_the_band_of_the_prediction_is_laid_beside_the_measured_step():
    banded = pp.simulate(ONE, replace(pp.Costs.uniform(2), band=(0.9, 1.2)))
    for last, where in ((7, "lies within that"), (9, "lies above it"), (5, "lies below it")):
        gap = explain_gap(banded, measured([0, last - 2, 1, 2], [1, last, 2, min(4, last - 2)]))
        assert f"predicted between 5.4 s and 7.2 s; the measured step {where}" in str(gap)
    assert "predicted between" not in str(explain_gap(PREDICTED, PREDICTED))


def test_the_print_and_the_frame_have_a_line_a_cause_and_say_the_clocks():
    gap = explain_gap(PREDICTED, measured([0, 5, 1, 2], [1, 9, 2, 4], notes=["3 ranks share 2 CPU cores"]))
    lines = str(gap).splitlines()
    assert [line.split()[0] for line in lines[:7]] == [
        "cause",
        "F",
        "B",
        "spread",
        "start",
        "waiting",
        "outside",
    ]
    assert lines[7] == "one: 9 s (wall clock) against 6 s predicted: +50.0 %"
    assert lines[-1] == "3 ranks share 2 CPU cores"
    frame = gap.to_frame()
    assert list(frame.columns) == ["cause", "seconds [s]", "fraction", "detail"]
    assert frame["fraction"].sum() == pytest.approx(0.5) and gap.error == pytest.approx(6 / 9 - 1)
    assert repr(gap) == "<Gap of one: 9 s (wall clock) against 6 s predicted: +50.0 %>"


@pytest.mark.parametrize(
    ("start", "end", "devices", "advised"),
    [
        ([0, 4, 1, 2], [1, 8, 2, 4], ("cpu", "cpu"), True),  # 0B0 takes 4 seconds instead of 2
        ([0, 4, 1, 2], [1, 8, 2, 4], ("cuda:0", "cuda:1"), False),
        ([0, 4, 1, 2], [1, 6.2, 2, 4], ("cpu", "cpu"), False),  # by 3 % only
        ([0, 6, 1, 2], [1, 8.5, 2, 4], ("cpu", "cpu"), False),  # mostly waiting
    ],
)
def test_longer_actions_of_ranks_on_one_cpu_come_with_what_to_try(start, end, devices, advised):
    gap = explain_gap(PREDICTED, measured(start, end, devices=devices))
    said = [
        remark for remark in gap.remarks if "pp.profile(..., ranks=2)" in remark and "pp.virtual(2)" in remark
    ]
    assert len(said) == advised


def test_names_are_escaped_in_html():
    gap = explain_gap(PREDICTED, PREDICTED.with_label("<b>"))
    assert "&lt;b&gt;" in gap._repr_html_() and "<b>" not in gap._repr_html_()


def test_a_step_of_no_length_has_no_fractions():
    nothing = pp.simulate(ONE, pp.Costs.uniform(2, 0, 0, 0))
    gap = explain_gap(nothing, nothing)
    assert gap.columns()["fraction"].tolist() == [0.0] * 6 and isinstance(gap, Gap)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (pp.schedule("gpipe", num_ranks=2, num_microbatches=2), "gpipe with 2 ranks and m = 2, and one with"),
        (pp.Schedule([["0F0", "0I0", "0W0"], ["1F0", "1B0"]], name="one"), "their orders differ"),
    ],
)
def test_two_schedules_are_refused(other, message):
    with pytest.raises(PipelabError, match=message):
        explain_gap(pp.simulate(other, pp.Costs.uniform(2)), PREDICTED)


def test_a_schedule_may_have_another_name():
    other = pp.simulate(ONE.with_name("another"), pp.Costs.uniform(2))
    assert explain_gap(other, PREDICTED).difference == 0


def test_something_else_than_traces_is_a_wrong_call():
    with pytest.raises(TypeError, match=r"explain_gap\(\) takes two traces; measured is Report"):
        explain_gap(PREDICTED, PREDICTED.report())
