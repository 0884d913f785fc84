"""Traces: made from times, equal, saved, shown."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import KINDS
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

ONE = Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")


def measured(**changes):
    arguments = {
        "start": [10, 15, 12, 13.5],
        "end": [11.5, 17, 13, 14.5],
        "clock": "wall",
        "devices": ("cpu", "cpu"),
    }
    arguments.update(changes)
    return Trace.from_times(ONE, arguments.pop("start"), arguments.pop("end"), **arguments)


def others(**changes):
    """The columns of one row of lane 1: a transfer of what 0F0 gave, from 11.5 to 12."""
    row = {"rank": 0, "lane": 1, "kind": 0, "stage": 0, "microbatch": 0, "start": 11.5, "end": 12.0}
    return {name: [value] for name, value in {**row, **changes}.items()}


def with_copies():
    return measured(lanes=("compute", "copy"), others=others())


def test_times_are_shifted_so_that_the_first_start_is_0():
    trace = measured()
    assert trace.start.tolist() == [0, 5, 2, 3.5] and trace.end.tolist() == [1.5, 7, 3, 4.5]
    assert trace.makespan == 7 and trace.durations.tolist() == [1.5, 2, 1, 1]


def test_rows_are_the_cells_in_table_order():
    trace = measured()
    assert trace.rank.tolist() == [0, 0, 1, 1]
    assert [KINDS[code] for code in trace.kind] == ["F", "B", "F", "B"]
    assert trace.lanes == ("compute",) and not trace.lane.any()
    assert trace.num_ranks == 2 and trace.label == "one"


def test_an_overlap_is_one_row_of_its_own_kind():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]])
    trace = simulate(one, Costs.uniform(1))
    assert [KINDS[code] for code in trace.kind] == ["F", "OVERLAP_F_B", "B"]
    assert (trace.stage[1], trace.microbatch[1]) == (0, 1)


def test_columns_are_read_only_and_do_not_follow_what_was_given():
    start = np.array([0.0, 12, 2, 13])
    trace = measured(start=start)
    start[1] = 99
    assert trace.start[1] == 12
    for name in ("rank", "lane", "kind", "stage", "microbatch", "start", "end", "durations"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(trace, name)[0] = 0


def test_columns_and_frames_name_units():
    columns = measured().columns()
    assert list(columns) == ["rank", "lane", "kind", "stage", "microbatch", "start [s]", "end [s]"]
    assert columns["kind"].tolist() == ["F", "B", "F", "B"] and columns["lane"].tolist() == ["compute"] * 4
    frame = measured().to_frame()
    assert (
        list(frame.columns) == ["rank", "lane", "kind", "stage", "microbatch", "start", "end"]
        and len(frame) == 4
    )


def test_other_lanes_are_rows_and_do_not_count_as_busy():
    trace = with_copies()
    assert trace.columns()["lane"].tolist() == ["compute"] * 4 + ["copy"]
    assert trace.report().busy == measured().report().busy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": [0, 1]}, r"must have shape \(4,\), one time a cell of one; they have \(2,\) and \(4,\)"),
        ({"end": [11.5, 17, 13, np.nan]}, "Row 3 starts at .* and ends at nan"),
        ({"end": [11.5, 17, 13, np.inf]}, "Row 3"),
        ({"start": [10, 18, 12, 13]}, "Row 1 starts at 8.0 and ends at 7.0"),
        ({"start": [10, np.nan, 12, 13]}, "Row 0|Row 1"),
        ({"clock": "cuckoo"}, "clock is 'cuckoo'.*\nAllowed: 'simulated', 'virtual', 'wall'"),
        ({"devices": ("cpu",)}, "1 devices are named for 2 ranks"),
    ],
)
def test_impossible_traces_are_refused(changes, message):
    with pytest.raises(PipelabError, match=message):
        measured(**changes)


def test_a_trace_has_a_row_for_every_cell():
    one = measured()
    few = {
        name: getattr(one, name)[:3]
        for name in ("rank", "lane", "kind", "stage", "microbatch", "start", "end")
    }
    with pytest.raises(PipelabError, match="A trace of one has 4 rows, not 3"):
        replace(one, **few)
    with pytest.raises(
        PipelabError, match=r"lanes must be 'compute' and then others, each once, not \('copy',\)"
    ):
        replace(one, lanes=("copy",))
    with pytest.raises(PipelabError, match="lanes must be 'compute' and then others, each once"):
        measured(lanes=("compute", "copy", "compute"))
    with pytest.raises(
        PipelabError, match=r"lane\[4\] is 1; after the 4 cells of one it must be from 1 to 0"
    ):
        measured(others=others())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bytes": StageBytes((1,) * 3, (1,) * 3, (1,) * 3)},
            "bytes are for 3 stages, but one has 2 model stages",
        ),
        ({"costs": Costs.uniform(3)}, "costs are for 3 stages, but one has 2 model stages"),
        (
            {"costs": replace(Costs.uniform(2), links=Links(((0,) * 3,) * 3))},
            "costs.links are for 3 ranks, but one has 2",
        ),
        ({"feed": Feed(load=(1, 2))}, "feed: load has 2 numbers, but the schedule has 1 micro-batches"),
        (
            {"end": [5, 17, 13, 14.5], "start": [1, 4, 12, 13.5]},
            r"start\[1\] is 3.0, before end\[0\], 4.0: rank 0 computes",
        ),
        (
            {"end": [17, 11.5, 13, 14.5], "start": [15, 10, 12, 13.5]},
            r"start\[1\] is 0.0, before end\[0\], 7.0: rank 0",
        ),
        ({"end": [11.5, 17, 13, 1e308]}, r"end\[3\] is 1e\+308; the latest end that is taken is 1e\+200 s"),
    ],
)
def test_what_does_not_fit_the_schedule_is_refused_by_field(changes, message):
    with pytest.raises(PipelabError, match=message):
        measured(**changes)


def test_neighbours_may_overlap_by_what_a_clock_does_not_see():
    overlapping = {"start": [10, 15, 12, 13], "end": [11.5, 17, 13 + 5e-7, 14.5]}
    assert measured(**overlapping).clock == "wall"
    with pytest.raises(PipelabError, match=r"start\[3\] is 3.0, before end\[2\]"):
        measured(clock="simulated", **overlapping)
    assert measured(clock="simulated", start=[10, 15, 12, 13], end=[11.5, 17, 13 + 1e-9, 14.5])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank", 2, r"rank\[4\] is 2; after the 4 cells of one it must be from 0 to 1"),
        ("lane", 0, r"lane\[4\] is 0; after the 4 cells of one it must be from 1 to 1"),
        ("kind", 9, r"kind\[4\] is 9"),
        ("stage", 2, r"stage\[4\] is 2"),
        ("stage", -1, r"stage\[4\] is -1"),
        ("microbatch", 1, r"microbatch\[4\] is 1; after the 4 cells of one it must be from 0 to 0"),
    ],
)
def test_further_rows_stay_within_the_numbers_of_the_schedule(name, value, message):
    with pytest.raises(PipelabError, match=message):
        measured(lanes=("compute", "copy"), others=others(**{name: value}))
    data = with_copies().to_dict()
    data["others"][name] = [value]
    with pytest.raises(PipelabError, match=rf"trace.others.{name}.*(out of range|negative)|{message}"):
        Trace.from_dict(data)


def test_an_update_is_not_beside_what_its_rank_computes():
    """Else the rank would be busy for longer than the step."""
    assert measured(lanes=("compute", "update"), others=others(start=17, end=20)).makespan == 10
    with pytest.raises(PipelabError, match=r"start\[1\] is 0.0, before end\[0\]"):
        backwards = {"end": [17, 11.5, 13, 14.5], "start": [15, 10, 12, 13.5]}
        measured(**backwards, lanes=("compute", "update"), others=others(start=17, end=20))
    for start, end in ((16, 20), (14, 16), (10, 11)):
        with pytest.raises(PipelabError, match="rank 0 computes one thing at a time"):
            measured(lanes=("compute", "update"), others=others(start=start, end=end))


@pytest.mark.parametrize("name", ["rank", "lane", "kind", "stage", "microbatch"])
def test_the_first_rows_are_the_cells(name):
    one = with_copies()
    column = np.array(getattr(one, name))
    column[2] = 1 - column[2]
    with pytest.raises(PipelabError, match=rf"{name}\[2\] is .*, but row 2 is 1F0 of one, whose {name} is"):
        replace(one, **{name: column})


@pytest.mark.parametrize("shift", [-1.0, 2.0])
def test_the_first_start_is_0(shift):
    one = measured()
    with pytest.raises(PipelabError, match="start: the first start is 0, not "):
        replace(one, start=one.start + shift, end=one.end + shift)
    data = one.to_dict()
    for name in ("start", "end"):
        data[name] = [x + shift for x in data[name]]
    with pytest.raises(PipelabError, match="start: the first start is 0"):
        Trace.from_dict(data)


def test_values_of_other_types_are_type_errors():
    for name in ("bytes", "costs", "feed"):
        with pytest.raises(TypeError, match=rf"{name} must be .* or None, not int"):
            measured(**{name: 3})


def test_equality_is_by_value():
    assert measured() == measured() and hash(measured()) == hash(measured())
    for other in (
        measured(clock="virtual"),
        measured(label="x"),
        measured(notes=("n",)),
        measured(start=[10, 15, 12, 13]),
    ):
        assert other != measured()
    assert measured() != "trace"


def test_rows_of_other_lanes_are_on_the_clock_of_the_cells():
    trace = with_copies()
    assert (trace.rank[-1], trace.start[-1], trace.end[-1]) == (0, 1.5, 2)
    early = measured(lanes=("compute", "load:0"), others=others(start=8.0, end=9.0))
    assert early.start.tolist() == [2, 7, 4, 5.5, 0] and early.makespan == 9


def test_updates_count_as_work_and_copies_do_not():
    trace = measured(lanes=("compute", "update"), others=others(kind=4, start=17.0, end=20.0))
    assert trace.makespan == 10 and trace.report().busy == (1.5 + 2 + 3, 2)


def test_what_a_simulation_was_made_from_is_kept_and_saved():
    trace = measured(clock="simulated", costs=Costs.uniform(2, latency=0.5))
    assert trace.costs.links.latency == 0.5 and trace.feed is None and trace != measured(clock="simulated")
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace
    assert not {"costs", "feed", "bytes"} & set(measured().to_dict())


@pytest.mark.parametrize("make", [measured, with_copies])
def test_copies_pickles_and_dicts_are_equal(make):
    trace = replace(make(), bytes=StageBytes((1, 2), (3, 4), (5, 6)), notes=("one core",))
    for other in (copy.deepcopy(trace), pickle.loads(pickle.dumps(trace))):
        assert other == trace
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False))) == trace


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_any_simulation_round_trips(random_schedule, random_costs, seed):
    one = random_schedule(seed)
    costs = random_costs(seed, one)
    links = replace(costs.links, serial=seed % 3 == 1, blocking=seed % 3 == 2)
    trace = simulate(one, replace(costs, links=links), feed=Feed(0.5, 1.5, 2) if seed % 2 else None)
    again = Trace.from_dict(json.loads(json.dumps(trace.to_dict())))
    assert (again.costs, again.feed) == (trace.costs, trace.feed)
    assert again.report().idle_by_cause == trace.report().idle_by_cause
    assert again.critical_path() == trace.critical_path()
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock": "x"}, "clock is 'x'"),
        ({"start": [0]}, "shape"),
        ({"start": [0, 1, 2, "3"]}, r"trace.start\[3\] must be a finite number"),
        ({"others": {}}, "trace.others.rank is missing"),
        (
            {"others": {"rank": [9], "lane": [0], "kind": [0], "stage": [0], "microbatch": [0]}},
            "trace.others.rank holds",
        ),
        (
            {"others": {"rank": [0], "lane": [7], "kind": [0], "stage": [0], "microbatch": [0]}},
            "trace.others.lane holds",
        ),
        ({"extra": 1}, "trace has the unknown key 'extra'"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(PipelabError, match=message):
        Trace.from_dict({**measured().to_dict(), **change})


def test_the_print_has_the_headline_and_the_report():
    lines = str(measured()).splitlines()
    assert lines[0] == "one: makespan 7 s (wall clock), bubble fraction 60.7 %"
    assert lines[1].split() == ["rank", "busy", "bubble", "time", "bubble", "peak", "in", "flight"]
    assert repr(measured()) == f"<Trace {lines[0]}, 4 rows>"


def test_labels_are_escaped_in_html():
    assert (
        "<b>" not in measured(label="<b>")._repr_html_()
        and "&lt;b&gt;" in measured(label="<b>")._repr_html_()
    )


def test_a_new_label_changes_nothing_else():
    trace = measured().with_label("mine")
    assert trace.label == "mine" and trace.with_label("one") == measured()


def test_making_a_trace_makes_no_object_a_cell():
    one = schedule("1f1b", num_ranks=8, num_microbatches=64)
    simulate(one, Costs.uniform(8)).report()
    assert "orders" not in vars(one)


def test_what_a_feed_does_is_no_forward_in_the_columns():
    from pipelab.core.feed import Feed

    fed = simulate(schedule("1f1b", num_ranks=2, num_microbatches=2), Costs.uniform(2), feed=Feed(prepare=1))
    columns = fed.columns()
    for lane, kind in (("load:0", "load"), ("prepare:0", "prepare")):
        assert set(columns["kind"][columns["lane"] == lane]) == {kind}
    assert set(columns["kind"][columns["lane"] == "compute"]) == {"F", "B"}


def test_a_prediction_says_between_what_it_lies_and_a_measured_run_does_not():
    trace = simulate(ONE, Costs((1, 1), (1, 1), (1, 1), band=(0.5, 1.5)))
    assert trace.band == (3, 9)
    assert str(trace).splitlines()[0].startswith("one: makespan 6 s (3 s to 9 s) (simulated clock)")
    assert measured().band is None and simulate(ONE, Costs.uniform(2)).band is None
