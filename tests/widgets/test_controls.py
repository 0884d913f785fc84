from __future__ import annotations

import threading
from typing import Any

import ipywidgets as W
import pytest
from ipywidgets.widgets import widget as registry

import pipelab as pp
from pipelab.core.schedules import SCHEDULES
from pipelab.widgets.controls import Controls
from pipelab.widgets.setting import OFFERED, Setting
from tests.widgets.profiles import profile_of


class Desk:
    """Controls with a list of what was wished."""

    def __init__(self, layers: int = 12, **choices: Any) -> None:
        self.wishes: list[tuple[str, Any]] = []
        self.setting = Setting.start(profile_of(layers), batch_size=48, **choices)
        self.controls = Controls(self.setting, lambda name, value: self.wishes.append((name, value)))
        self.show(self.setting)

    def show(self, setting: Setting) -> None:
        self.setting = setting
        self.controls.show(setting, view="both")


@pytest.fixture
def desk():
    desk = Desk(schedule="1f1b", num_ranks=4, num_microbatches=8)
    yield desk
    desk.controls.close()


def test_showing_a_setting_is_no_wish(desk):
    desk.show(desk.setting.changed(schedule="interleaved-1f1b", num_ranks=2, num_microbatches=12))
    assert desk.wishes == []
    choices = desk.controls.choices
    assert (choices.num_ranks, choices.num_microbatches, choices.stages_per_rank) == (2, 12, 2)
    assert choices.schedule == "interleaved-1f1b"
    assert desk.controls.editor.split == desk.setting.split


@pytest.mark.parametrize(
    ("control", "value"),
    [("schedule", "gpipe"), ("num_ranks", 3), ("num_microbatches", 9), ("stages_per_rank", 2)],
)
def test_a_move_is_a_wish(desk, control, value):
    setattr(desk.controls.choices, control, value)
    assert desk.wishes == [(control, value)]


def test_a_border_that_moves_is_a_wish(desk):
    split = pp.Split(["blocks.2", "blocks.5", "blocks.9"])
    desk.controls.editor.split = split
    assert desk.wishes == [("split", split)]


def test_a_view_is_a_wish(desk):
    desk.controls.view.value = "measured"
    assert desk.wishes == [("view", "measured")]


@pytest.mark.parametrize("button", ["run", "stop", "pin", "unpin", "code"])
def test_a_press_is_a_wish(desk, button):
    getattr(desk.controls, button).click()
    assert desk.wishes == [(button, None)]


def test_what_is_pinned_can_be_taken_away_and_no_more_than_can_be_compared_is_pinned(desk):
    states = []
    for count in (0, 1, 4):
        desk.controls.show_pins(count)
        states.append((desk.controls.pin.disabled, desk.controls.unpin.disabled))
    assert states == [(False, True), (False, False), (True, False)]


def test_stages_per_rank_can_be_moved_where_the_schedule_takes_it(desk):
    for name in OFFERED:
        info = SCHEDULES[name]
        desk.show(desk.setting.changed(schedule=name))
        least, most = desk.controls.choices._limits["stages_per_rank"]
        assert (least == most) == (info.stages_per_rank[0] == info.stages_per_rank[1]), name
        desk.show(desk.setting.changed(schedule="1f1b"))


def test_the_microbatch_slider_ends_at_the_batch_and_at_what_a_slider_can_hold(desk):
    assert desk.controls.choices._limits["num_microbatches"] == [1, 48]
    large = Setting.start(profile_of(4), batch_size=4096, num_microbatches=8)
    desk.show(large)
    assert desk.controls.choices._limits["num_microbatches"] == [1, 512]
    desk.show(large.changed(num_microbatches=1024))
    assert desk.controls.choices._limits["num_microbatches"] == [1, 1024]


def test_a_table_given_by_hand_is_in_the_menu_while_it_is_chosen(desk):
    mine = pp.Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="mine")
    desk.show(desk.setting.changed(schedule=mine))
    assert desk.controls.choices.schedule == "mine" and "mine" in desk.controls.choices._menu
    desk.show(desk.setting.changed(schedule="1f1b"))
    assert desk.controls.choices._menu == list(OFFERED)


def test_run_and_stop_are_enabled_in_turn(desk):
    desk.controls.show_run(running=False)
    assert (desk.controls.run.disabled, desk.controls.stop.disabled) == (False, True)
    desk.controls.show_run(running=True)
    assert (desk.controls.run.disabled, desk.controls.stop.disabled) == (True, False)
    desk.controls.show_run(running=False, why_not="no model")
    assert desk.controls.run.disabled and desk.controls.run.tooltip == "no model"


def test_code_is_shown_and_hidden(desk):
    assert not desk.controls.shows_code
    desk.controls.show_code("x = 1")
    assert desk.controls.shows_code and desk.controls.code_box.code == "x = 1"
    desk.controls.show_code(None)
    assert not desk.controls.shows_code


def test_closing_leaves_no_widget_behind():
    before = set(registry._instances)
    desk = Desk()
    desk.controls.close()
    assert set(registry._instances) == before


def test_every_button_has_a_name(desk):
    def every(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from every(child)

    for widget in every(desk.controls.box):
        if isinstance(widget, W.Button):
            assert widget.description


def test_threads_that_show_in_turns_leave_all_ears_open(desk):
    """One begins while the other is at it and ends after it: what it found must not be what it leaves."""
    steps = [threading.Event() for _ in range(2)]

    def other() -> None:
        with desk.controls._silent():
            steps[0].set()
            steps[1].wait(10)

    thread = threading.Thread(target=other)
    mine = desk.controls._silent()
    mine.__enter__()
    thread.start()
    steps[0].wait(10)
    mine.__exit__(None, None, None)
    steps[1].set()
    thread.join()
    desk.controls.choices.num_ranks = 3
    assert desk.wishes == [("num_ranks", 3)]
