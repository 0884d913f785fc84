from __future__ import annotations

import gc
import re
import threading

import ipywidgets as W
import matplotlib.pyplot as plt
import pytest
from ipywidgets.widgets.widget import _instances as widgets

import pipelab as pp
from pipelab.core.differences import measures
from pipelab.widgets.compare_table import compare_table
from pipelab.widgets.compare_view import MOST, CompareView, height_of_each
from pipelab.widgets.timeline_view import TimelineView
from tests.plots.sizes import OVERLAPPED, of_orders, trace

GPIPE, ONE_F_ONE_B, LATE = trace(4, 8, "gpipe"), trace(4, 8), trace(4, 8, latency=0.5)


@pytest.fixture
def view():
    view = CompareView([GPIPE, ONE_F_ONE_B, LATE])
    yield view
    view.close()


def timelines(view: CompareView) -> list[TimelineView]:
    stack, _ = view.children
    return list(stack.children)


def press_remove(view: CompareView, row: object) -> None:
    view.children[-1]._handle_custom_msg({"what": "remove", "row": row}, [])


def test_there_is_a_small_timeline_for_each_trace_and_a_table_below(view):
    assert [part.trace for part in timelines(view)] == list(view.traces)
    assert all(isinstance(part, TimelineView) and part.compact for part in timelines(view))


def test_all_timelines_have_one_time_axis_and_one_height(view):
    assert {part.time_stop for part in timelines(view)} == {LATE.makespan}
    assert len({part.height for part in timelines(view)}) == 1
    view.remove(2)
    assert {part.time_stop for part in timelines(view)} == {GPIPE.makespan}


def test_eight_timelines_and_two_fit_the_same_page():
    one = trace(8, 8)
    assert 8 * height_of_each((one,) * 8) < 560 and 2 * height_of_each((one,) * 2) < 560
    assert height_of_each((trace(2, 2),) * 2) < height_of_each((one,) * 2)


def test_two_of_one_name_are_told_apart(view):
    assert [one.label for one in view.traces] == ["gpipe", "1f1b", "1f1b (2)"]


def test_a_mapping_names_its_traces():
    view = CompareView({"mine": GPIPE, "yours": GPIPE})
    assert [one.label for one in view.traces] == ["mine", "yours"]
    assert [row["name"] for row in view.children[-1].table["rows"]] == ["mine", "yours"]
    view.close()


def test_the_comparison_is_that_of_compare(view):
    assert view.comparison == pp.compare(view.traces)
    assert view.differences["makespan"] == tuple(
        pytest.approx(one.makespan / GPIPE.makespan - 1, abs=1e-12) for one in view.traces
    )
    assert view.differences["peak in flight"] == (0.0, -0.5, -0.5)


def test_traces_are_set_added_and_removed(view):
    view.traces = [LATE]
    assert [part.trace.label for part in timelines(view)] == ["1f1b"] and view.traces == (LATE,)
    view.add(GPIPE, "another")
    assert [one.label for one in view.traces] == ["1f1b", "another"]
    view.remove("1f1b")
    assert [one.label for one in view.traces] == ["another"]
    assert timelines(view)[0].trace.label == "another" and len(view.comparison) == 1


def test_the_first_timeline_stays_when_the_first_trace_goes(view):
    first = timelines(view)[0]  # it hides the static picture while it lives
    view.remove(0)
    assert timelines(view)[0] is first and first.trace is view.traces[0]


def test_a_view_from_code_moves_all_timelines(view):
    view.span = (1.0, 5.0)
    assert {part.span for part in timelines(view)} == {(1.0, 5.0)}


def test_the_front_end_links_all_timelines_to_the_first(view):
    links = view._links
    assert {link.source for link in links} == {(timelines(view)[0], "span")}
    assert [link.target for link in links] == [(part, "span") for part in timelines(view)[1:]]


def test_a_zoom_in_the_front_end_is_seen_and_not_sent_back(view):
    seen = []
    view.observe(lambda change: seen.append(change.new), "span")
    timelines(view)[1].set_state({"span": [2.0, 3.0]})
    assert view.span == (2.0, 3.0) and seen == [(2.0, 3.0)]
    assert (
        timelines(view)[0].span == timelines(view)[2].span == (0.0, 0.0)
    )  # the front end's own link moves these


def test_a_zoom_beyond_the_new_end_shows_all(view):
    view.span = (LATE.makespan - 1, LATE.makespan)
    view.traces = [trace(2, 2)]
    assert view.span == (0.0, 0.0) == timelines(view)[0].span


def test_a_button_removes_its_row(view):
    press_remove(view, 1)
    assert [one.label for one in view.traces] == ["gpipe", "1f1b (2)"]


@pytest.mark.parametrize("row", [9, -1, "0", None, True])
def test_a_message_about_no_row_changes_nothing(view, row):
    press_remove(view, row)
    assert len(view.traces) == 3


def test_the_last_one_stays_and_it_says_why():
    view = CompareView(GPIPE)
    press_remove(view, 0)
    assert view.traces == (GPIPE,) and "at least one trace" in view.message
    assert view.children[-1].alert == view.message
    assert not view.children[-1].table["removable"]
    view.add(LATE)
    assert view.message == view.children[-1].alert == ""
    view.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "at least one trace"),
        ([GPIPE] * (MOST + 1), "9 traces are too many"),
        ({}, "at least one trace"),
    ],
)
def test_too_few_and_too_many_are_refused_and_nothing_changes(view, wrong, message):
    before = view.traces
    with pytest.raises(pp.PipelabError, match=message):
        view.traces = wrong
    with pytest.raises(pp.PipelabError, match=message):
        CompareView(wrong)
    assert view.traces is before and message in view.message and message in view.children[-1].alert


@pytest.mark.parametrize("wrong", [3, [1], {"a": "b"}, None])
def test_what_is_no_trace_is_a_type_error(view, wrong):
    with pytest.raises(TypeError, match="takes traces, not"):
        CompareView(wrong)
    with pytest.raises(TypeError, match="takes traces, not"):
        view.add(wrong)


@pytest.mark.parametrize("which", [7, -1, True, "nobody"])
def test_removing_what_is_not_there_is_refused(view, which):
    with pytest.raises(pp.PipelabError, match=r"There is no trace .*'gpipe', '1f1b', '1f1b \(2\)'"):
        view.remove(which)


@pytest.mark.parametrize("wrong", [(3.0, 2.0), (-1.0, 2.0), (0.0, float("inf"))])
def test_a_view_that_is_none_is_refused(view, wrong):
    with pytest.raises(pp.PipelabError, match="give a begin and a later end"):
        view.span = wrong
    assert view.span == (0.0, 0.0)


def test_a_misspelt_setting_names_the_nearest(view):
    with pytest.raises(AttributeError, match="did you mean 'traces'"):
        view.trace = GPIPE


def test_the_table_says_by_how_much_and_which_is_best(view):
    table = view.children[-1].table
    assert table["columns"] == ["makespan", "bubble_fraction", "peak in flight"]
    first, second, third = table["rows"]
    assert [cell["change"] for cell in first["cells"]] == ["", "", ""] and first["remark"]
    assert re.fullmatch(r"\+\d+\.\d %", third["cells"][0]["change"])
    assert third["cells"][1]["change"].endswith(" points")
    assert [row["cells"][2]["best"] for row in table["rows"]] == [False, True, True]
    assert second["name"] == "1f1b"
    found = measures(view.comparison)
    assert [cell["text"] for cell in third["cells"]] == [measure.texts[2] for measure in found]


def test_the_clock_is_said_once_where_all_have_the_same():
    measured = pp.Trace.from_times(LATE.schedule, LATE.start, LATE.end, clock="wall", label="measured")
    same, mixed = (compare_table(runs, pp.compare(runs)) for runs in ((GPIPE, LATE), (LATE, measured)))
    assert same["runs"] == "run (simulated clock)" and [row["clock"] for row in same["rows"]] == ["", ""]
    assert mixed["runs"] == "run"
    assert [row["clock"] for row in mixed["rows"]] == ["simulated clock", "wall clock"]
    assert same["note"] == "" and "The clocks differ (simulated, wall)" in mixed["note"]


def test_differences_stay_within_a_clock():
    measured = pp.Trace.from_times(
        LATE.schedule, 3 * LATE.start, 3 * LATE.end, clock="wall", label="measured"
    )
    view = CompareView([measured, GPIPE, LATE])
    alone, first, second = view.children[-1].table["rows"]
    assert not any(cell["change"] or cell["best"] for cell in alone["cells"]) and not alone["remark"]
    assert first["cells"][0]["best"] and "of its clock" in first["remark"]
    assert second["cells"][0]["change"] == f"{100 * (LATE.makespan / GPIPE.makespan - 1):+.1f} %"
    assert view.differences["makespan"][:2] == (0.0, 0.0)
    assert view.text.count("Against the first of this clock: ") == 1
    view.close()


def test_the_legend_names_the_colours_that_there_are():
    def legend(*shown):
        return [name for name, _ in compare_table(shown, pp.compare(shown))["legend"]]

    assert legend(GPIPE) == ["F forward", "B, I backward"]
    assert legend(GPIPE, trace(2, 4, "zb-h1")) == ["F forward", "B, I backward", "W weights"]
    assert legend(of_orders(OVERLAPPED)) == ["F forward", "B, I backward", "updates, other lanes"]


def test_hostile_names_are_cut_and_kept_as_they_are():
    name = "<img src=x onerror=alert(1)> $x$\n" + "a" * 10_000
    view = CompareView({name: GPIPE, "b": LATE})
    shown = view.children[-1].table["rows"][0]["name"]
    assert len(view.children[-1].table["rows"][0]["title"]) <= 1000
    assert len(shown) <= 90 and shown.startswith("<img src=x") and "\n" not in shown and "\\$" not in shown
    assert view.png()[:4] == b"\x89PNG"
    view.close()


def test_words_and_picture_are_of_all_traces(view):
    assert view.text.count("Timeline of ") == 3
    assert "Against the first: makespan " in view.text
    (axes,) = view.static_figure().axes
    assert "3 timelines on one time axis" in axes.get_title()
    assert view.png() == view.png()


def test_it_shows_itself_as_a_picture_and_live(view, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    view._ipython_display_()
    still, live = shown
    assert set(still) == {"image/png", "text/plain"} and still["text/plain"] == view.text
    assert "application/vnd.jupyter.widget-view+json" in live
    assert timelines(view)[0]._static_tail == still["image/png"][-64:]


def test_closing_leaves_no_widget_and_no_figure():
    gc.collect()
    before, figures, threads = set(widgets), plt.get_fignums(), threading.active_count()
    for _ in range(3):
        view = CompareView([GPIPE, ONE_F_ONE_B, LATE])
        view.png()
        view.remove(0)
        view.add(GPIPE)
        view.close()
        view.close()
        assert view.comparison and view.text and view.png() and view._live() == {}
    assert set(widgets) == before and plt.get_fignums() == figures and threading.active_count() == threads


def test_removed_timelines_are_closed():
    view = CompareView([GPIPE, ONE_F_ONE_B, LATE])
    with_three = set(widgets)
    view.remove(0)
    view.remove(0)
    assert len(with_three - set(widgets)) >= 4  # two timelines with their layouts, and links
    assert view._links == []
    view.close()


def test_boxes_hold_it_as_any_other(view):
    assert W.VBox([view]).children == (view,)
