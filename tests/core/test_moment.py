"""The moments of a step, against the trace's own curves and reasons, over many schedules."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.moment import DONE, RUNS, WAITS, Moment, Moments
from tests.plots.sizes import OVERLAPPED, SIZES, SPLIT_BACKWARD, of_orders, trace

SHAPES = [
    trace(4, 8),
    trace(4, 8, latency=0.25),
    trace(3, 7, "gpipe"),
    trace(1, 1),
    trace(1, 5),
    trace(4, 1),
    trace(2, 4, "zb-h1"),
    of_orders(OVERLAPPED),
    of_orders(SPLIT_BACKWARD),
]


def interleaved() -> pp.Trace:
    order = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
    return pp.simulate(order, pp.Costs.uniform(4, latency=0.5))


def with_bytes(**how: bool) -> pp.Trace:
    held = pp.StageBytes(parameters=(2**20,) * 3, activations=(2**19,) * 3, outputs=(1000,) * 3)
    links = pp.Links(latency=0.1, bandwidth=4000, **how)
    costs = pp.Costs((1,) * 3, (1,) * 3, (1,) * 3, bytes=held, links=links)
    return pp.simulate(pp.schedule("1f1b", num_ranks=3, num_microbatches=6), costs)


ALL = [*SHAPES, interleaved(), with_bytes(), with_bytes(serial=True), with_bytes(blocking=True)]


def names(runs: list[pp.Trace]) -> list[str]:
    return [f"{one.label}-{one.num_ranks}-{k}" for k, one in enumerate(runs)]


def every(shown: pp.Trace) -> list[Moment]:
    moments = Moments(shown)
    return [moments.at(step) for step in range(moments.num_steps + 1)]


@pytest.mark.parametrize("shown", ALL, ids=names(ALL))
def test_there_is_a_moment_for_every_time_at_which_anything_starts_or_ends(shown):
    times = Moments(shown).times
    assert times[0] == 0 and times[-1] == shown.makespan and (np.diff(times) > 0).all()
    for column in (shown.start, shown.end):
        nearest = times[np.argmin(abs(times[:, None] - column), axis=0)]
        assert np.allclose(nearest, column, rtol=1e-9)


@pytest.mark.parametrize("shown", ALL, ids=names(ALL))
def test_as_many_micro_batches_are_in_flight_as_the_memory_curve_counts(shown):
    curves = shown.in_flight()
    for moment in every(shown):
        for one, curve in zip(moment.ranks, curves, strict=True):
            counted = curve.value[np.searchsorted(curve.time, moment.time, side="right") - 1]
            assert len(one.in_flight) == len(set(one.in_flight)) == counted


@pytest.mark.parametrize("shown", ALL, ids=names(ALL))
def test_what_is_kept_is_what_the_memory_curve_says(shown):
    curves = shown.memory()
    for moment in every(shown):
        assert moment.unit == curves[0].unit
        for one, curve in zip(moment.ranks, curves, strict=True):
            assert one.kept == curve.value[curve.time <= moment.time][-1]


@pytest.mark.parametrize("shown", ALL, ids=names(ALL))
def test_what_a_rank_does_is_said_as_why_says_it(shown):
    for moment in every(shown):
        for one in moment.ranks:
            assert one.start <= moment.time and (moment.time < one.end or one.does == DONE)
            if one.does == DONE:
                assert one.row == -1 and one.sentence == f"Rank {one.rank} is done: {one.reason}"
                continue
            reason = shown.why(one.rank, moment.time)
            assert one.sentence == reason.sentence and one.row == reason.rows[0]
            assert one.reason and one.sentence.endswith(f": {one.reason}")
            verb = {RUNS: "is busy with", WAITS: "waits"}[one.does]
            assert f"Rank {one.rank} {verb}" in one.sentence and one.action in one.sentence


@pytest.mark.parametrize("shown", [s for s in ALL if s.num_ranks <= 4], ids=lambda s: s.label)
def test_every_action_starts_once_and_ends_once_in_what_is_told(shown):
    told = " ".join(moment.changes for moment in every(shown))
    for cell in shown.schedule.table.texts():
        assert len(re.findall(rf"\bstarts {re.escape(cell)}(?!\w)", told)) == 1, cell
        assert len(re.findall(rf"\bends {re.escape(cell)}(?!\w)", told)) == 1, cell


def test_a_rank_waits_for_its_next_action_and_then_starts_it():
    moments = Moments(trace(2, 2))
    first, *_, last = every(moments.trace)
    assert first.changes == "At 0 s: rank 0 starts 0F0; the other one waits."
    assert [one.does for one in first.ranks] == [RUNS, WAITS]
    assert first.ranks[1].action == "1F0" and first.ranks[1].in_flight == ()
    assert last.changes.endswith("rank 0 ends 0B1 and is done.")
    assert [one.does for one in last.ranks] == [DONE, DONE]


def test_the_moments_of_one_forward_and_backward_by_hand():
    moments = Moments(pp.simulate(pp.schedule("1f1b", num_ranks=2, num_microbatches=1), pp.Costs.uniform(2)))
    assert moments.times.tolist() == [0, 1, 2, 4, 6]
    assert [moments.at(step).changes for step in range(5)] == [
        "At 0 s: rank 0 starts 0F0; the other one waits.",
        "At 1 s: rank 0 ends 0F0 and waits to start 0B0; rank 1 starts 1F0.",
        "At 2 s: rank 1 ends 1F0 and starts 1B0.",
        "At 4 s: rank 0 starts 0B0; rank 1 ends 1B0 and is done.",
        "At 6 s: rank 0 ends 0B0 and is done.",
    ]
    assert [moments.at(step).ranks[0].in_flight for step in range(5)] == [((0, 0),)] * 4 + [()]
    assert [moments.at(step).ranks[1].in_flight for step in range(5)] == [(), ((1, 0),), ((1, 0),), (), ()]


@pytest.mark.parametrize(
    ("stages", "told"), [(2, "rank 0 starts 0F0; 1 other rank waits"), (3, "2 other ranks wait")]
)
def test_a_rank_that_has_nothing_to_do_does_not_wait_at_the_beginning(stages, told):
    """Of two chains only one has micro-batches, so that the ranks of the other are idle all the while."""
    two_chains = pp.Placement(tuple(range(2 * stages)), chains=2, tied={stages + s: s for s in range(stages)})
    orders = [[f"{s}F0", f"{s}B0"] for s in range(stages)] + [[]] * stages
    shown = pp.simulate(pp.Schedule(orders, two_chains), pp.Costs.uniform(stages))
    first = Moments(shown).at(0)
    assert told in first.changes and "all others" not in first.changes
    assert [one.does for one in first.ranks[stages:]] == [DONE] * stages


def test_the_sum_of_the_same_numbers_in_another_order_is_the_same_moment():
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=1)
    late = 0.1 + 0.2  # 5e-17 after 0.3
    assert late != 0.3
    measured = pp.Trace.from_times(order, [0, 0.9, late, 0.6], [0.3, 1.5, 0.6, 0.9], clock="wall")
    moments = Moments(measured)
    assert np.allclose(moments.times, [0, 0.3, 0.6, 0.9, 1.5]) and len(moments) == 5
    assert moments.at(1).changes == "At 300 ms: rank 0 ends 0F0 and waits to start 0B0; rank 1 starts 1F0."


def test_transfers_are_beside_what_a_rank_does():
    beside = {
        name for moment in every(with_bytes(serial=True)) for one in moment.ranks for name in one.beside
    }
    assert "the transfer of 0F0" in beside and "the transfer of 2B5" in beside


def test_where_sends_block_a_transfer_is_what_the_rank_does():
    actions = {one.action for moment in every(with_bytes(blocking=True)) for one in moment.ranks}
    assert "the transfer of 0F0" in actions
    assert not any(one.beside for moment in every(with_bytes(blocking=True)) for one in moment.ranks)


def test_an_action_that_takes_no_time_is_told():
    shown = pp.simulate(
        pp.schedule("1f1b", num_ranks=2, num_microbatches=1), pp.Costs((0, 1), (1, 1), (0, 0))
    )
    assert (
        Moments(shown).at(0).changes.startswith("At 0 s: rank 0 runs 0F0 in no time and waits to start 0B0")
    )


def test_many_changes_at_once_are_cut_short():
    shown = pp.simulate(pp.schedule("gpipe", num_ranks=8, num_microbatches=16), pp.Costs.uniform(8))
    full = Moments(shown).at(10)
    assert full.changes.count("rank ") == 4 and full.changes.endswith("4 more ranks change.")


def test_of_many_in_flight_the_middle_ones_are_left_out():
    shown = pp.simulate(pp.schedule("gpipe", num_ranks=2, num_microbatches=16), pp.Costs.uniform(2))
    moment = Moments(shown).at(Moments(shown).step_at(15.5))
    assert moment.in_flight_text(0) == "0 1 2 3 4 5 ... 15"


def test_where_a_rank_holds_several_stages_they_are_named():
    texts = {moment.in_flight_text(0) for moment in every(interleaved())}
    assert "s0:0 s0:1 s2:0" in texts
    assert {moment.in_flight_text(0) for moment in every(trace(2, 2))} >= {"0", "0 1"}


def test_bytes_are_said_in_bytes():
    moment = Moments(with_bytes()).at(0)
    assert moment.unit == "bytes" and moment.kept_text(0) == "2.5 MiB" and moment.kept_text(1) == "2 MiB"
    assert Moments(trace(2, 2)).at(0).kept_text(0) == "1 micro-batch"


def test_a_time_finds_the_moment_that_it_lies_in():
    moments = Moments(trace(4, 8))
    for step, time in enumerate(moments.times.tolist()):
        assert moments.step_at(time) == step
    assert moments.step_at(-1) == 0
    assert moments.step_at(1e9) == moments.num_steps
    assert moments.step_at(float(moments.times[3:5].mean())) == 3


def test_a_moment_prints_as_a_table_and_is_escaped_as_html():
    moment = Moments(trace(2, 2)).at(1)
    assert "rank  does" in str(moment) and moment.changes in str(moment)
    assert "<table>" in moment._repr_html_()
    assert repr(Moments(trace(2, 2))).startswith("<Moments of 1f1b: ")


@pytest.mark.parametrize("step", [-1, 10_000])
def test_a_moment_that_is_not_there_is_refused(step):
    moments = Moments(trace(2, 2))
    with pytest.raises(
        pp.PipelabError, match=rf"step is {step}; 1f1b has the moments 0 to {moments.num_steps}"
    ):
        moments.at(step)


@pytest.mark.parametrize("step", [True, 1.0, "1"])
def test_a_moment_has_a_whole_number(step):
    with pytest.raises(TypeError, match="step must be an integer"):
        Moments(trace(2, 2)).at(step)


def test_a_step_that_takes_no_time_is_refused():
    nothing = pp.simulate(
        pp.schedule("1f1b", num_ranks=2, num_microbatches=2), pp.Costs((0, 0), (0, 0), (0, 0))
    )
    with pytest.raises(pp.PipelabError, match="takes no time at all"):
        Moments(nothing)


def test_only_a_trace_has_moments():
    with pytest.raises(TypeError, match="not of Schedule"):
        Moments(pp.schedule("1f1b", num_ranks=2, num_microbatches=2))


@pytest.mark.parametrize("seed", range(30))
def test_random_schedules_with_overlaps_keep_what_their_curves_say(seed, random_schedule, random_costs):
    schedule = random_schedule(seed)
    shown = pp.simulate(schedule, random_costs(seed, schedule))
    if shown.makespan == 0:
        return
    counts = shown.in_flight()
    for moment in every(shown):
        for one, curve in zip(moment.ranks, counts, strict=True):
            assert len(one.in_flight) == curve.value[curve.time <= moment.time][-1]
            assert one.does != WAITS or one.sentence == shown.why(one.rank, moment.time).sentence


def test_sizes_of_all_kinds_end_with_all_ranks_done():
    for num_ranks, num_microbatches in SIZES:
        moments = Moments(trace(num_ranks, num_microbatches))
        assert {one.does for one in moments.at(moments.num_steps).ranks} == {DONE}
