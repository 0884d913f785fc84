"""The columns say what the scene says, and the words about them what Python says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.actions import KINDS
from pipelab.core.costs import StageBytes
from pipelab.core.critical_path import name_of
from pipelab.plots.scene import scene
from pipelab.widgets.timeline_columns import overruns, pack, plain


def simulated(name="1f1b", ranks=4, microbatches=8, stages_per_rank=None, **options):
    more = {} if stages_per_rank is None else {"stages_per_rank": stages_per_rank}
    schedule = pp.schedule(name, num_ranks=ranks, num_microbatches=microbatches, **more)
    return pp.simulate(schedule, pp.Costs.uniform(schedule.num_model_stages, **options))


def with_bytes(ranks=4, microbatches=8):
    held = StageBytes((2**30,) * ranks, (2**28,) * ranks, (0,) * ranks)
    schedule = pp.schedule("1f1b", num_ranks=ranks, num_microbatches=microbatches)
    return pp.simulate(schedule, pp.Costs(*([(1.0,) * ranks] * 3), bytes=held))


def with_lanes():
    schedule = pp.schedule("1f1b", num_ranks=3, num_microbatches=4)
    links = pp.Links(latency=0.5, serial=True)
    costs = pp.Costs(*([(1.0,) * 3] * 3), links=links, update=(0.5,) * 3)
    return pp.simulate(schedule, costs, feed=pp.Feed(load=0.5, prepare=0.25))


def unpacked(buffer, meta):
    return {
        name: np.frombuffer(buffer, dtype=f"<{kind}", offset=offset, count=length)
        for name, (kind, offset, length) in meta["columns"].items()
    }


TRACES = {
    "plain": simulated,
    "interleaved": lambda: simulated("interleaved-1f1b", stages_per_rank=2),
    "overlapped": lambda: simulated("dualpipev", microbatches=12),
    "zero bubble": lambda: simulated("zb-h1"),
    "one rank": lambda: simulated(ranks=1, microbatches=1),
    "fewer micro-batches than ranks": lambda: simulated(ranks=4, microbatches=2),
    "lanes": with_lanes,
}


@pytest.fixture(params=TRACES, ids=str)
def trace(request):
    return TRACES[request.param]()


def test_columns_are_those_of_the_scene(trace):
    shown, (buffer, meta) = scene([trace]), pack(trace)
    columns = unpacked(buffer, meta)
    order = np.lexsort((shown.start, shown.row))
    for name in ("start", "end", "row", "of", "number", "stage", "kind", "paint", "later"):
        np.testing.assert_array_equal(columns[name], getattr(shown, name)[order], err_msg=name)
    for name in ("top", "bottom"):
        np.testing.assert_allclose(columns[name], getattr(shown, name)[order], atol=1e-7, err_msg=name)
    assert meta["count"] == len(shown.row) and meta["rows"] == list(shown.row_labels)


def test_boxes_are_sorted_by_row_and_by_start(trace):
    columns = unpacked(*pack(trace))
    for (row, start), (next_row, next_start) in pairwise(zip(columns["row"], columns["start"], strict=True)):
        assert row < next_row or (row == next_row and start <= next_start)


def test_every_column_begins_where_its_type_may_begin(trace):
    buffer, meta = pack(trace, memory=True, predicted=trace)
    for kind, offset, length in meta["columns"].values():
        assert offset % int(kind[1]) == 0 and offset + int(kind[1]) * length <= len(buffer)


def test_what_goes_to_the_page_is_plain_json(trace):
    meta = pack(trace, memory=True, predicted=trace)[1]
    assert json.loads(json.dumps(meta, allow_nan=False)) == meta


def test_each_row_knows_its_rank_and_whether_it_is_the_ranks_own(trace):
    buffer, meta = pack(trace)
    columns = unpacked(buffer, meta)
    np.testing.assert_array_equal(np.array(meta["row_rank"])[columns["row"]], trace.rank[columns["of"]])
    own = [rank for rank, is_own in zip(meta["row_rank"], meta["own"], strict=True) if is_own]
    assert own == list(range(trace.num_ranks))
    for row, is_own in enumerate(meta["own"]):
        assert (meta["rows"][row] == f"rank {meta['row_rank'][row]}") == bool(is_own)


def test_names_in_the_page_are_those_of_critical_paths(trace):
    buffer, meta = pack(trace)
    columns = unpacked(buffer, meta)
    found: dict[int, list[str]] = {}  # an overlap is a row of several boxes
    for box, row in enumerate(columns["of"].tolist()):
        stage, kind, number = (
            columns["stage"][box],
            meta["kinds"][columns["kind"][box]],
            columns["number"][box],
        )
        form = meta["lanes"][columns["lane"][box]]
        name = form.replace("{action}", f"{stage}{kind}{number}").replace("{number}", str(number))
        found.setdefault(row, []).append(name)
    table = trace.schedule.table
    for row in range(len(trace.start)):
        parts = table.action(row).parts if row < table.num_cells else ()
        assert found[row] == ([str(part) for part in parts] if len(parts) > 1 else [name_of(trace, row)])


def test_outlines_lie_in_the_rows_of_the_same_ranks():
    trace = with_lanes()
    predicted = pp.simulate(trace.schedule, pp.Costs.uniform(3))
    buffer, meta = pack(trace, predicted=predicted)
    columns = unpacked(buffer, meta)
    rank = np.array(meta["row_rank"])[columns["outline_row"]]
    np.testing.assert_array_equal(rank, predicted.rank)
    assert all(meta["own"][row] for row in columns["outline_row"])
    np.testing.assert_array_equal(
        columns["outline_end"], predicted.end
    )  # in the order of the rows of both traces
    assert meta["stop"] == max(trace.makespan, predicted.makespan)


def test_the_title_says_by_how_much_the_prediction_was_missed():
    predicted = pp.simulate(pp.schedule("1f1b", num_ranks=4, num_microbatches=8), pp.Costs.uniform(4))
    ran = pp.Trace.from_times(predicted.schedule, 2 * predicted.start, 2 * predicted.end, clock="wall")
    title = pack(ran, predicted=predicted)[1]["title"][0]
    assert "measured 66 s against predicted 33 s: +100.0 %, bubble_fraction 27.3 %" in title
    assert "against predicted 33 s: same" not in title and "against" not in pack(ran)[1]["title"][0]


def test_memory_is_that_of_the_curves():
    trace = with_bytes()
    buffer, meta = pack(trace, memory=True)
    columns = unpacked(buffer, meta)
    for curve, (a, b) in zip(trace.memory(), pairwise(columns["memory_first"].tolist()), strict=True):
        np.testing.assert_array_equal(columns["memory_time"][a:b], curve.time)
        np.testing.assert_array_equal(columns["memory_value"][a:b], curve.value)
    assert meta["memory"]["most"] == max(curve.peak for curve in trace.memory())
    assert "memory" not in pack(trace)[1] and "memory_time" not in pack(trace)[1]["columns"]


def test_the_first_action_over_the_limit_is_found():
    trace = with_bytes()
    found = overruns(trace, trace.memory(), 2.6 * 2**30)
    first = found[0]
    assert (first.rank, first.time) == (0, 2.0)
    assert trace.schedule.table.texts()[first.row] == "0F2"
    assert first.words == "Rank 0 holds more than 2.6 GiB with 0F2 at 2 s"
    assert [one.rank for one in found] == [0, 1]


def test_weights_alone_may_be_over_the_limit():
    trace = with_bytes()
    found = overruns(trace, trace.memory(), 2.0**30)
    assert [one.rank for one in found] == [0, 1, 2, 3]
    assert {one.row for one in found} == {-1} and found[0].words.endswith("from 0 s on")
    assert overruns(trace, trace.memory(), 2.0**40) == overruns(trace, trace.memory(), None) == []


def test_titles_are_as_given_not_as_matplotlib_needs_them():
    trace = simulated().with_label("cost in $ and \\$ <b>")
    assert pack(trace, remark="a $ remark")[1]["title"] == [
        "cost in $ and \\$ <b> (4 ranks, 8 micro-batches): 33 s, bubble_fraction 27.3 %",
        "simulated clock · bubble_fraction = idle / (ranks × makespan)",
        "a $ remark",
    ]
    assert plain(r"\$") == "$"


def test_a_hostile_name_of_a_lane_is_one_short_line():
    trace = with_lanes()
    lanes = tuple("x\n<script>" * 500 if lane == "copy" else lane for lane in trace.lanes)
    labels = pack(replace(trace, lanes=lanes, costs=None, feed=None))[1]["rows"]
    assert any("script" in label for label in labels)
    assert all(len(label) <= 20 and "\n" not in label for label in labels)


def test_the_legend_names_what_occurs():
    assert [name for name, _ in pack(simulated())[1]["legend"]] == ["F forward", "B, I backward"]
    assert "W weights" in [name for name, _ in pack(simulated("zb-h1"))[1]["legend"]]
    assert (
        pack(simulated("interleaved-1f1b", stages_per_rank=2))[1]["underlined"]
        and not pack(simulated())[1]["underlined"]
    )


def test_kinds_are_those_of_the_core():
    assert pack(simulated())[1]["kinds"] == [kind.value for kind in KINDS]
