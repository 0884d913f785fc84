from __future__ import annotations

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.profile import Affine, Profile
from pipelab.core.schedules import SCHEDULES
from pipelab.runtime.runnable import check_schedule
from pipelab.widgets.setting import OFFERED, Setting
from tests.widgets.profiles import profile_of


def runs(schedule: pp.Schedule) -> bool:
    try:
        check_schedule(schedule)
    except pp.PipelabError:
        return False
    return True


@pytest.fixture
def setting(profile) -> Setting:
    return Setting.start(profile, batch_size=48, schedule="1f1b", num_ranks=4, num_microbatches=8)


def test_the_start_suits_the_profile(profile):
    first = Setting.start(profile)
    assert first.num_ranks == 4
    assert first.num_microbatches == profile.batch_size
    assert first.split == pp.balance(profile, 4, batch_size=1)


def test_the_first_schedule_is_the_one_that_predicts_the_shortest_step_and_holds_least(profile):
    first = Setting.start(profile, batch_size=48, num_ranks=4, num_microbatches=8)
    names = [name for name in OFFERED if SCHEDULES[name].stages_per_rank == (1, 1)]
    others = [first.changed(schedule=name, stages_per_rank=1) for name in names]
    steps = [other for other in others if other.schedule.has_backward and runs(other.schedule)]
    training = [other for other in steps if other.schedule.placement.chains == 1]
    assert len(training) < len(steps)  # schedules of two chains hold the weights twice
    assert first.predicted.makespan <= min(t.predicted.makespan for t in training) * 1.001
    rivals = [t for t in training if t.predicted.makespan <= first.predicted.makespan * 1.0001]
    assert max(first.schedule.peak_in_flight) == min(max(t.schedule.peak_in_flight) for t in rivals)


def test_a_small_model_and_a_batch_of_one_are_possible():
    first = Setting.start(profile_of(2), batch_size=1)
    assert (first.num_ranks, first.num_microbatches) == (2, 1)


@pytest.mark.parametrize("name", OFFERED)
def test_every_schedule_of_the_menu_can_be_chosen_and_left(setting, name):
    chosen = setting.changed(schedule=name)
    assert chosen.schedule.name == name
    assert chosen.split.num_stages == chosen.schedule.num_model_stages
    assert chosen.predicted.makespan > 0
    back = chosen.changed(schedule="1f1b")
    assert (back.num_ranks, back.num_microbatches) == (4, 8)


def test_the_prediction_is_the_simulation_of_the_costs(setting):
    costs = setting.profile.costs(setting.split, batch_size=6)
    assert setting.predicted == pp.simulate(setting.schedule, costs)


def test_other_ranks_balance_the_cuts_anew(setting):
    moved = setting.moved_cut(0, 1)
    assert moved.split != setting.split
    assert moved.changed(num_ranks=3).split == pp.balance(setting.profile, 3, batch_size=6)


def test_other_micro_batches_leave_the_cuts_where_they_are(setting):
    moved = setting.moved_cut(0, 1)
    assert moved.changed(num_microbatches=16).split == moved.split


@pytest.mark.parametrize("number", [1, 2, 3, 8, 48])
def test_the_whole_batch_stays_fixed(setting, number):
    """All micro-batches together cost what the profile says of so many micro-batches of so many samples."""
    changed = setting.changed(num_microbatches=number, num_ranks=1)
    per_sample = sum(
        line.per_sample
        for line in (*setting.profile.forward, *setting.profile.input_grad, *setting.profile.weight_grad)
    )
    fixed = 3 * 12 * 1e-4 * number
    assert changed.predicted.makespan == pytest.approx(fixed + per_sample * 48)


def test_uneven_micro_batches_cost_the_mean_and_say_so(setting):
    uneven = setting.changed(num_microbatches=7)
    small = setting.profile.costs(uneven.split, batch_size=6)
    large = setting.profile.costs(uneven.split, batch_size=7)
    mean = (np.array(small.forward) * 1 + np.array(large.forward) * 6) / 7
    assert uneven.costs.forward == pytest.approx(mean)
    assert uneven.costs.bytes.activations[0] == pytest.approx(
        (small.bytes.activations[0] + 6 * large.bytes.activations[0]) / 7
    )
    assert "6 or 7 samples" in uneven.notes[0] and "6.86" in uneven.notes[0]
    assert not setting.notes


def test_a_loop_is_entered_with_two_stages_a_rank_and_left_with_one(setting):
    looped = setting.changed(schedule="interleaved-1f1b")
    assert looped.stages_per_rank == 2
    assert looped.split.num_stages == 8
    assert looped.changed(stages_per_rank=3).split.num_stages == 12
    assert looped.changed(schedule="gpipe").stages_per_rank == 1


def test_a_table_given_by_hand_brings_its_own_sizes(setting):
    mine = pp.Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]], name="mine")
    changed = setting.changed(schedule=mine)
    assert (changed.num_ranks, changed.num_microbatches, changed.split.num_stages) == (2, 2, 2)
    with pytest.raises(pp.PipelabError, match="mine is a finished table: its num_microbatches is 2"):
        changed.changed(num_microbatches=4)
    assert changed.changed(schedule="gpipe").schedule.name == "gpipe"


def test_a_table_by_hand_may_be_the_start(profile):
    mine = pp.Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="mine")
    assert Setting.start(profile, schedule=mine).schedule == mine


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"num_ranks": 13}, "needs 13 stages, but the model has 12 layers"),
        ({"num_ranks": 0}, "num_ranks is 0"),
        ({"num_microbatches": 49}, "49 micro-batches are more than the 48 samples"),
        ({"num_microbatches": 0}, "num_microbatches is 0"),
        ({"num_microbatches": 10**12}, "more than the 48 samples"),
        ({"schedule": "1f2b"}, "did you mean '1f1b'"),
        ({"stages_per_rank": 2}, "stages_per_rank"),
        ({"split": ["blocks.5"]}, "The split has 2 stages, but 1f1b on 4 ranks"),
        ({"split": ["blocks.5", "blocks.4", "blocks.6"]}, "blocks.4"),
        ({"split": ["blocks.5", "nope", "blocks.6"]}, "nope"),
    ],
)
def test_what_is_impossible_is_refused_with_a_sentence(setting, wish, sentence):
    before = setting.predicted
    with pytest.raises(pp.PipelabError, match=sentence):
        setting.changed(**wish)
    assert setting.predicted == before


def test_a_wrong_call_names_what_there_is(setting):
    with pytest.raises(TypeError, match="num_rank"):
        setting.changed(num_rank=4)
    with pytest.raises(TypeError, match="list of layer names, not str"):
        setting.changed(split="blocks.3")
    with pytest.raises(TypeError, match="Schedule or a name, not int"):
        setting.changed(schedule=3)


def test_what_is_not_possible_one_by_one_may_be_together(setting):
    changed = setting.changed(split=["blocks.5"], num_ranks=2)
    assert changed.split == pp.Split(["blocks.5"])


def test_virtual_devices_are_as_many_as_ranks(profile):
    setting = Setting.start(profile, devices=pp.virtual(3, threads=2))
    assert setting.num_ranks == 3
    assert setting.changed(num_ranks=5).plan.devices == pp.virtual(5, threads=2)


def test_named_devices_must_suffice(profile):
    setting = Setting.start(profile, devices=["cpu", "cpu"], schedule="1f1b")
    assert setting.plan.devices == ("cpu", "cpu")
    assert setting.changed(num_ranks=1).plan.devices == ("cpu",)
    with pytest.raises(pp.PipelabError, match="3 ranks need 3 devices"):
        setting.changed(num_ranks=3)


def test_links_reach_the_prediction_and_the_plan(profile):
    slow = pp.Links(latency=1.0)
    setting = Setting.start(profile, schedule="1f1b", links=slow)
    assert setting.plan.links == slow
    assert setting.predicted.makespan > 6.0


def test_cuts_may_name_a_module_that_contains_layers():
    names = ["embed", "blocks.0.a", "blocks.0.b", "blocks.1.a", "head"]
    one = [Affine(1.0)] * 5
    profile = Profile(names, one, one, one, [1] * 5, one, one, 4, (4,), "cpu")
    setting = Setting.start(profile, num_ranks=2, split=["blocks.1"])
    assert setting.cut_positions == (3,)
    assert setting.moved_cut(0, 2).split == pp.Split(["blocks.0.b"])


def test_the_lab_offers_schedules_that_are_one_training_step(profile):
    assert {"gpipe", "1f1b"} <= set(OFFERED) <= set(SCHEDULES)
    assert not {"pipedream", "pipedream-2bw", "seq-1f1b"} & set(OFFERED)


def test_a_table_of_several_mini_batches_or_slices_is_refused(profile):
    sliced = pp.Schedule([["0F0", "0F1", "0B1", "0B0"]], slices=2, name="mine")
    with pytest.raises(pp.PipelabError, match=r"2 slices a micro-batch; the Lab shows one training step"):
        Setting.start(profile, schedule=sliced)


def test_the_first_schedule_is_one_that_a_pipeline_runs(profile):
    for per_rank in (1, 2):
        check_schedule(Setting.start(profile, num_ranks=3, stages_per_rank=per_rank).schedule)


def test_where_no_schedule_fits_the_reason_is_given(profile):
    with pytest.raises(pp.PipelabError, match="layers to cut between"):
        Setting.start(profile, num_ranks=10_000)


def test_a_searched_schedule_is_made_for_the_costs_of_the_setting(setting):
    searched = setting.changed(schedule="zb-auto")
    sizes = {"num_ranks": 4, "num_microbatches": 8}
    assert searched.schedule == pp.schedule("zb-auto", **sizes, costs=searched.costs)
    moved = searched.changed(split=["blocks.2", "blocks.3", "blocks.4"])
    assert moved.schedule == pp.schedule("zb-auto", **sizes, costs=moved.costs) != searched.schedule
    assert moved.balanced().schedule == searched.schedule


def test_a_searched_schedule_is_not_searched_again_for_the_same_costs(setting, monkeypatch):
    searched = setting.changed(schedule="zb-auto")
    monkeypatch.setattr("pipelab.widgets.setting.build", None)
    assert searched.changed(split=searched.split).schedule is searched.schedule


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_ranks", 0, "num_ranks is 0"),
        ("num_microbatches", 0, "num_microbatches is 0"),
        ("stages_per_rank", 0, "stages_per_rank is 0"),
        ("num_ranks", "2", "num_ranks must be an integer, not '2'"),
        ("stages_per_rank", "2", "stages_per_rank must be an integer, not '2'"),
        ("batch_size", "8", "batch_size must be an integer, not '8'"),
        ("batch_size", 8.5, "batch_size must be an integer, not 8.5"),
    ],
)
def test_what_is_given_to_begin_with_is_never_taken_for_left_out(profile, name, value, sentence):
    with pytest.raises((pp.PipelabError, TypeError), match=sentence):
        Setting.start(profile, **{"batch_size": 48, name: value})


def test_more_micro_batches_than_samples_are_refused_before_anything_is_built(setting, monkeypatch):
    monkeypatch.setattr("pipelab.widgets.setting.build", lambda *_: pytest.fail("was built"))
    with pytest.raises(pp.PipelabError, match="more than the 48 samples"):
        setting.changed(num_microbatches=1_000_000)
