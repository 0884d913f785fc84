from __future__ import annotations

import gc
import threading

import matplotlib.pyplot as plt
import pytest
from ipywidgets.widgets.widget import _instances as widgets

import pipelab as pp
from pipelab.core.moment import Moments
from pipelab.plots.palette import BACKWARD_PAINT, FORWARD_PAINT, OTHER_PAINT
from pipelab.widgets.step_panel import panel_table
from pipelab.widgets.step_view import StepView
from pipelab.widgets.timeline_view import TimelineView
from tests.plots.sizes import OVERLAPPED, of_orders, trace


@pytest.fixture
def view():
    view = StepView(trace(4, 8))
    yield view
    view.close()


def timeline(view: StepView) -> TimelineView:
    return view.children[0]


def panel(view: StepView):
    return view.children[1]


def move(view: StepView, **state: object) -> None:
    """What the front end sends."""
    panel(view).set_state(state)


def table_at(shown: pp.Trace, step: int) -> dict:
    moments = Moments(shown)
    return panel_table(moments, moments.at(step), moments.at(step - 1) if step else None)


def test_it_begins_at_the_first_moment(view):
    assert (view.step, view.time, view.message) == (0, 0.0, "")
    assert timeline(view).trace is view.trace and timeline(view).moment == 0.0
    assert panel(view).num_steps == view.num_steps == len(view.times) - 1


def test_a_step_from_code_moves_everything(view):
    view.step = 5
    assert view.time == view.times[5] == timeline(view).moment
    assert panel(view).step == 5 and panel(view).table["step"] == 5
    assert panel(view).table["sentence"] == view.now.changes == Moments(view.trace).at(5).changes


def test_a_step_by_hand_moves_everything(view):
    seen = []
    view.observe(lambda change: seen.append((change.new, view.time)), "step")
    move(view, step=3)
    assert seen == [(3, view.times[3])] and timeline(view).moment == view.times[3]
    assert panel(view).table["step"] == 3


def test_next_and_previous_stop_at_the_ends(view):
    view.previous()
    assert view.step == 0
    view.next()
    assert view.step == 1
    view.step = view.num_steps
    view.next()
    assert view.step == view.num_steps and view.time == view.trace.makespan
    view.previous()
    assert view.step == view.num_steps - 1


def test_a_time_is_gone_to(view):
    view.go_to(float(view.trace.start[20]))
    assert view.time == pytest.approx(view.trace.start[20])


def test_playing_and_speed_are_those_of_the_front_end(view):
    view.play()
    assert view.playing and panel(view).playing
    move(view, playing=False, speed=8.0)
    assert not view.playing and view.speed == 8.0
    view.speed = 0.5
    assert panel(view).speed == 0.5
    view.pause()
    assert not panel(view).playing


def test_playing_from_the_end_begins_anew(view):
    view.step = view.num_steps
    view.play()
    assert view.step == 0 and view.playing


def test_another_trace_begins_anew(view):
    view.step = 7
    other = trace(2, 3, "gpipe")
    view.trace = other
    assert (view.step, view.time) == (0, 0.0)
    assert timeline(view).trace is other and len(panel(view).table["rows"]) == 2
    assert panel(view).num_steps == view.num_steps == Moments(other).num_steps
    view.show(trace(4, 8), step=4)
    assert view.step == 4 and timeline(view).moment == view.time == view.times[4]


@pytest.mark.parametrize("wrong", [-1, 10_000])
def test_a_moment_that_is_not_there_is_refused_and_explained(view, wrong):
    view.step = 2
    with pytest.raises(pp.PipelabError, match="has the moments 0 to"):
        view.step = wrong
    assert view.step == 2 and "has the moments 0 to" in view.message == panel(view).alert
    view.step = 3
    assert view.message == panel(view).alert == ""


def test_what_the_front_end_wishes_wrongly_is_explained_and_taken_back(view):
    move(view, step=10_000)
    assert view.step == 0 == panel(view).step and "has the moments" in panel(view).alert
    move(view, speed=-3.0)
    assert view.speed == 2.0 == panel(view).speed and "steps a second" in panel(view).alert


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), 1000.0])
def test_an_impossible_speed_is_refused(view, wrong):
    with pytest.raises(pp.PipelabError, match="give steps a second"):
        view.speed = wrong
    assert view.speed == 2.0


def test_what_is_no_trace_is_refused_and_nothing_changes(view):
    before = view.trace
    with pytest.raises(TypeError, match="of a Trace, not of int"):
        view.trace = 3
    with pytest.raises(TypeError, match="of a Trace, not of str"):
        StepView("1f1b")
    assert view.trace is before and "of a Trace" in view.message


def test_a_step_that_takes_no_time_is_refused():
    nothing = pp.simulate(
        pp.schedule("1f1b", num_ranks=2, num_microbatches=2), pp.Costs((0, 0), (0, 0), (0, 0))
    )
    with pytest.raises(pp.PipelabError, match="takes no time at all"):
        StepView(nothing)


def test_a_misspelt_setting_names_the_nearest(view):
    with pytest.raises(AttributeError, match="did you mean 'step'"):
        view.steps = 3


def test_a_row_says_what_runs_what_is_waited_for_and_why():
    shown = trace(2, 2)
    table = table_at(shown, 0)
    first, second = table["rows"]
    assert (first["does"], first["chips"]) == ("runs", [{"name": "0F0", "paint": FORWARD_PAINT}])
    assert (second["does"], second["chips"]) == ("waits", [{"name": "1F0", "paint": FORWARD_PAINT}])
    assert second["sentence"] == shown.why(1, 0.0).sentence
    assert second["words"] == "It needs 0F0 of rank 0." and second["when"] == "0 s to 1 s"
    assert first["flying"] == {"names": ["0"], "count": 1} and second["flying"]["count"] == 0
    assert table["when"].startswith("0 s of ")


def test_what_is_new_is_marked():
    shown = trace(2, 2)
    assert not any(row["is_new"] for row in table_at(shown, 0)["rows"])
    for step in range(1, Moments(shown).num_steps + 1):
        table = table_at(shown, step)
        for rank, row in enumerate(table["rows"]):
            assert row["is_new"] == (f"rank {rank} " in table["sentence"])


def test_the_members_of_an_overlap_have_a_chip_each():
    shown = of_orders(OVERLAPPED)
    step = Moments(shown).step_at(float(shown.start[2]))
    chips = table_at(shown, step)["rows"][0]["chips"]
    assert chips == [{"name": "0F2", "paint": FORWARD_PAINT}, {"name": "0B0", "paint": BACKWARD_PAINT}]


def test_a_send_that_blocks_has_a_chip():
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    shown = pp.simulate(order, pp.Costs((1, 1), (1, 1), (0, 0), links=pp.Links(1.0, blocking=True)))
    chips = [row["chips"] for step in range(3) for row in table_at(shown, step)["rows"]]
    assert [{"name": "transfer of 0F0", "paint": OTHER_PAINT}] in chips


def test_of_many_in_flight_the_first_and_the_last_are_shown():
    shown = trace(2, 20, "gpipe")
    row = table_at(shown, Moments(shown).step_at(19.9))["rows"][0]
    assert row["flying"] == {"names": [*"012345", "…", "19"], "count": 20}
    assert row["kept"] == "20 micro-batches" and row["part"] == 1.0


def test_the_words_are_about_the_moment(view):
    view.step = 4
    assert view.text.startswith(f"Step 4 of {view.num_steps} of 1f1b (simulated clock), ")
    assert view.now.changes in view.text and view.now.ranks[3].sentence in view.text


def test_words_about_many_ranks_leave_some_out():
    view = StepView(trace(16, 4))
    assert "(8 ranks left out.) Rank 15 " in view.text
    view.close()


def test_the_picture_has_a_line_at_the_moment_and_the_sentence(view):
    view.step = 6
    axes = view.static_figure().axes[0]
    assert any(line.get_xdata()[0] == view.time for line in axes.lines)
    assert view.now.changes in axes.get_title()
    before = view.png()
    view.next()
    assert view.png() != before


def test_it_shows_itself_as_a_picture_and_live(view, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    view._ipython_display_()
    still, live = shown
    assert still["text/plain"] == view.text and "application/vnd.jupyter.widget-view+json" in live
    assert timeline(view)._static_tail == still["image/png"][-64:]


def test_closing_leaves_no_widget_and_no_figure():
    gc.collect()
    before, figures, threads = set(widgets), plt.get_fignums(), threading.active_count()
    for _ in range(3):
        view = StepView(trace(4, 8))
        view.step = 3
        view.png()
        view.close()
        view.close()
        assert view.text and view.now.step == 3 and view.png() and view._live() == {}
    assert set(widgets) == before and plt.get_fignums() == figures and threading.active_count() == threads
