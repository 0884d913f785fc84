"""Runs side by side."""

from __future__ import annotations

import numpy as np
import pytest

from pipelab.core.comparison import compare
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError


def run(name, bytes=None):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    equal = (1,) * one.num_model_stages
    return simulate(one, Costs(equal, equal, equal, bytes=bytes))


def test_one_row_a_run_in_the_order_given():
    columns = compare([run("gpipe"), run("1f1b")]).columns()
    assert columns["schedule"].tolist() == ["gpipe", "1f1b"]
    assert columns["makespan [s]"].tolist() == [33, 33] and columns["peak in flight"].tolist() == [8, 4]
    assert "peak memory [bytes]" not in columns


def test_predicted_beside_measured_is_one_call():
    predicted = run("1f1b")
    measured = Trace.from_times(
        predicted.schedule, predicted.start, predicted.end * 1.0, clock="wall", label="run"
    )
    assert compare([predicted, measured]).columns()["clock"].tolist() == ["simulated", "wall"]


def test_a_mapping_names_the_runs():
    table = compare({name: run(name) for name in SCHEDULES})
    assert table.columns()["schedule"].tolist() == list(SCHEDULES) and len(table) == len(SCHEDULES)
    assert compare({"mine": run("gpipe")}).reports[0].label == "mine"


def test_memory_where_it_is_known():
    table = compare([run("gpipe"), run("1f1b", StageBytes((2**20,) * 4, (0,) * 4, (0,) * 4))])
    peak = table.columns()["peak memory [bytes]"]
    assert np.isnan(peak[0]) and peak[1] == 2**21
    assert "2 MiB" in str(table) and "nan" not in str(table)


def test_frames_have_the_columns():
    frame = compare([run("gpipe")]).to_frame()
    assert list(frame.columns) == [
        "schedule",
        "ranks",
        "stages per rank",
        "micro-batches",
        "clock",
        "makespan [s]",
        "bubble fraction",
        "bubble ratio",
        "span bubble",
        "peak in flight",
    ]


def test_the_period_shows_what_the_makespan_does_not():
    table = compare([run("zb-h2"), run("1f1b")])
    assert table.columns(period=True)["period [s]"].tolist() == [24, 33]
    assert "period [s]" not in table.columns() and table.to_frame(period=True)["period [s]"].tolist() == [
        24,
        33,
    ]
    measured = Trace.from_times(run("1f1b").schedule, run("1f1b").start, run("1f1b").end, clock="wall")
    assert np.isnan(compare([run("1f1b"), measured]).columns(period=True)["period [s]"][1])


def test_printing_a_comparison_works_out_no_period():
    reports = compare([run("zb-h2"), run("1f1b")])
    assert str(reports) and reports._repr_html_() and reports.to_frame() is not None
    assert not any("period" in vars(report) for report in reports.reports)


def test_bytes_sent_and_causes_are_columns_of_frames():
    frame = compare([run("gpipe", StageBytes((0,) * 4, (0,) * 4, (10,) * 4))]).to_frame(causes=True)
    assert frame["sent [bytes]"].tolist() == [2 * 3 * 8 * 10]
    names = ["input [s]", "communication [s]", "imbalance [s]", "order [s]", "fill and drain [s]"]
    assert list(frame.columns[-5:]) == names and frame.loc[0, names].tolist() == [0, 0, 0, 0, 36]


def test_the_print_says_what_each_bubble_is():
    text = str(compare([run("gpipe")]))
    assert text.splitlines()[1].split() == [
        "gpipe",
        "4",
        "8",
        "simulated",
        "33",
        "s",
        "27.3",
        "%",
        "37.5",
        "%",
        "27.3",
        "%",
        "8",
    ]
    assert "Bubble ratio: idle / busy" in text


def test_names_are_escaped_in_html():
    html = compare({"<svg>": run("gpipe")})._repr_html_()
    assert "<svg>" not in html and "&lt;svg&gt;" in html


def test_nothing_and_things_that_are_no_traces_are_refused():
    with pytest.raises(PipelabError, match="at least one trace"):
        compare([])
    with pytest.raises(
        TypeError, match=r"takes traces, not Schedule. Call simulate\(schedule, costs\) first"
    ):
        compare([run("gpipe").schedule])


def test_one_trace_alone_is_compared_too():
    assert compare(run("gpipe")) == compare([run("gpipe")])


@pytest.mark.parametrize(
    "wrong", [3, None, [run("gpipe"), 3], {"a": run("gpipe").schedule}, run("gpipe").schedule]
)
def test_what_is_no_trace_is_a_type_error_that_says_what_to_call(wrong):
    with pytest.raises(
        TypeError, match=r"compare\(\) takes traces, not (int|NoneType|Schedule)\. Call simulate"
    ):
        compare(wrong)
    with pytest.raises(PipelabError, match="at least one"):
        compare({})


def test_stages_per_rank_are_shown_where_a_rank_holds_several():
    runs = [
        simulate(schedule(n, num_ranks=2, num_microbatches=2), Costs.uniform(k))
        for n, k in (("1f1b", 2), ("zb-v", 4))
    ]
    assert compare(runs).columns()["stages per rank"].tolist() == [1, 2]
    assert "stages per rank" in str(compare(runs)) and "stages per rank" not in str(compare(runs[:1]))
