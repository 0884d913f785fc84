from __future__ import annotations

from typing import Any

import ipywidgets as W
import pytest

import pipelab as pp
from pipelab.core.schedules import SCHEDULES
from pipelab.widgets.controls import MOST_CUT_SLIDERS, Controls
from pipelab.widgets.setting import OFFERED, Setting
from tests.widgets.profiles import HOSTILE, profile_of


class Desk:
    """Controls with a list of what was wished."""

    def __init__(self, layers: int = 12, **choices: Any) -> None:
        self.wishes: list[tuple[str, Any]] = []
        self.setting = Setting.start(profile_of(layers), batch_size=48, **choices)
        self.controls = Controls(self.setting, lambda name, value: self.wishes.append((name, value)))
        self.show(self.setting)

    def show(self, setting: Setting) -> None:
        self.setting = setting
        self.controls.show(setting, view="both", memory=False)


@pytest.fixture
def desk() -> Desk:
    return Desk(schedule="1f1b", num_ranks=4, num_microbatches=8)


def every(widget: W.Widget) -> list[W.Widget]:
    return [widget, *(part for child in getattr(widget, "children", ()) for part in every(child))]


def test_showing_a_setting_is_no_wish(desk):
    desk.show(desk.setting.changed(schedule="interleaved-1f1b", num_ranks=2, num_microbatches=12))
    assert desk.wishes == []
    assert (desk.controls.num_ranks.value, desk.controls.num_microbatches.value) == (2, 12)
    assert desk.controls.schedule.value == "interleaved-1f1b"


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("schedule", "gpipe"),
        ("num_ranks", 3),
        ("num_microbatches", 9),
        ("view", "measured"),
        ("memory", True),
    ],
)
def test_a_move_is_a_wish(desk, control, value):
    getattr(desk.controls, control).value = value
    assert desk.wishes == [(control, value)]


@pytest.mark.parametrize("button", ["balance", "run", "stop"])
def test_a_press_is_a_wish(desk, button):
    getattr(desk.controls, button).click()
    assert desk.wishes == [(button, None)]


def test_each_border_has_a_slider_bounded_by_its_neighbours(desk):
    desk.show(desk.setting.changed(split=["blocks.2", "blocks.5", "blocks.9"]))
    limits = [(slider.min, slider.value, slider.max) for slider in desk.controls.cuts]
    assert limits == [(1, 2, 4), (3, 5, 8), (6, 9, 11)]
    desk.controls.cuts[1].value = 6
    assert desk.wishes == [("cut", (1, 6))]


def test_a_border_that_cannot_move_is_disabled(desk):
    desk.show(desk.setting.changed(split=["blocks.2", "blocks.3", "blocks.4"]))
    assert [slider.disabled for slider in desk.controls.cuts] == [False, True, False]


def test_borders_are_named_by_their_layer_and_the_name_is_data(desk):
    desk.show(desk.setting.changed(split=[HOSTILE, "blocks.5", "blocks.9"]))
    (row, *_) = [box for box in every(desk.controls.box) if isinstance(box, W.HBox)]
    assert row.children[1].value == "<code>cost in $ and $ &lt;b&gt;bold&lt;/b&gt;</code>"
    assert row.children[0].description == "stage 1 begins at"


def test_only_needed_sliders_are_seen(desk):
    desk.show(desk.setting.changed(num_ranks=2))
    rows = [box for box in every(desk.controls.box) if isinstance(box, W.HBox)]
    assert [row.layout.display for row in rows] == ["", "none", "none"]


def test_stages_per_rank_is_seen_where_the_schedule_takes_it(desk):
    for name in OFFERED:
        info = SCHEDULES[name]
        desk.show(desk.setting.changed(schedule=name))
        hidden = desk.controls.stages_per_rank.layout.display == "none"
        assert hidden == (info.stages_per_rank[0] == info.stages_per_rank[1])


def test_the_menu_is_the_table_of_schedules_and_a_table_by_hand_is_added(desk):
    assert list(desk.controls.schedule.options) == list(OFFERED)
    mine = pp.Schedule([["0F0", "0B0"]], name="mine")
    desk.show(desk.setting.changed(schedule=mine))
    assert desk.controls.schedule.options[-1] == desk.controls.schedule.value == "mine"
    desk.show(desk.setting.changed(schedule="gpipe"))
    assert list(desk.controls.schedule.options) == list(OFFERED)


def test_a_thousand_layers_and_ranks_have_sliders_for_the_first_borders():
    desk = Desk(layers=200, schedule="gpipe", num_ranks=200, num_microbatches=2)
    assert len(desk.controls.cuts) == MOST_CUT_SLIDERS


def test_every_control_has_a_description(desk):
    takes = (W.IntSlider, W.Dropdown, W.Button, W.Checkbox, W.IntProgress)
    controls = [widget for widget in every(desk.controls.box) if isinstance(widget, takes)]
    assert len(controls) >= 12
    assert all(control.description for control in controls)


def test_run_and_stop_are_pressed_in_turn_and_a_lab_without_a_model_says_why(desk):
    controls = desk.controls
    controls.show_run(running=False)
    assert (controls.run.disabled, controls.stop.disabled) == (False, True)
    controls.show_run(running=True)
    assert (controls.run.disabled, controls.stop.disabled) == (True, False)
    controls.show_run(running=False, why_not="no model")
    assert controls.run.disabled and controls.run.tooltip == "no model"
