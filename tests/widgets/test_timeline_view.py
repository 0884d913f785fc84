"""The timeline's kernel side: traits, refusals, answers, and one message a picture."""

from __future__ import annotations

import gc
import weakref

import pytest
import traitlets as T
from ipywidgets.widgets.widget import _instances

import pipelab as pp
from pipelab.errors import PipelabError
from pipelab.widgets.timeline_view import TimelineView
from tests.widgets.test_timeline_columns import TRACES, simulated, unpacked, with_bytes


@pytest.fixture
def view():
    view = TimelineView(simulated())
    yield view
    view.close()


@pytest.fixture
def asked(view, monkeypatch):
    """asked(**content): what the front end would be answered."""
    sent = []
    monkeypatch.setattr(view, "send", lambda content, buffers=None: sent.append(content))

    def ask(**content):
        sent.clear()
        view._handle_custom_msg({"serial": view._meta["serial"], "id": 1, **content}, [])
        return sent[0] if sent else None

    return ask


def messages(view, monkeypatch):
    """The states sent from now on, as lists of names."""
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(sorted(key)))
    return sent


def test_what_is_no_trace_is_refused_as_by_plot_timeline():
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    with pytest.raises(TypeError, match="A timeline is drawn from a Trace, not from Schedule") as refusal:
        TimelineView(schedule)
    with pytest.raises(TypeError) as plots:
        pp.plot_timeline(schedule)
    assert str(refusal.value) == str(plots.value)


def test_a_wrong_trace_leaves_the_picture_as_it_is(view):
    trace, columns = view.trace, view._columns
    with pytest.raises(TypeError):
        view.trace = "1f1b"
    with pytest.raises(TypeError):
        view.show(None)
    assert view.trace is trace and view._columns is columns


def test_setting_a_trace_moves_the_picture_in_one_message(view, monkeypatch):
    sent = messages(view, monkeypatch)
    other = simulated(microbatches=4)
    view.trace = other
    assert view._meta["count"] == len(other.start) and view._meta["serial"] == 1
    assert [names for names in sent if "_columns" in names] == [["_columns", "_meta"]] and len(sent) == 1


def test_show_replaces_everything_in_one_message(view, monkeypatch):
    view.selected, view.span = 5, (1.0, 2.0)
    sent = messages(view, monkeypatch)
    other = simulated("gpipe")
    view.show(other, predicted=simulated("gpipe", latency=0.5), remark="of an older plan")
    assert sent == [["_columns", "_meta", "selected", "span"]]
    assert view._meta["title"][2] == "of an older plan" and view._meta["predicted"]
    assert (view.selected, view.span) == (-1, (0.0, 0.0))
    view.show(view.trace)
    assert view.predicted is None and len(view._meta["title"]) == 2


def test_a_trace_of_the_same_schedule_keeps_selection_and_zoom(view):
    view.selected, view.span = 5, (1.0, 2.0)
    view.show(pp.simulate(view.trace.schedule, pp.Costs.uniform(4, latency=0.5)))
    assert (view.selected, view.span) == (5, (1.0, 2.0))


def test_a_shorter_trace_of_the_same_schedule_lets_go_of_what_it_has_not(view):
    short = pp.simulate(
        view.trace.schedule, pp.Costs.uniform(4, forward=0.01, input_grad=0.01, weight_grad=0.01)
    )
    stop = view.trace.makespan
    view.span, view.moment = (stop - 4, stop - 1), stop
    view.trace = short
    assert (view.span, view.moment) == ((0.0, 0.0), -1.0)
    view.span, view.moment = (0.0, short.makespan), short.makespan
    view.trace = pp.simulate(short.schedule, pp.Costs.uniform(4))
    assert (view.span, view.moment) == ((0.0, short.makespan), short.makespan)  # a longer one has it all


def test_a_zoom_at_the_end_stays_at_the_end_of_a_little_shorter_trace(view):
    start, end = 0.9 * view.trace.start, 0.9 * view.trace.end
    shorter = pp.Trace.from_times(view.trace.schedule, start, end, clock="virtual")
    view.span = (view.trace.makespan - 4, view.trace.makespan)
    view.trace = shorter
    assert view.span == pytest.approx((shorter.makespan - 4, shorter.makespan))


def test_a_prediction_of_another_schedule_is_refused(view):
    with pytest.raises(PipelabError, match="predicted is of another schedule than 1f1b"):
        view.predicted = simulated("gpipe")
    with pytest.raises(PipelabError, match="another schedule"):
        TimelineView(simulated(), predicted=simulated(microbatches=4))
    with pytest.raises(TypeError, match="drawn from a Trace"):
        view.predicted = 3
    assert view.predicted is None
    view.predicted = simulated(latency=1)
    assert "outline_start" in view._meta["columns"]
    view.trace = simulated("gpipe")
    assert view.predicted is None and "outline_start" not in view._meta["columns"]


def test_a_limit_needs_known_bytes(view):
    with pytest.raises(PipelabError, match="how many bytes the stages of 1f1b hold is not known"):
        view.memory_limit = 2**30
    assert view.memory_limit is None
    for limit in (0, -1, float("nan"), float("inf"), True, "4 GiB"):
        with pytest.raises(PipelabError, match="memory_limit is"):
            TimelineView(with_bytes(), memory_limit=limit)
    limited = TimelineView(with_bytes(), memory=True, memory_limit=2.6 * 2**30)
    assert limited._meta["overrun"].startswith("Rank 0 holds more than 2.6 GiB with 0F2")
    assert "Rank 0 holds more than 2.6 GiB with 0F2 at 2 s." in limited.text
    with pytest.raises(PipelabError, match="not known"):
        limited.trace = simulated()
    limited.close()


@pytest.mark.parametrize(
    "value", [(2.0, 1.0), (1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0), (-1.0, 1.0), (1.0,), "all"]
)
def test_a_span_must_be_a_piece_of_time(view, value):
    with pytest.raises(PipelabError, match="give a begin and a later end"):
        view.span = value
    assert view.span == (0.0, 0.0)


def test_settings_out_of_range_are_refused_and_misspelt_ones_named(view):
    with pytest.raises(T.TraitError, match="has rows 0 to 63"):
        view.selected = 64
    with pytest.raises(PipelabError, match="moment is -2; give seconds"):
        view.moment = -2
    with pytest.raises(PipelabError, match="time_stop is -1"):
        view.time_stop = -1
    with pytest.raises(AttributeError, match="did you mean 'critical_path'"):
        view.criticalpath = True
    view.moment, view.time_stop = 3, 40
    view.moment = -1
    assert (view.selected, view.moment, view.time_stop) == (-1, -1.0, 40.0)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("height", 10, "height is 10; give pixels, a whole number from 60 on"),
        ("height", "tall", "height is 'tall'; give pixels"),
        ("memory", "yes", "memory is 'yes'; give True or False."),
        ("selected", "1F0", "selected is '1F0'; give a whole number."),
        ("selected", 64, "has rows 0 to 63"),
        ("moment", None, "moment is None; give a number."),
        ("title", None, "title is None; give a text."),
        ("span", (2, 1), "span is (2, 1); give a begin and a later end"),
        ("message", "all is well", "message can be read, but not set."),
        ("memory_limit", 2**30, "how many bytes the stages of 1f1b hold is not known"),
    ],
)
def test_what_cannot_be_is_said_in_the_widget_and_raised(view, name, value, sentence):
    before = getattr(view, name)
    with pytest.raises(PipelabError) as refusal:
        setattr(view, name, value)
    assert sentence in str(refusal.value) and view.message == str(refusal.value)
    assert name == "message" or getattr(view, name) == before
    view.moment = 1.0
    assert view.message == ""


def test_what_is_said_of_a_wrong_trace_stays_until_all_is_well(view):
    with pytest.raises(TypeError):
        view.trace = "1f1b"
    assert view.message.startswith("A timeline is drawn from a Trace")
    view.show(view.trace)
    assert view.message == ""
    with pytest.raises(PipelabError):
        view.show(view.trace, predicted=simulated("gpipe"))
    assert "another schedule" in view.message


def test_a_height_is_checked_from_the_beginning():
    with pytest.raises(PipelabError, match="height is 10"):
        TimelineView(simulated(), height=10)


@pytest.mark.parametrize(
    ("state", "words"),
    [({"selected": 64}, "has rows 0 to 63"), ({"span": [3, 2]}, "later end"), ({"memory": "yes"}, "memory")],
)
def test_what_the_front_end_sends_wrongly_is_said_there_and_taken_back(view, monkeypatch, state, words):
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(key))
    before = {name: getattr(view, name) for name in state}
    view.set_state(state)
    assert words in view.message and {name: getattr(view, name) for name in state} == before
    assert list(state) in sent


def test_memory_is_sent_only_while_it_is_shown(view):
    assert "memory_time" not in view._meta["columns"]
    view.memory = True
    assert unpacked(view._columns, view._meta)["memory_first"][-1] > 0
    assert "Memory of 1f1b" in view.text
    view.memory = False
    assert "memory_time" not in view._meta["columns"]


def test_a_question_about_a_gap_is_answered_as_trace_why_does(view, asked):
    answer = asked(what="why", rank=2, time=5.0)
    assert answer["sentence"] == "Rank 2 waits 2 s for 2B0, from 4 s to 6 s: it needs 3B0 of rank 3."
    assert answer["rows"] == view.why(2, 5).rows.tolist() and (answer["what"], answer["id"]) == ("why", 1)
    assert asked(what="why", rank=2, time=1e9)["sentence"].startswith("Rank 2 ended its last action")


def test_a_question_about_an_older_picture_is_not_answered(view, asked):
    assert asked(what="why", rank=2, time=5.0, serial=99) is None
    assert asked(what="tea") is None


def test_an_error_of_an_answer_is_seen_in_the_view(view, asked):
    answer = asked(what="why", rank=17, time=5.0)
    assert "rank is 17" in view.message and answer["error"] == view.message
    asked(what="why", rank=2, time=5.0)
    assert view.message == ""
    asked(what="links", row="x")
    assert view.message.startswith("ValueError")
    view.show(view.trace)
    assert view.message == ""


def test_the_path_is_looked_for_only_when_asked(view, asked):
    view.critical_path = True
    assert "_causes" not in vars(view.trace)
    path = view.trace.critical_path()
    assert asked(what="path")["rows"] == path.rows.tolist()
    assert "Critical path: " in view.text


def test_showing_looks_for_no_causes(view):
    other = simulated(microbatches=16)
    view.show(other)
    assert "_causes" not in vars(other)


def test_links_of_an_action_are_what_it_needs_and_what_needs_it(view, asked):
    names = view.trace.schedule.table.texts()
    answer = asked(what="links", row=names.index("1B0"))
    assert [names[row] for row in answer["before"]] == ["1F0", "2B0"]
    assert [names[row] for row in answer["after"]] == ["0B0"]
    gap = "Rank 1 waits 4 s for 1B0, from 4 s to 8 s: it needs 2B0 of rank 2, which needs 3B0 of rank 3"
    assert answer["sentence"].startswith(gap), "who has no mouse reads of the gap before the action"
    assert asked(what="links", row=names.index("0F1"))["sentence"] == "It comes after 0F0 on its rank."
    assert asked(what="links", row=names.index("0F0"))["sentence"] == "It waits for nothing."


@pytest.mark.parametrize("name", TRACES)
def test_the_still_picture_is_that_of_matplotlib(name):
    trace = TRACES[name]()
    view = TimelineView(trace, predicted=trace, memory=True, critical_path=True)
    figure = view.static_figure()
    assert figure.axes[0].get_title().startswith(trace.label)
    assert view.png()[:4] == b"\x89PNG" and view.png() == view.png()
    view.close()


def test_the_still_picture_says_what_its_lines_are():
    view = TimelineView(
        with_bytes(), predicted=with_bytes(), memory=True, memory_limit=2.6 * 2**30, critical_path=True
    )
    view.moment = 3
    lines = view.static_figure().axes[0].get_title().splitlines()
    assert lines[2].startswith("critical path: ")
    assert lines[3:] == ["outlines: predicted, 33 s", "Rank 0 holds more than 2.6 GiB with 0F2 at 2 s"]
    view.close()


def test_pyplot_hears_nothing_of_still_pictures(view):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    view.png()
    assert plt.get_fignums() == before


def test_a_title_of_ones_own_is_text(view):
    view.title = "cost in $ and $ <b>"
    assert view.static_figure().axes[0].get_title() == r"cost in \$ and \$ <b>"


def test_fifty_views_leave_nothing_behind():
    TimelineView(simulated()).close()
    before = len(_instances)
    kept = []
    for _ in range(50):
        view = TimelineView(simulated(), memory=True)
        kept.append(weakref.ref(view))
        view.close()
        view.close()  # twice is once
    del view
    gc.collect()
    after = len(_instances)
    assert after == before
    assert not [one for one in kept if one() is not None]


def test_what_was_closed_can_still_be_read():
    view = TimelineView(simulated())
    view.close()
    assert view.text.startswith("Timeline of 1f1b") and view.png()[:4] == b"\x89PNG"
