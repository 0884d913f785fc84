from __future__ import annotations

import base64
import gc
import io
import pickle
import threading

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets import widget as registry
from PIL import Image
from torch import nn

import pipelab as pp
from pipelab.widgets.shown import parts_shown
from tests.widgets.labs import batch, live_lab, small_model
from tests.widgets.profiles import profile_of


@pytest.fixture
def lab(profile):
    lab = pp.Lab.from_profile(profile, batch_size=48, schedule="1f1b", num_ranks=4, num_microbatches=8)
    yield lab
    lab.close()


@pytest.fixture
def live():
    lab = live_lab()
    yield lab
    lab.close()


def png(lab) -> bytes:
    return lab.png()


def test_what_is_shown_is_a_value(lab):
    assert lab.schedule == pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    assert lab.split == pp.balance(lab.profile, 4, batch_size=6)
    assert lab.predicted == pp.simulate(lab.schedule, lab.profile.costs(lab.split, batch_size=6))
    assert lab.plan == pp.Plan(lab.split, lab.schedule)
    assert lab.measured is None
    assert lab.batch_size == 48


@pytest.mark.parametrize(
    ("name", "value"), [("num_ranks", 3), ("num_microbatches", 5), ("schedule", "gpipe")]
)
def test_setting_from_code_moves_the_picture_and_the_controls(lab, name, value):
    before = png(lab)
    setattr(lab, name, value)
    assert getattr(lab._controls.choices, name) == value
    assert lab._gallery.upper.trace is lab.predicted
    assert png(lab) != before


@pytest.mark.parametrize(
    ("name", "value"), [("memory", True), ("critical_path", True), ("memory_limit", 1e7)]
)
def test_what_the_timeline_shows_can_be_set(lab, name, value):
    lab.memory = name == "memory_limit"
    before = png(lab)
    setattr(lab, name, value)
    assert getattr(lab._gallery.upper, name) == value
    assert png(lab) != before
    assert lab._controls.editor.memory_limit == lab.memory_limit


@pytest.mark.parametrize("name", ["memory", "critical_path"])
def test_a_button_of_the_timeline_is_the_labs(lab, name):
    setattr(lab._gallery.upper, name, True)
    assert getattr(lab, name)


def test_where_to_begin_may_be_said(profile):
    lab = pp.Lab(profile, view="both", memory=True, critical_path=True, memory_limit=1e9, num_ranks=2)
    assert (lab.view, lab.memory, lab.critical_path, lab.memory_limit) == ("both", True, True, 1e9)
    assert lab._gallery.upper.memory and lab._controls.view.value == "both"
    lab.close()


def test_setting_the_split_moves_the_borders(lab):
    lab.split = ["blocks.2", "blocks.5", "blocks.9"]
    assert lab.split == pp.Split(["blocks.2", "blocks.5", "blocks.9"])
    assert lab._controls.editor.split == lab.split


def test_moving_a_control_does_what_code_does(lab):
    lab._controls.choices.num_ranks = 3
    assert lab.num_ranks == lab.predicted.num_ranks == 3
    lab._controls.choices.schedule = "gpipe"
    assert lab.schedule.name == "gpipe"
    lab._controls.editor.split = pp.Split(["blocks.2", "blocks.5"])
    assert lab.split == pp.Split(["blocks.2", "blocks.5"])
    lab._controls.editor.balance()
    assert lab.split == pp.balance(lab.profile, 3, batch_size=6)
    lab._controls.view.value = "predicted"
    assert lab.view == "predicted"


def test_undoing_a_change_of_ranks_brings_the_ranks_back(lab):
    before = lab.split
    lab.num_ranks = 3
    lab._controls.editor.split = before
    assert (lab.num_ranks, lab.split, lab.message) == (4, before, "")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_ranks", 99, "needs 99 stages, but the model has 12 layers"),
        ("num_microbatches", 10**12, "more than the 48 samples"),
        ("num_microbatches", 49, "more than the 48 samples"),
        ("schedule", "1f2b", "did you mean '1f1b'"),
        ("split", ["blocks.1"], "The split has 2 stages"),
        ("stages_per_rank", 2, "stages_per_rank"),
        ("view", "sideways", "view is 'sideways'"),
        ("memory_limit", -1, "memory_limit is -1"),
        ("memory_limit", True, "memory_limit is True"),
    ],
)
def test_an_impossible_value_raises_is_explained_and_changes_nothing(lab, name, value, sentence):
    before = {
        trait: getattr(lab, trait) for trait in lab.trait_names() if trait not in ("message", "children")
    }
    picture = png(lab)
    with pytest.raises(pp.PipelabError, match=sentence):
        setattr(lab, name, value)
    assert sentence in lab.message.replace("\n", " ")
    assert 'role="alert"' in lab._error.value
    after = {trait: getattr(lab, trait) for trait in before}
    assert {
        trait for trait in before if after[trait] is not before[trait] and after[trait] != before[trait]
    } == set()
    assert png(lab) == picture
    lab.num_ranks = 2
    assert lab.message == "" and lab._error.value == ""


def test_an_impossible_move_is_explained_and_the_control_goes_back(lab):
    lab.choose(schedule="interleaved-1f1b", num_ranks=3)
    lab._controls.choices.num_ranks = 12  # with two stages a rank more stages than layers
    assert "needs 24 stages" in lab.message
    assert lab._controls.choices.num_ranks == lab.num_ranks == 3


def test_names_in_messages_are_data(lab):
    with pytest.raises(pp.PipelabError):
        lab.split = ["<img src=x onerror=alert(1)>", "blocks.5", "blocks.9"]
    assert "<img" not in lab._error.value and "&lt;img" in lab._error.value


def test_several_choices_at_once(lab):
    lab.choose(num_ranks=2, split=["blocks.7"], schedule="gpipe")
    assert (lab.num_ranks, lab.split, lab.schedule.name) == (2, pp.Split(["blocks.7"]), "gpipe")


def test_changes_held_back_are_one_wish(lab):
    with lab.hold_trait_notifications():
        lab.num_ranks = 2
        lab.num_microbatches = 4
        lab.split = ["blocks.7"]
    assert (lab.num_ranks, lab.num_microbatches, lab.split) == (2, 4, pp.Split(["blocks.7"]))
    assert lab.predicted.schedule == lab.schedule


def test_an_impossible_wish_held_back_is_rolled_back(lab):
    before = lab.schedule
    with pytest.raises(traitlets.TraitError), lab.hold_trait_notifications():
        lab.num_ranks = 99
    assert (lab.num_ranks, lab.schedule) == (4, before)


def test_observers_see_everything_changed_together(lab):
    seen = []

    def look(change):
        seen.append((change.name, lab.num_ranks, lab.predicted.num_ranks, lab.split.num_stages))

    lab.observe(look, ["num_ranks", "predicted", "split", "schedule"])
    lab.num_ranks = 3
    assert {name for name, *_ in seen} == {"num_ranks", "predicted", "split", "schedule"}
    assert {tuple(numbers) for _, *numbers in seen} == {(3, 3, 3)}


def test_results_cannot_be_set(lab):
    for name in ("predicted", "measured", "plan", "profile", "message", "running"):
        with pytest.raises(traitlets.TraitError):
            setattr(lab, name, None)


def test_an_error_in_a_callback_is_seen_in_the_widget(lab, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(lab._gallery.upper, "show", broken)
    lab._controls.choices.num_microbatches = 3
    assert "ZeroDivisionError: a bug of ours" in lab.message


def test_uneven_micro_batches_are_said_to_be(lab):
    lab.num_microbatches = 7
    assert "uneven" in lab._status.value


def test_a_schedule_made_by_hand_is_shown(lab):
    lab.schedule = pp.Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]], name="mine")
    assert (lab.num_ranks, lab.num_microbatches) == (2, 2)
    assert lab._controls.choices.schedule == "mine"
    lab._controls.choices.num_microbatches = 3
    assert "finished table" in lab.message
    lab._controls.choices.schedule = "gpipe"
    assert lab.schedule.name == "gpipe"


def test_without_a_front_end_there_is_a_picture_and_its_words(lab):
    data, metadata = lab._repr_mimebundle_()
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))))
    assert image.shape[1] == 900
    assert metadata["image/png"]["alt"] == data["text/plain"] == lab.text
    assert "Timeline of 1f1b: 4 ranks, 8 micro-batches, simulated clock" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert lab._gallery.upper._static_tail == data["image/png"][-64:]


def test_split_timelines_and_what_is_pinned_have_a_picture_each_which_their_parts_hide(lab):
    assert len(lab._stills()) == 2
    lab.pin()
    (split, _), (timelines, about), (pinned, _) = lab._stills()
    assert "4 stages" in split["text/plain"] and about["image/png"]["alt"] == lab.text
    parts = {lab._controls.editor: split, lab._gallery.upper: timelines}
    assert all(part._static_tail == data["image/png"][-64:] for part, data in parts.items())
    hiding = next(part for part in parts_shown(lab._gallery.compare))
    assert hiding._static_tail == pinned["image/png"][-64:]


def test_the_static_picture_is_the_one_that_is_shown_now(lab):
    lab.num_ranks = 2
    data, _ = lab._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == png(lab)
    assert "2 ranks" in data["text/plain"]


def test_what_is_saved_of_a_large_lab_is_small():
    lab = pp.Lab(
        profile_of(32), batch_size=512, schedule="1f1b", num_ranks=8, num_microbatches=64, memory=True
    )
    assert sum(len(data["image/png"]) + 2 * len(data["text/plain"]) for data, _ in lab._stills()) < 200_000
    lab.close()


def test_a_tick_sends_one_message_to_each_part_that_moves(lab, monkeypatch):
    sent = []
    for part in (lab._controls.choices, lab._controls.editor, lab._gallery.upper):
        monkeypatch.setattr(part, "send_state", lambda *_, part=part, **__: sent.append(type(part).__name__))
    lab.num_microbatches = 16
    assert sorted(sent) == ["Choices", "SplitEditor", "TimelineView"]


def test_what_does_not_change_is_not_drawn_again(lab, monkeypatch):
    drawn = []
    monkeypatch.setattr(lab._gallery.upper, "show", lambda *_, **__: drawn.append(1))
    lab.view = "both"
    lab.memory = True
    assert drawn == []
    lab.num_ranks = 2
    assert drawn == [1]


def test_a_profile_alone_makes_a_lab(profile):
    lab = pp.Lab(profile, batch_size=48, num_ranks=4)
    assert lab.batch_size == 48 and lab.profile is profile
    lab.close()
    with pytest.raises(TypeError, match="takes no loss_fn"):
        pp.Lab(profile, loss_fn=nn.functional.mse_loss)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((3,), {}, "int is neither"),
        ((nn.Linear(1, 1),), {}, "needs a batch too"),
        ((nn.Linear(1, 1), torch.ones(2, 1)), {"batch_size": 2}, "batch_size is for a Lab of a profile"),
    ],
)
def test_a_lab_of_something_else_is_a_wrong_call(arguments, options, sentence):
    with pytest.raises(TypeError, match=sentence):
        pp.Lab(*arguments, **options)


def test_the_code_makes_the_plan_and_runs_it(live):
    live.choose(split=["1"], num_microbatches=4)
    x, y = batch()
    made = {"model": small_model(), "x": x, "y": y, "loss_fn": nn.functional.mse_loss}
    exec(live.code(), made)
    assert made["plan"] == live.plan and made["step"].trace.schedule == live.schedule


def test_the_code_button_shows_the_code_and_keeps_it_current(lab):
    lab._controls.code.click()
    assert lab._controls.code_box.code == lab.code()
    lab.num_ranks = 2
    assert lab._controls.code_box.code == lab.code()
    lab._controls.code.click()
    assert not lab._controls.shows_code


def test_timelines_are_pinned_and_unpinned(lab):
    one = lab.pin()
    lab.num_microbatches = 16
    two = lab.pin()
    assert lab.pinned == (one, two)
    cuts = " | ".join(lab.split.cuts)
    assert [trace.label for trace in lab.pinned] == [f"1f1b · 4 ranks · m {m} · cuts {cuts}" for m in (8, 16)]
    assert tuple(lab._gallery.compare.traces) == (one, two)
    lab._gallery.compare.remove(0)
    assert lab.pinned == (two,) and tuple(lab._gallery.compare.traces) == (two,)
    with pytest.raises(pp.PipelabError, match="no pinned timeline 5; there are 1"):
        lab.unpin(5)
    lab._controls.unpin.click()
    assert lab.pinned == () and lab._gallery.compare is None and lab._controls.unpin.disabled
    lab.pin()
    lab.unpin(0)
    assert lab.pinned == ()


def test_at_most_four_are_pinned_each_under_a_name_of_its_own(lab):
    for _ in range(4):
        lab._controls.pin.click()
    assert len({trace.label for trace in lab.pinned}) == 4
    with pytest.raises(pp.PipelabError, match="4 plans are pinned; unpin one first"):
        lab.pin()
    assert len(lab.pinned) == 4 and "unpin one first" in lab.message


def test_a_pin_keeps_the_prediction_and_apart_from_it_the_measurement(live):
    before = live.pin()
    live.run()
    after = live.pin()
    one, two, measured = live.pinned
    assert (one, two) == (before, after) and {one.clock, two.clock} == {"simulated"}
    assert measured.clock != "simulated" and measured.label == f"measured: {two.label}"
    assert two.label == f"{one.label} (2)"
    rows = live._gallery.compare.children[-1].table["rows"]
    assert [cell["change"] for cell in rows[1]["cells"]] == ["same"] * len(rows[1]["cells"])
    assert not any(cell["change"] or cell["best"] for cell in rows[2]["cells"])
    live.unpin(1)
    assert live.pinned == (one,)


def test_what_was_measured_of_another_plan_is_not_pinned(live):
    live.run()
    live.schedule = "gpipe"
    live.pin()
    assert [trace.clock for trace in live.pinned] == ["simulated"]


def test_unpinning_leaves_no_widget_behind(lab):
    lab.pin()
    lab.unpin()
    before = len(registry._instances)
    lab.pin()
    lab.unpin()
    assert len(registry._instances) == before


def test_views_of_a_measurement(live):
    live.run()
    upper = live._gallery.upper
    assert upper.trace is live.measured and upper.predicted is live.predicted
    live.view = "both"
    lower = live._gallery.lower
    assert (upper.trace, upper.predicted, lower.trace) == (live.predicted, None, live.measured)
    assert upper.time_stop == lower.time_stop == max(live.predicted.makespan, live.measured.makespan)
    upper.span = (0.0, upper.time_stop / 2)
    assert lower.span == upper.span
    live.critical_path = True
    assert lower.critical_path
    live.view = "measured"
    assert upper.trace is live.measured and upper.time_stop == 0 and lower.layout.display == "none"


def test_a_limit_of_memory_waits_for_traces_that_know_their_bytes(live):
    live.memory_limit = 1e6
    live.run()
    live.view = "both"
    live.num_microbatches = 2
    assert live.message == ""


def test_a_closed_lab_still_has_its_values(lab):
    lab.close()
    lab.close()
    assert lab.predicted.num_ranks == 4
    assert "Timeline of 1f1b" in lab.text
    assert "application/vnd.jupyter.widget-view+json" not in lab._repr_mimebundle_()[0]


def test_fifty_labs_leave_nothing_behind():
    x, y = batch()
    profile = pp.profile(
        small_model(), x[:2], y[:2], loss_fn=nn.functional.mse_loss, repeats=1, progress=False
    )

    def one() -> None:
        lab = pp.Lab(
            small_model(), x, y, loss_fn=nn.functional.mse_loss, profile=profile, devices=pp.virtual(4)
        )
        lab.num_ranks = 2
        lab.view = "both"
        lab.pin()
        lab._repr_mimebundle_()
        lab.close()

    one()
    gc.collect()
    before = (len(registry._instances), len(plt.get_fignums()), threading.active_count())
    for _ in range(50):
        one()
    gc.collect()
    assert (len(registry._instances), len(plt.get_fignums()), threading.active_count()) == before


def test_a_lab_that_cannot_be_made_says_why_and_leaves_nothing(profile):
    before = len(registry._instances)
    with pytest.raises(pp.PipelabError, match="needs 99 stages, but the model has 12 layers"):
        pp.Lab.from_profile(profile, num_ranks=99)
    with pytest.raises(pp.PipelabError, match="view is 'sideways'"):
        pp.Lab(profile, view="sideways")
    with pytest.raises(pp.PipelabError, match="memory_limit is -1"):
        pp.Lab(profile, memory_limit=-1)
    gc.collect()
    assert len(registry._instances) == before


def test_the_layers_are_profiled_at_about_the_size_of_a_micro_batch():
    x, y = batch(32)
    lab = pp.Lab(
        small_model(), x, y, loss_fn=nn.functional.mse_loss, num_microbatches=16, devices=pp.virtual(4)
    )
    assert lab.profile.batch_size == 2
    assert lab.batch_size == 32
    lab.close()


@pytest.mark.parametrize("name", ["schedule", "split", "num_ranks", "num_microbatches", "stages_per_rank"])
def test_nothing_is_no_setting(lab, name):
    before = getattr(lab, name)
    with pytest.raises((pp.PipelabError, TypeError)):
        setattr(lab, name, None)
    assert getattr(lab, name) == before and lab.message


def test_a_later_refusal_takes_the_place_of_the_earlier(lab):
    with pytest.raises(pp.PipelabError):
        lab.num_microbatches = 100
    with pytest.raises((pp.PipelabError, TypeError)):
        lab.num_microbatches = "x"
    assert "100" not in lab.message and lab.message


def test_a_misspelt_setting_is_refused_with_the_nearest(lab):
    with pytest.raises(AttributeError, match="did you mean 'num_microbatches'"):
        lab.num_microbatch = 3


def test_a_profile_of_another_model_and_devices_that_are_not_there_are_refused_at_once(profile):
    x, y = batch()
    with pytest.raises(pp.PipelabError, match="profile is of another model"):
        pp.Lab(small_model(), x, y, loss_fn=nn.functional.mse_loss, profile=profile)
    with pytest.raises(pp.PipelabError, match="no device 'cuda:99'"):
        pp.Lab(small_model(), x, y, loss_fn=nn.functional.mse_loss, devices=["cpu", "cuda:99"])


def bad(change: object) -> None:
    raise ZeroDivisionError("of an observer")


def test_an_observer_cannot_set_what_is_impossible(lab):
    def look(change):
        lab.num_microbatches = -5

    lab.observe(look, "num_ranks")
    with pytest.raises(pp.PipelabError, match="num_microbatches"):
        lab.num_ranks = 3
    assert (lab.num_ranks, lab.num_microbatches) == (3, 8)
    assert lab.schedule.num_microbatches == 8 and "num_microbatches" in lab.message


def test_an_observer_that_raises_leaves_picture_and_controls_at_what_holds(lab):
    lab.observe(bad, "num_ranks")
    with pytest.raises(ZeroDivisionError):
        lab.num_ranks = 3
    shown = lab._gallery.upper.trace, lab._controls.choices.num_ranks, lab._controls.editor.split
    assert shown == (lab.predicted, 3, lab.split) and lab.predicted.num_ranks == 3
    lab._controls.choices.num_ranks = 2
    assert "ZeroDivisionError: of an observer" in lab.message
    assert lab._gallery.upper.trace is lab.predicted and lab.predicted.num_ranks == lab.num_ranks == 2


@pytest.mark.parametrize(("name", "value"), [("split", 3), ("schedule", 3), ("num_ranks", "x")])
def test_a_wrong_type_held_back_is_rolled_back(lab, name, value):
    before = getattr(lab, name)
    with pytest.raises(TypeError) as caught, lab.hold_trait_notifications():
        setattr(lab, name, value)
    assert isinstance(caught.value, traitlets.TraitError)
    assert getattr(lab, name) == before and name in lab._error.value


@pytest.mark.parametrize("number", [0, 9, "3"])
def test_micro_batches_that_cannot_be_are_refused_before_the_model_is_measured(number, monkeypatch):
    monkeypatch.setattr(
        "pipelab.widgets.sample.profile_of_microbatch", lambda *_, **__: pytest.fail("measured")
    )
    x, y = batch()
    with pytest.raises((pp.PipelabError, TypeError), match="micro"):
        pp.Lab(small_model(), x, y, loss_fn=nn.functional.mse_loss, num_microbatches=number)


@pytest.mark.parametrize(
    ("text", "said"), [("1.5", "num_ranks is '1.5'; give"), ("", "num_ranks is left empty; give")]
)
def test_what_is_typed_and_is_no_whole_number_is_explained(lab, text, said):
    for name in ("num_ranks", "__class__"):
        lab._controls.choices._handle_custom_msg({"what": "typed", "name": name, "text": text}, [])
    assert said in lab.message and lab.num_ranks == 4


def test_code_that_cannot_be_written_keeps_nothing_else_from_being_shown(lab, monkeypatch):
    def broken(*_):
        raise pp.PipelabError("no code\nfor this")

    lab._controls.code.click()
    monkeypatch.setattr("pipelab.widgets.lab.recipe", broken)
    lab.num_microbatches = 7
    assert lab._controls.code_box.code == "# no code\n# for this\n"
    assert "uneven" in lab._status.value and lab._controls.choices.num_microbatches == 7


def test_a_lab_that_cannot_be_kept_says_what_can(lab):
    with pytest.raises(TypeError, match=r"cannot be pickled.*lab\.plan\.save"):
        pickle.dumps(lab)


def test_how_far_the_hand_has_come_is_said(lab):
    before = lab.predicted.makespan
    assert "where the Lab began" not in lab._status.value
    lab.num_ranks = 2
    share = 100 * (lab.predicted.makespan / before - 1)
    assert f"{share:.0f} % more than where the Lab began" in lab._status.value and share > 1
    lab.num_ranks = 4
    assert "where the Lab began" not in lab._status.value


@pytest.mark.parametrize("leave", [{"schedule": "gpipe"}, {"num_ranks": 3}])
def test_undoing_does_not_go_back_behind_another_number_of_stages(lab, leave):
    editor = lab._controls.editor
    lab.schedule = "interleaved-1f1b"
    editor.split = [lab.profile.layers[1], *lab.split.cuts[1:]]
    lab.choose(**leave)
    after = lab.split
    editor.undo()
    assert lab.split == after and lab.num_ranks == leave.get("num_ranks", 4) and not editor.can_undo
    before = lab.split
    editor.split = [lab.profile.layers[1], *before.cuts[1:]]
    assert lab.split != before and editor.can_undo  # what is done from then on can be taken back
    editor.undo()
    assert lab.split == before
