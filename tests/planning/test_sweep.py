"""The call: which points there are, and that all of them run the same model."""

from __future__ import annotations

from functools import partial

import pytest

import pipelab as pp
from tests.planning.test_batch import profile_of

TRAINING = [name for name in pp.SCHEDULES if name not in ("forward-only", "pipedream", "pipedream-2bw")]
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
        ({"links": 3}, TypeError, "links must be Links, one or several, not int"),
        ({"links": pp.Links(bandwidth=1.0)}, pp.PipelabError, r"a bandwidth needs bytes.*StageBytes"),
        ({"links": [pp.Links(), pp.Links(bandwidth=[[1, 2], [3, 4]])]}, pp.PipelabError, "needs bytes"),
        ({"links": pp.Links(bandwidth=1e9), "costs": pp.Costs.uniform(2)}, pp.PipelabError, "needs bytes"),
        ({"costs": lambda **sizes: 3}, TypeError, "costs=<lambda> must return Costs, not int"),
        ({"num_microbatch": 3}, TypeError, "did you mean 'num_microbatches'"),
        ({"feed": 3}, TypeError, "^sweep takes no 'feed', nor does any of these schedules.$"),
        ({"schedules": "zb-auto", "max_bites": 3}, TypeError, "did you mean 'max_bytes'"),
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


BYTES = pp.StageBytes((0,) * 4, (8,) * 4, (2,) * 4)
WITH_BYTES = pp.Costs((1,) * 4, (1,) * 4, (1,) * 4, bytes=BYTES)
SQUARE = [[0.25 if r != c else 0.0 for c in range(4)] for r in range(4)]


def with_links(*links, **sizes):
    wanted = {"schedules": "1f1b", "num_ranks": 4, "num_microbatches": [4, 8], "costs": WITH_BYTES, **sizes}
    return sweep(**wanted, links=links)


@pytest.mark.parametrize(
    ("links", "texts"),
    [
        ([pp.Links(0.5), pp.Links(1)], ["", ""]),
        (
            [pp.Links(bandwidth=1.0), pp.Links(bandwidth=10.0), pp.Links(bandwidth=1.0, serial=True)],
            ["bandwidth 1 B/s", "bandwidth 10 B/s", "bandwidth 1 B/s, serial"],
        ),
        ([pp.Links(), pp.Links(bandwidth=1e9)], ["bandwidth unlimited", "bandwidth 1e+09 B/s"]),
        ([pp.Links(bandwidth=1e9), pp.Links(bandwidth=1e9 + 1)], ["bandwidth 1e+09 B/s", "bandwidth 1000000001.0 B/s"]),
        ([pp.Links(1, blocking=True), pp.Links(1)], ["blocking", "plain"]),
        ([pp.Links(1), pp.Links(SQUARE), pp.Links([[2 * x for x in row] for row in SQUARE])],
         ["", "latency table 1", "latency table 2"]),
    ],
)  # fmt: skip
def test_links_are_told_apart_by_what_differs(links, texts):
    found = with_links(*links)
    assert [(p.links, p.links_text) for p in found] == [
        pair for pair in zip(links, texts, strict=True) for _ in range(2)
    ]
    assert ("links" in found.columns()) is any(texts)
    shown = [(p.latency, p.links_text, p.num_microbatches) for p in found]
    assert len(set(shown)) == len(found), "no two rows look alike"
    for link in links:
        assert [p.links for p in found.where(links=link)] == [link] * 2
    assert all(text in str(found) for text in texts)


def test_what_several_links_share_is_a_condition_and_equal_ones_run_once():
    found = with_links(
        pp.Links(0.5, 1e9, serial=True), pp.Links(1.0, 1e9, serial=True), pp.Links(1.0, 1e9, serial=True)
    )
    assert len(found) == 4
    assert "links as in the rows, all with bandwidth=1000000000.0, serial=True" in found.conditions


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("pipedream", {}, "pipedream runs 8 mini-batches"),
        ("pipedream-2bw", {}, "pipedream-2bw runs 3 mini-batches"),
        ("forward-only", {}, "forward-only has no backward, and 1f1b has one"),
    ],
)
def test_what_does_other_work_than_a_training_step_is_a_refused_row(name, options, said):
    found = sweep(schedules=[name, "1f1b"], num_ranks=4, num_microbatches=8, **options)
    assert [p.schedule for p in found.refused] == [name]
    assert said in found.refused[0].refusal and said in str(found)
    assert found.best().schedule == "1f1b"
    with pytest.raises(pp.PipelabError, match=said):
        found.refused[0].trace()


def test_one_minibatch_is_a_step():
    assert not sweep(schedules="pipedream-2bw", num_ranks=2, num_microbatches=4, num_minibatches=1).refused


def test_schedules_without_a_backward_are_compared_among_themselves():
    def forwards(num_ranks, num_microbatches):
        return pp.Schedule([[f"{r}F{i}" for i in range(num_microbatches)] for r in range(num_ranks)])

    found = sweep(
        schedules={"forward-only": "forward-only", "mine": forwards}, num_ranks=2, num_microbatches=4
    )
    assert not found.refused


def test_an_option_that_some_schedules_take_is_said_to_be_passed_to_them_only():
    found = sweep(
        schedules=["1f1b", "zb-auto"], num_ranks=2, num_microbatches=4, max_in_flight=2, progress=False
    )
    assert (
        "max_in_flight=2 stage chunks passed to zb-auto and not to the others (a limit on all: "
        "best(peak_activations=...))"
    ) in found.conditions
    assert "passed to" not in str(sweep(schedules="1f1b", num_ranks=2, num_microbatches=4, progress=False))


def test_a_refused_row_has_the_links_of_the_others_and_makes_no_column_of_latencies():
    costs = pp.Costs.uniform(4, latency=0.5)
    found = sweep(
        schedules=["1f1b", "pipedream"], num_ranks=4, num_microbatches=4, costs=costs, progress=False
    )
    assert found.refused and found.values("latency") == (0.5,)
    assert "latency [s]" not in found.columns() and len(found.where(latency=0.5)) == 2
