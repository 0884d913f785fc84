"""The call: which points there are, and that all of them run the same model."""

from __future__ import annotations

from functools import partial

import pytest

import pipelab as pp
from tests.planning.test_batch import profile_of

TRAINING = [name for name in pp.SCHEDULES if name != "forward-only"]
sweep = partial(pp.sweep, progress=False)


def test_a_point_is_what_simulate_says():
    costs = pp.Costs((1, 2, 1, 1), (1, 2, 1, 1), (1, 2, 1, 1), links=pp.Links(0.25))
    for point in sweep(schedules=["gpipe", "1f1b"], num_ranks=4, num_microbatches=[1, 3, 8], costs=costs):
        order = pp.schedule(point.schedule, num_ranks=4, num_microbatches=point.num_microbatches)
        assert point.trace() == pp.simulate(order, costs)
        assert point.value("makespan") == pp.simulate(order, costs).makespan


def test_points_run_through_all_lists_schedule_by_schedule():
    found = sweep(
        schedules=["gpipe", "1f1b"],
        num_ranks=[2, 3],
        num_microbatches=[4, 5],
        links=[pp.Links(), pp.Links(1)],
    )
    assert len(found) == 16
    assert [p.schedule for p in found] == ["gpipe"] * 8 + ["1f1b"] * 8
    assert found.values("latency") == (0, 1) and "latency [s]" in found.columns()
    assert found.values("num_ranks") == (2, 3)


@pytest.mark.parametrize("name", TRAINING)
def test_every_schedule_runs_the_same_model_at_equal_work(name):
    """By default the work of a rank is m (F + I + W), into however many stages the model is cut."""
    found = sweep(schedules=name, num_ranks=4, num_microbatches=8)
    (point,) = found.points
    if point.refusal:
        pytest.skip(point.refusal)
    order = point.trace().schedule
    assert sum(point.trace().report().busy) == pytest.approx(4 * 3 * order.num_microbatches / order.slices)


def test_several_stages_a_rank_get_the_given_costs_cut_evenly():
    costs = pp.Costs((1, 2, 1, 1), (1, 2, 1, 1), (1, 2, 1, 1))
    found = sweep(schedules="interleaved-1f1b", num_ranks=4, num_microbatches=8, costs=costs)
    (point,) = found.points
    assert point.stages_per_rank == 2
    assert point.costs.forward == (0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5)
    assert sum(point.trace().report().busy) == 8 * 3 * 5
    assert point.value("peak_activations") == max(point.trace().report().peak_in_flight) / 2


def test_costs_that_cannot_be_cut_evenly_are_a_refused_row():
    found = sweep(schedules="gpipe", num_ranks=[2, 3, 4], num_microbatches=4, costs=pp.Costs.uniform(2))
    assert [p.num_ranks for p in found.refused] == [3]
    assert "3 model stages" in found.refused[0].refusal


def test_the_whole_batch_stays_fixed_under_a_profile():
    """On one rank the step takes the fixed part of every layer m times, and the rest once."""
    found = sweep(
        schedules="gpipe", num_ranks=1, num_microbatches=[1, 2, 5, 10], profile=profile_of(), batch_size=10
    )
    for point in found:
        assert point.value("makespan") == pytest.approx(3 * (6e-3 * point.num_microbatches + 24e-3 * 10))
    peaks = [p.value("peak_bytes") for p in sweep(
        schedules="gpipe", num_ranks=2, num_microbatches=[1, 2, 5], profile=profile_of(), batch_size=10
    )]  # fmt: skip
    assert peaks == pytest.approx([peaks[0]] * 3), (
        "GPipe holds the whole batch, into however many pieces it is cut"
    )


def test_without_a_split_the_stages_are_balanced_and_with_one_it_is_kept():
    profile = profile_of()
    given = pp.Split(["blocks.1"])
    free = sweep(schedules="1f1b", num_ranks=[2, 3], num_microbatches=4, profile=profile)
    fixed = sweep(schedules="1f1b", num_ranks=[2, 3], num_microbatches=4, profile=profile, split=given)
    assert free.points[0].costs == profile.costs(pp.balance(profile, 2, batch_size=2), batch_size=2)
    assert fixed.points[0].costs == profile.costs(given, batch_size=2)
    assert "The split has 2 stages" in fixed.refused[0].refusal
    assert "batch of 8 samples on cpu" in free.conditions and "balanced" in free.conditions


def test_more_micro_batches_than_samples_are_a_refused_row():
    found = sweep(schedules="gpipe", num_ranks=2, num_microbatches=[8, 9], profile=profile_of())
    assert "more than the 8 samples" in found.refused[0].refusal


def test_costs_may_be_a_function_of_the_sizes():
    def rule(num_stages, num_microbatches):
        """Eight seconds shared by the micro-batches."""
        return pp.Costs.uniform(num_stages, forward=8 / num_microbatches)

    found = sweep(schedules=["gpipe", "interleaved-1f1b"], num_ranks=2, num_microbatches=4, costs=rule)
    assert [p.costs.num_stages for p in found] == [2, 4]
    assert found.points[0].costs.forward == (2, 2)
    assert found.conditions.startswith("costs by rule: Eight seconds shared by the micro-batches; ")


def test_a_schedule_of_ones_own_is_a_function_with_a_label():
    def mine(num_ranks, num_microbatches):
        return pp.schedule("gpipe", num_ranks=num_ranks, num_microbatches=num_microbatches)

    wide = partial(pp.schedule, "interleaved-1f1b")
    schedules = {"mine": mine, "gpipe": "gpipe", "three loops": partial(wide, stages_per_rank=3)}
    found = sweep(schedules=schedules, num_ranks=2, num_microbatches=4)
    assert found.schedules == ("mine", "gpipe", "three loops")
    assert found.points[0].value("makespan") == found.points[1].value("makespan")
    assert [p.stages_per_rank for p in found] == [1, 1, 3]


def test_all_schedules_are_the_table_itself():
    found = sweep(schedules=pp.SCHEDULES, num_ranks=2, num_microbatches=4)
    assert found.schedules == tuple(pp.SCHEDULES)


def test_stages_per_rank_given_hold_for_all_and_are_refused_where_they_do_not_fit():
    found = sweep(
        schedules=["1f1b", "interleaved-1f1b"], num_ranks=2, num_microbatches=4, stages_per_rank=[1, 2, 4]
    )
    assert [(p.schedule, p.stages_per_rank) for p in found.refused] == [("1f1b", 2), ("1f1b", 4)]
    assert "1f1b takes" in str(found)


def test_a_sweep_of_refusals_only_is_an_error_with_the_reason():
    with pytest.raises(pp.PipelabError, match=r"Every size was refused\. 1f1b: 1f1b takes"):
        sweep(schedules="1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=3)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"schedules": "gpip"}, pp.PipelabError, "did you mean 'gpipe'"),
        ({"schedules": 3}, TypeError, "not int"),
        ({"schedules": {"a": 3}}, TypeError, "holds int"),
        ({"schedules": []}, pp.PipelabError, "no points"),
        ({"num_ranks": 0}, pp.PipelabError, "num_ranks holds 0"),
        ({"num_microbatches": []}, pp.PipelabError, "num_microbatches is empty"),
        ({"num_microbatches": [2.5]}, (TypeError, pp.PipelabError), "num_microbatches"),
        ({"costs": 3}, TypeError, "not int"),
        ({"links": 0.5}, TypeError, "float"),
        ({"links": [0.5]}, TypeError, "not float"),
        ({"split": pp.Split(["a"])}, TypeError, "with a profile only"),
        ({"profile": 3}, TypeError, "pp.profile"),
        ({"num_microbatch": 3}, TypeError, "num_microbatch"),
    ],
)
def test_wrong_calls_are_answered_before_anything_runs(wrong, error, said):
    right = {"schedules": ["gpipe"], "num_ranks": 2, "num_microbatches": [2, 4]}
    with pytest.raises(error, match=said):
        sweep(**{**right, **wrong})


def test_costs_and_a_profile_are_too_much():
    with pytest.raises(TypeError, match="costs or a profile"):
        sweep(
            schedules="gpipe",
            num_ranks=2,
            num_microbatches=2,
            costs=pp.Costs.uniform(2),
            profile=profile_of(),
        )


def test_a_function_that_makes_no_schedule_is_named():
    with pytest.raises(TypeError, match="mine must return a Schedule, not list"):
        sweep(schedules={"mine": lambda num_ranks, num_microbatches: []}, num_ranks=2, num_microbatches=2)


def test_an_error_of_the_users_own_function_keeps_its_type():
    def broken(num_ranks, num_microbatches):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sweep(schedules={"broken": broken}, num_ranks=2, num_microbatches=2)


def test_progress_counts_points_and_an_interrupt_leaves_at_once():
    seen = []
    pp.sweep(
        schedules="gpipe", num_ranks=2, num_microbatches=[1, 2, 3], progress=lambda *step: seen.append(step)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp.sweep(schedules="gpipe", num_ranks=2, num_microbatches=[1, 2, 3], progress=interrupt)


def test_a_short_sweep_shows_no_bar(capsys):
    pp.sweep(schedules="gpipe", num_ranks=2, num_microbatches=[1, 2, 3])
    assert capsys.readouterr().err.strip("\r ") == ""


@pytest.mark.parametrize("name", [name for name, info in pp.SCHEDULES.items() if "costs" in info.keywords])
def test_a_schedule_that_takes_costs_is_made_for_those_of_its_row_and_the_table_says_so(name):
    costs = pp.Costs((1, 1, 3, 1), (1, 2, 3, 1), (1, 1, 2, 1), links=pp.Links(0.5))
    (point,) = sweep(schedules=name, num_ranks=4, num_microbatches=8, costs=costs).points
    v = point.stages_per_rank
    made = pp.schedule(name, num_ranks=4, num_microbatches=8, stages_per_rank=v, costs=point.costs)
    assert point.trace().schedule == made
    assert f"made for the costs of each row: {name}" in str(
        sweep(schedules=[name, "1f1b"], num_ranks=4, num_microbatches=8)
    )
    assert "made for" not in sweep(schedules="1f1b", num_ranks=4, num_microbatches=8).conditions
