"""What ranks hold over time, and at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Kind
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.feed import Feed, queued
from pipelab.core.memory import PARTS, MemoryCurve, peaks
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

BYTES = StageBytes(parameters=(100, 200), activations=(7, 9), outputs=(0, 0))


def run(one, bytes=BYTES):
    count = one.num_model_stages
    return simulate(one, Costs((1,) * count, (1,) * count, (1,) * count, bytes=bytes))


def steps(curve):
    return list(zip(curve.time.tolist(), curve.value.tolist(), strict=True))


def test_activations_live_from_the_start_of_the_forward_to_the_end_of_the_backward():
    one = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])
    first, last = run(one).memory()
    assert (first.rank, first.unit, last.rank) == (0, "bytes", 1)
    assert steps(first) == [(0, 200), (0, 207), (1, 214), (6, 207), (9, 200)]
    assert steps(last) == [(0, 400), (1, 409), (4, 400), (4, 409), (7, 400)]
    assert first.peak == 214


def test_a_split_backward_keeps_them_until_the_weight_gradient():
    (curve,) = run(Schedule([["0F0", "0I0", "0W0"]]), StageBytes((0,), (7,), (0,))).memory()
    assert steps(curve) == [(0, 0), (0, 7), (3, 0)]


def test_where_it_is_known_what_the_weights_need_i_lets_go_of_the_rest():
    one = Schedule([["0F0", "0I0", "0W0"]])
    (less,) = run(one, StageBytes((0,), (7,), (0,), until_weight_grad=(5,))).memory()
    assert steps(less) == [(0, 0), (0, 7), (2, 5), (3, 0)]
    (more,) = run(one, StageBytes((0,), (7,), (0,), until_weight_grad=(9,))).memory()
    assert steps(more) == [(0, 0), (0, 7), (2, 9), (3, 0)] and more.peak == 9


def test_a_whole_backward_beside_split_ones_lets_go_of_everything():
    one = Schedule([["0F0", "0I0", "0F1", "0B1", "0W0"]])
    held = StageBytes((0,), (7,), (0,), until_weight_grad=(5,))
    (curve,) = run(one, held).memory()
    assert steps(curve) == [(0, 0), (0, 7), (2, 5), (2, 12), (5, 5), (6, 0)]
    assert peaks(one, held).tolist() == [12] and peaks(
        one, replace(held, until_weight_grad=None)
    ).tolist() == [14]


def test_without_a_backward_there_are_no_gradients_and_nothing_is_kept():
    first, _ = run(schedule("forward-only", num_ranks=2, num_microbatches=2)).memory()
    assert steps(first) == [(0, 100), (0, 107), (1, 100), (1, 107), (2, 100)]


def test_in_an_overlap_the_forward_is_taken_in_before_the_backward_lets_go():
    one = Schedule([["0F0", "(0B0;0F1)OVERLAP_F_B", "0B1"]])
    assert peaks(one).tolist() == [2] and one.peak_in_flight == (2,)


def test_unknown_bytes_count_micro_batches():
    one = schedule("1f1b", num_ranks=2, num_microbatches=3)
    trace = simulate(one, Costs.uniform(2))
    assert [curve.unit for curve in trace.memory()] == ["micro-batches"] * 2
    assert trace.memory() == trace.in_flight()
    assert [curve.peak for curve in trace.in_flight()] == [2, 1]


def test_a_replica_shares_the_weights_of_its_original_on_the_same_rank_only():
    same = Schedule([["0F0", "1F1"]], Placement((0, 0), 2, {1: 0}))
    apart = Schedule([["0F0"], ["1F1"]], Placement((0, 1), 2, {1: 0}))
    held = StageBytes((100,), (0,), (0,))
    assert peaks(same, held).tolist() == [100] and peaks(apart, held).tolist() == [100, 100]


def test_parts_at_the_peak_by_hand():
    """Rank 0 has the optimizer's 3 beside 2 x 100, and two micro-batches from time 1; rank 1 one of them."""
    one = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])
    held = StageBytes((100, 200), (7, 9), (0, 0), optimizer=(3, 4))
    parts = run(one, held).memory_parts()
    assert parts.time == (1, 1) and parts.total == (217, 413)
    assert parts.bytes == ((100, 100, 3, 14, 0), (200, 200, 4, 9, 0))
    assert run(one, held).report().peak_bytes == (217, 413)


def test_without_a_backward_no_part_is_gradients_or_optimizer():
    held = StageBytes((100, 200), (7, 9), (0, 0), optimizer=(3, 4))
    parts = run(schedule("forward-only", num_ranks=2, num_microbatches=2), held).memory_parts()
    assert parts.bytes == ((100, 0, 0, 7, 0), (200, 0, 0, 9, 0))


def test_queued_input_lies_with_the_rank_that_takes_it():
    """Prepared at 1, 2, 3; taken at 1, then at 4 and 7 by 1F1B: at 3 two of them wait. See the head of `feed`."""
    one = Schedule([["0F0", "0B0", "0F1", "0B1", "0F2", "0B2"]])
    costs = Costs((1,), (1,), (1,), bytes=StageBytes((100,), (7,), (0,)))
    trace = simulate(one, costs, feed=Feed(prepare=1.0, queue=2, bytes=10))
    (curve,) = trace.memory()
    assert [value for time, value in steps(curve) if time == 3] == [227]
    assert curve.peak == 227 == trace.report().peak_bytes[0]
    parts = trace.memory_parts()
    assert parts.time == (3,) and parts.bytes == ((100, 100, 0, 7, 20),)
    assert steps(curve)[-1] == (10, 200)
    assert trace.in_flight()[0].peak == 1


def test_a_forward_takes_its_input_out_before_it_makes_activations():
    """Micro-batch 1 waits from 2 to 4 beside the activations of 0: 7 + 10. Then it makes 7 itself: 7 + 7, not 24."""
    one = Schedule([["0F0", "0F1", "0B0", "0B1"]])
    costs = Costs((3,), (1,), (1,), bytes=StageBytes((0,), (7,), (0,)))
    trace = simulate(one, costs, feed=Feed(prepare=1.0, queue=1, bytes=10))
    assert trace.report().peak_bytes == (17,)


def test_parts_print_what_is_there_and_frames_hold_all():
    parts = run(Schedule([["0F0", "0B0"]]), StageBytes((2**20,), (2**10,), (0,))).memory_parts()
    assert str(parts).splitlines()[0].split() == [
        "rank",
        "at",
        "weights",
        "gradients",
        "activations",
        "total",
    ]
    assert str(parts).splitlines()[1].split()[:6] == ["0", "0", "s", "1", "MiB", "1"]
    assert "<td>1 KiB</td>" in parts._repr_html_()
    assert list(parts.to_frame().columns) == ["rank", "time [s]"] + [
        f"{name} [bytes]" for name in (*PARTS, "total")
    ]


def test_parts_need_bytes():
    with pytest.raises(PipelabError, match=r"stages of custom hold is not known.*bytes=StageBytes"):
        run(Schedule([["0F0", "0B0"]]), None).memory_parts()


def test_curves_are_values():
    one, other = (MemoryCurve(0, np.array([0.0]), np.array([value]), "bytes") for value in (1.0, 2.0))
    assert one == MemoryCurve(0, np.array([0.0]), np.array([1.0]), "bytes") and one != other and one != 1
    assert hash(one) != hash(other) and repr(one) == "<MemoryCurve: rank 0, 1 steps, peak 1 bytes>"


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_curves_and_peaks_agree_with_counting(random_schedule, random_costs, seed, other):
    one = random_schedule(seed)
    trace = simulate(one, random_costs(other, one))
    counted = [0] * one.num_ranks
    for rank, order in enumerate(one.orders):
        held = 0
        for action in order:
            members = action.members or (action,)
            held += sum(member.kind is Kind.F for member in members)
            counted[rank] = max(counted[rank], held)
            if one.has_backward:
                held -= sum(member.kind in (Kind.B, Kind.W) for member in members)
            else:
                held -= sum(member.kind is Kind.F for member in members)
        assert held == 0
    if one.has_backward or not one.table.has_overlaps:
        assert one.peak_in_flight == tuple(counted) == tuple(curve.peak for curve in trace.in_flight())
    if trace.bytes is not None:
        parts = trace.memory_parts()
        assert parts.total == pytest.approx([curve.peak for curve in trace.memory()])
        assert parts.total == pytest.approx(trace.report().peak_bytes)
    for curve in (*trace.memory(), *trace.in_flight()):
        assert curve.time[0] == 0 and (np.diff(curve.time) >= 0).all()
        assert curve.value[-1] == pytest.approx(curve.value[0]) and curve.value.min() == pytest.approx(
            curve.value[0]
        )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_queue_adds_what_waits_and_nothing_else(random_schedule, random_costs, seed, other):
    """At any moment: the curve with the feed's bytes is the curve without, and what `queued` says is waiting."""
    one = random_schedule(seed)
    ones = (1.0,) * one.num_model_stages
    costs = replace(random_costs(other, one), bytes=StageBytes(ones, ones, ones))
    feed = Feed(0.3, 0.7, workers=2, queue=2, bytes=5)
    with_queue = simulate(one, costs, feed=feed)
    without = simulate(one, costs, feed=replace(feed, bytes=0))

    def at(times, values, moment):
        return values[np.searchsorted(times, moment, side="right") - 1]

    for rank, (curve, other_curve) in enumerate(zip(with_queue.memory(), without.memory(), strict=True)):
        time, count = queued(with_queue).steps(rank)
        for moment in (*curve.time.tolist(), with_queue.makespan / 3):
            waiting = 5 * at(time, count, moment)
            assert (
                at(curve.time, curve.value, moment)
                == at(other_curve.time, other_curve.value, moment) + waiting
            )
        assert curve.peak == with_queue.memory_parts().total[rank] == with_queue.report().peak_bytes[rank]


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_peaks_do_not_depend_on_costs(random_schedule, random_costs, seed):
    one = random_schedule(seed)
    held = StageBytes(*(tuple(range(1, one.num_model_stages + 1)),) * 3)
    for k in range(3):
        curves = simulate(one, random_costs(seed + k, one)).in_flight()
        assert tuple(curve.peak for curve in curves) == one.peak_in_flight
    assert (peaks(one, held) >= peaks(one)).all()
