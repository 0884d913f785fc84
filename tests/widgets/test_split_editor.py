from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
import traitlets as T
from ipywidgets.widgets import widget as registry

import pipelab as pp
from pipelab.core.profile import Affine
from pipelab.planning.presets import equal_count, equal_parameters
from pipelab.plots.stages import drawn_profile
from pipelab.widgets import split_editor, split_history
from pipelab.widgets.split_bars import layer_columns, stage_bars
from pipelab.widgets.split_editor import SplitEditor
from pipelab.widgets.split_history import History
from tests.widgets.profiles import HOSTILE, profile_of

START = ("blocks.2", "blocks.5", "blocks.9")


@pytest.fixture
def editor(profile):
    editor = SplitEditor(profile, split=START)
    yield editor
    editor.close()


class Front:
    """The front end's side of an editor: what it sends, and the messages of state that it gets."""

    def __init__(self, editor: SplitEditor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.editor, self.got, self.number = editor, [], 0
        monkeypatch.setattr(editor, "_send", self._hear)

    def _hear(self, message, buffers=None) -> None:
        if message["method"] == "update":
            self.got.append(message["state"])

    def ask(self, **content) -> None:
        self.number += 1
        message = {"serial": self.editor._shown["serial"], "id": f"me:{self.number}", **content}
        self.editor._asked(self.editor, message, [])

    def move(self, *cuts: int, hand: str = "", rests: bool = False, **more) -> None:
        self.ask(what="move", cuts=list(cuts), hand=hand or f"hand {self.number}", rests=rests, **more)


@pytest.fixture
def front(editor, monkeypatch):
    return Front(editor, monkeypatch)


def changes_of(editor) -> list[pp.Split]:
    seen: list[pp.Split] = []
    editor.observe(lambda change: seen.append(change.new), "split")
    return seen


@pytest.mark.parametrize("module", [split_editor, split_history])
def test_the_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_it_begins_balanced_in_as_many_stages_as_asked_or_four(profile):
    for choices, count in (({}, 4), ({"num_stages": 3}, 3), ({"num_stages": 12}, 12)):
        editor = SplitEditor(profile, batch_size=2, **choices)
        assert editor.split == pp.balance(profile, count, batch_size=2) and editor.num_stages == count
        editor.close()
    small = SplitEditor(profile_of(2))
    assert small.num_stages == 2
    small.close()


def test_the_split_can_be_set_to_names_and_the_costs_follow(editor, profile):
    seen = changes_of(editor)
    editor.split = ["blocks.4", "blocks.8"]
    assert editor.split == pp.Split(["blocks.4", "blocks.8"]) and seen == [editor.split]
    assert editor.costs == profile.costs(editor.split)
    assert editor._shown["cuts"] == [4, 8] and len(editor._shown["seconds"]) == 3


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("split", ["blocks.9", "blocks.2"], "is at or before 'blocks.9'"),
        ("split", ["<img src=x>"], "'<img src=x>' is no layer of this profile"),
        ("by", "layers", "by is 'layers'"),
        ("batch_size", 0, "batch_size is 0; it must be at least 1"),
        ("memory_limit", -1, "memory_limit is -1; it must be a number of bytes above 0"),
        ("memory_limit", float("nan"), "memory_limit is nan"),
        ("memory_limit", True, "memory_limit is True"),
    ],
)
def test_what_is_impossible_is_explained_and_changes_nothing(editor, name, value, sentence):
    before, shown = getattr(editor, name), dict(editor._shown)
    seen = changes_of(editor)
    with pytest.raises(pp.PipelabError, match=sentence):
        setattr(editor, name, value)
    assert sentence in editor.message
    assert getattr(editor, name) == before and editor._shown == shown and seen == []
    editor.split = ["blocks.6"]
    assert editor.message == ""


def test_wrong_calls_are_type_errors_and_leave_no_widget(profile):
    count = len(registry._instances)
    with pytest.raises(TypeError, match="SplitEditor shows a Profile, not Split"):
        SplitEditor(pp.Split([]))
    with pytest.raises(TypeError, match="num_stages, or a split"):
        SplitEditor(profile, num_stages=2, split=["blocks.4"])
    with pytest.raises(TypeError, match=r"Split\(\['blocks.11'\]\), or a list of names, not str"):
        SplitEditor(profile, split="blocks.4")
    for impossible in (
        {"num_stages": 13},
        {"split": ["nowhere"]},
        {"by": "x"},
        {"memory_limit": 0},
        {"batch_size": 0},
    ):
        with pytest.raises(pp.PipelabError):
            SplitEditor(profile, **impossible)
    assert len(registry._instances) == count


def test_the_profile_is_read_only_and_misspelt_settings_are_refused(editor, profile):
    with pytest.raises(T.TraitError):
        editor.profile = profile_of(4)
    with pytest.raises(AttributeError, match="no setting 'splits'; did you mean 'split'"):
        editor.splits = ["blocks.3"]


def test_presets_are_those_of_planning(editor, profile):
    editor.batch_size = 3
    for preset, split in (
        ("equal_time", pp.balance(profile, 4, batch_size=3)),
        ("equal_count", equal_count(profile, 4)),
        ("equal_parameters", equal_parameters(profile, 4)),
        ("balance", pp.balance(profile, 4, batch_size=3)),
    ):
        editor.split = START
        getattr(editor, preset)()
        assert editor.split == split


def test_undo_and_redo_walk_through_what_was(editor):
    splits = [editor.split, pp.Split(["blocks.4"]), pp.Split(["blocks.4", "blocks.7"])]
    for split in splits[1:]:
        editor.split = split
    seen = changes_of(editor)
    for _ in range(3):
        editor.undo()
    assert editor.split == splits[0] and (editor.can_undo, editor.can_redo) == (False, True)
    for _ in range(3):
        editor.redo()
    assert editor.split == splits[2] and (editor.can_undo, editor.can_redo) == (True, False)
    assert seen == [splits[1], splits[0], splits[1], splits[2]]
    editor.undo()
    editor.equal_count()
    assert not editor.can_redo  # another way was taken


def test_a_hand_that_moves_is_one_step(editor, front):
    seen = changes_of(editor)
    for cut in (6, 7, 8):
        front.move(2, cut, 9, hand="drag")
    front.move(2, 8, 9, hand="drag", rests=True)
    assert [split.cuts[1] for split in seen] == ["blocks.6", "blocks.7", "blocks.8"]
    front.move(2, 7, 9)
    editor.undo()
    assert editor.split.cuts[1] == "blocks.8"
    editor.undo()
    assert editor.split.cuts == START and not editor.can_undo


def test_a_hand_that_ends_where_it_began_has_done_nothing(editor, front):
    front.move(2, 6, 9, hand="drag")
    front.move(2, 5, 9, hand="drag", rests=True)
    assert editor.split.cuts == START and not editor.can_undo and not editor._shown["can_undo"]


def test_each_message_is_answered_once_in_one_message(editor, front):
    front.move(2, 6, 9)
    front.move(2, 6, 9)  # nothing moves, and yet whoever waits for the answer gets it
    front.ask(what="undo")
    front.ask(what="nonsense")
    front.ask(what="close")
    assert [state["_shown"]["answered"] for state in front.got] == [f"me:{n}" for n in range(1, 6)]
    assert [state["_shown"]["cuts"][1] for state in front.got] == [6, 6, 5, 5, 5]
    assert all(set(state) == {"_shown"} for state in front.got)
    assert editor.comm is not None


def test_observers_are_done_before_the_answer_goes_out(editor, front):
    order: list[object] = []
    editor.observe(lambda _: order.append(len(front.got)), "split")
    front.move(2, 6, 9)
    assert order == [0] and len(front.got) == 1


def test_a_position_of_what_is_not_shown_any_more_is_dropped(editor, front):
    old = editor._shown["serial"]
    editor.split = ["blocks.3", "blocks.6", "blocks.7"]
    front.move(2, 6, 9, serial=old)
    assert editor.split.cuts == ("blocks.3", "blocks.6", "blocks.7")


@pytest.mark.parametrize(
    "cuts", [[2, 5], [0, 5, 9], [2, 5, 12], [2, 5, "9"], [2.0, 5, 9], None, "abc", [2, 5, -1]]
)
def test_a_message_that_makes_no_sense_moves_nothing(editor, front, cuts):
    front.ask(what="move", cuts=cuts, hand="x")
    assert editor.split.cuts == START and editor._shown["answered"] == "me:1"


def test_a_refused_position_is_explained_and_answered_with_what_holds(editor, front):
    front.move(5, 5, 9)
    assert "there twice" in editor.message and editor._shown["cuts"] == [2, 5, 9]
    front.move(6, 5, 9)
    assert "is at or before" in editor.message and not editor.can_undo
    front.move(2, 6, 9)
    assert editor.message == ""


def test_cuts_that_stay_keep_the_names_they_were_given(profile):
    inner = replace(profile, layers=[f"blocks.{n // 2}.{'ab'[n % 2]}" for n in range(12)])
    editor = SplitEditor(inner, split=["blocks.2", "blocks.4"])
    editor._asked(None, {"what": "move", "cuts": [5, 8], "serial": editor._shown["serial"], "id": "1"}, [])
    assert editor.split == pp.Split(["blocks.2.b", "blocks.4"])
    editor.close()


def test_an_observers_error_is_seen_in_the_editor(editor, front):
    def fail(_) -> None:
        raise KeyError("a fault of the observer")

    editor.observe(fail, "split")
    front.move(2, 6, 9)
    assert editor.message == "KeyError: 'a fault of the observer'"
    assert front.got[-1]["_shown"]["cuts"] == [2, 6, 9] and front.got[-1]["message"]


def test_an_observer_may_put_the_editor_elsewhere(editor, front):
    editor.observe(lambda change: editor.show(change.old), "split")
    front.move(2, 6, 9)
    assert editor.split.cuts == START and front.got[-1]["_shown"]["cuts"] == [2, 5, 9]


def test_show_is_one_message_and_silent(editor, front):
    seen = changes_of(editor)
    editor.show(
        ["blocks.3", "blocks.6"],
        batch_size=2,
        memory_limit=2**30,
        bytes_per_stage=[1, 2, 2**31],
        bytes_say="peak",
    )
    assert seen == [] and len(front.got) == 1
    assert (editor.split.cuts, editor.batch_size, editor.memory_limit) == (("blocks.3", "blocks.6"), 2, 2**30)
    shown = front.got[0]["_shown"]
    assert shown["memory"] == ["1 B", "2 B", "2 GiB"] and shown["over"] == [2]
    assert shown["memory_sentence"] == "Most memory: stage 2, 2 GiB (peak). Over the limit of 1 GiB: stage 2."
    assert editor.costs.microbatch_size == 2
    editor.undo()
    assert editor.split.cuts == START and editor.memory_limit == 2**30 and seen == [editor.split]
    editor.show(memory_limit=None)
    assert editor.memory_limit is None and editor._shown["over"] == []


def test_show_of_another_profile_forgets_what_was(editor):
    editor.split = ["blocks.6"]
    with pytest.raises(pp.PipelabError, match="is no layer"):
        editor.show(profile=replace(profile_of(3), layers=["a", "b", "c"]))
    assert editor.num_stages == 2 and editor.can_undo
    editor.show(["blocks.2"], profile=profile_of(3))
    assert (len(editor._names), editor.num_stages, editor.can_undo) == (3, 2, False)
    assert len(editor._columns) == 5 * 3 * 4


@pytest.mark.parametrize(
    "wrong", [{"bytes_per_stage": [1, 2]}, {"memory_limit": 0}, {"batch_size": 0}, {"split": ["x"]}]
)
def test_show_refuses_what_is_impossible_and_changes_nothing(editor, wrong):
    before = dict(editor._shown)
    with pytest.raises(pp.PipelabError):
        editor.show(**wrong)
    assert editor._shown == before and editor.split.cuts == START


def test_numbers_of_stages_add_up_to_the_costs(profile):
    split = pp.Split(START)
    bars = stage_bars(profile, split, 5)
    costs = profile.costs(split, batch_size=5)
    np.testing.assert_allclose(
        bars.seconds, np.add(costs.forward, np.add(costs.input_grad, costs.weight_grad))
    )
    np.testing.assert_allclose(bars.memory, 2 * np.array(costs.bytes.parameters) + costs.bytes.activations)
    assert bars.slowest == int(np.argmax(bars.seconds))


def test_a_measured_backward_is_what_counts_as_for_balance(profile):
    backward = tuple(Affine(0.0, 1e-4 * (1 + n)) for n in range(12))
    measured = replace(profile, backward=backward)
    drawn = drawn_profile(measured, 4)
    np.testing.assert_allclose(drawn.seconds(4), measured.seconds(4))
    columns = np.frombuffer(layer_columns(drawn, 4), dtype="<f4").reshape(5, 12)
    np.testing.assert_allclose(columns[:3].sum(axis=0), measured.seconds(4), rtol=1e-6)
    np.testing.assert_allclose(columns[3], 8_000_000)
    editor = SplitEditor(measured, num_stages=3, batch_size=4)
    slowest = max(measured.seconds(4)[part].sum() for part in measured.stages(editor.split))
    assert editor._shown["headline"].split(", ")[1] == f"{slowest * 1e3:.3g} ms a micro-batch"
    editor.close()


def test_layers_without_any_backward_divide_by_nothing(profile):
    nothing = (Affine(0.0),) * 12
    still = replace(profile, input_grad=nothing, weight_grad=nothing, backward=nothing)
    assert drawn_profile(still, 4).seconds(4) == pytest.approx(still.seconds(4))


def test_stages_that_are_all_as_fast_have_no_slowest(profile):
    level = replace(
        profile, forward=(Affine(1.0),) * 12, input_grad=(Affine(1.0),) * 12, weight_grad=(Affine(1.0),) * 12
    )
    bars = stage_bars(level, equal_count(level, 4), 1)
    assert bars.slowest == -1 and bars.headline == "4 stages: all take 9 s a micro-batch"
    assert stage_bars(level, pp.Split([]), 1).headline == "1 stage: it takes 36 s a micro-batch"


def test_the_picture_and_its_words_are_of_this_moment(editor):
    before = editor.png()
    assert "4 stages: the slowest is stage" in editor.text and "Most memory: stage" in editor.text
    editor.split = ["blocks.6"]
    assert editor.png() != before and editor.png() == editor.png()
    assert editor.text.startswith("2 stages") and "Over" not in editor.text
    data, metadata = editor._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == editor.text == data["text/plain"]


def test_a_picture_asks_nothing_of_pyplot(editor):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    editor.png()
    assert plt.get_fignums() == before


@pytest.mark.parametrize("stages", [1, 2, 12, 64])
def test_pictures_of_any_number_of_stages(stages):
    editor = SplitEditor(profile_of(64), num_stages=stages)
    assert editor.png().startswith(b"\x89PNG")
    editor.close()


def test_names_go_out_as_they_are_and_only_as_data(editor):
    assert editor._names[1] == HOSTILE
    assert HOSTILE not in editor._esm and "innerHTML" not in editor._esm and "http" not in editor._css


def test_closing_leaves_nothing_and_the_values_stay(profile):
    count = len(registry._instances)
    for _ in range(50):
        editor = SplitEditor(profile, num_stages=3)
        editor.equal_count()
        editor.close()
        editor.close()
    assert len(registry._instances) == count
    assert editor.num_stages == 3 and "image/png" in editor._repr_mimebundle_()[0]


def test_a_history_is_not_endless():
    history = History()
    for n in range(2000):
        history.record(pp.Split([f"l{n}"]))
    assert len(history._past) == 500
    assert history.undo(pp.Split([])) == pp.Split(["l1999"])
