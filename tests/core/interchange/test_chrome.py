"""Our own Chrome trace: what it shows, and that it is read back exactly."""

from __future__ import annotations

import gzip
import itertools
import json
import re

import pytest

import pipelab as pp

ONE = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
HELD = pp.StageBytes((1.0,) * 4, (2.5,) * 4, (3.0,) * 4)
COSTS = pp.Costs((1 / 3,) * 4, (0.2,) * 4, (0.1,) * 4, bytes=HELD, links=pp.Links(1e-5, 1e9))
TRACE = pp.simulate(ONE, COSTS)


def events_of(trace, tmp_path):
    path = tmp_path / "trace.json"
    trace.save_chrome(path, overwrite=True)
    found = json.loads(path.read_text())
    by_phase = {phase: [e for e in found["traceEvents"] if e["ph"] == phase] for phase in "MXsfC"}
    assert sum(map(len, by_phase.values())) == len(found["traceEvents"])
    return by_phase


@pytest.mark.parametrize("seed", range(40))
def test_any_trace_is_read_back_equal(seed, random_schedule, random_costs, tmp_path):
    one = random_schedule(seed)
    trace = pp.simulate(one, random_costs(seed, one))
    trace.save_chrome(tmp_path / "t.json")
    assert pp.read_trace(tmp_path / "t.json") == trace


@pytest.mark.parametrize("name", list(pp.SCHEDULES))
def test_every_schedule_is_read_back_equal_also_compressed(name, tmp_path):
    one = pp.schedule(name, num_ranks=2, num_microbatches=4)
    trace = pp.simulate(one, pp.Costs.uniform(one.num_model_stages, 1 / 3))
    trace.save_chrome(tmp_path / "t.json")
    (tmp_path / "t.json.gz").write_bytes(gzip.compress((tmp_path / "t.json").read_bytes()))
    assert pp.read_trace(tmp_path / "t.json") == pp.read_trace(tmp_path / "t.json.gz") == trace


def test_other_lanes_are_threads_and_are_read_back(tmp_path):
    one = pp.schedule("1f1b", num_ranks=2, num_microbatches=3)
    costs = pp.Costs((1.0,) * 2, (1.0,) * 2, (1.0,) * 2, bytes=pp.StageBytes((1,) * 2, (1,) * 2, (1,) * 2))
    feed = pp.Feed(load=0.5, prepare=1.0, workers=2)
    trace = pp.simulate(one, costs, feed=feed)
    assert len(trace.lanes) > 1
    found = events_of(trace, tmp_path)
    assert pp.read_trace(tmp_path / "trace.json") == trace
    threads = {e["args"]["name"] for e in found["M"] if e["name"] == "thread_name"}
    assert threads == set(trace.lanes)
    assert sum(re.fullmatch(r"prepare:[01] 0F[012]", e["name"]) is not None for e in found["X"]) == 3


def test_each_cell_is_a_slice_of_its_true_duration(tmp_path):
    found = events_of(TRACE, tmp_path)
    assert [e["name"] for e in found["X"]] == ONE.table.texts()
    assert [e["pid"] for e in found["X"]] == TRACE.rank.tolist() and {e["tid"] for e in found["X"]} == {0}
    assert [e["ts"] for e in found["X"]] == pytest.approx((TRACE.start * 1e6).tolist(), abs=1e-3)
    assert [e["dur"] for e in found["X"]] == pytest.approx((TRACE.durations * 1e6).tolist(), abs=2e-3)
    names = {e["pid"]: e["args"]["name"] for e in found["M"] if e["name"] == "process_name"}
    assert names == {0: "rank 0", 1: "rank 1"}


def test_slices_of_one_rank_never_overlap(random_schedule, random_costs, tmp_path):
    for seed in range(10):
        one = random_schedule(seed)
        slices = events_of(pp.simulate(one, random_costs(seed, one)), tmp_path)["X"]
        for _, group in itertools.groupby(slices, key=lambda e: (e["pid"], e["tid"])):
            for a, b in itertools.pairwise(group):
                assert round(1000 * (a["ts"] + a["dur"])) <= round(1000 * b["ts"])


def test_arrows_follow_the_values_to_other_ranks(tmp_path):
    """Each begins and ends strictly within its actions, where viewers bind it to them."""
    found = events_of(TRACE, tmp_path)
    starts, ends = ({e["id"]: e for e in found[phase]} for phase in "sf")
    assert (
        starts.keys() == ends.keys() and len(starts) == 2 * 3 * 4 and all(e["bp"] == "e" for e in found["f"])
    )

    def at(event):
        (name,) = (
            x["name"]
            for x in found["X"]
            if x["pid"] == event["pid"] and x["ts"] < event["ts"] < x["ts"] + x["dur"]
        )
        return pp.Action.parse(name)

    arrows = {(at(starts[k]), at(ends[k])): starts[k]["name"] for k in starts}
    wanted = {}
    for i, s in itertools.product(range(4), range(3)):
        wanted[pp.Action("F", s, i), pp.Action("F", s + 1, i)] = "forward"
        wanted[pp.Action("B", s + 1, i), pp.Action("B", s, i)] = "backward"
    assert arrows == wanted


def test_a_counter_shows_the_memory_of_each_rank(tmp_path):
    for trace, unit in ((TRACE, "bytes"), (pp.simulate(ONE, pp.Costs.uniform(4)), "micro-batches")):
        found = events_of(trace, tmp_path)["C"]
        for curve in trace.memory():
            values = [e["args"][unit] for e in found if e["pid"] == curve.rank]
            assert values == curve.value.tolist() and max(values) == curve.peak


def test_names_are_data(tmp_path):
    name = 'a "b" </script><img src=x> \\ \u2028 ü'
    trace = pp.Trace.from_times(ONE, TRACE.start, TRACE.end, clock="wall", devices=[name, "cpu"], label=name)
    found = events_of(trace, tmp_path)
    assert found["M"][0]["args"]["name"] == f"rank 0 ({name})"
    text = (tmp_path / "trace.json").read_text()
    assert "<" not in text and text.isascii() and pp.read_trace(tmp_path / "trace.json") == trace
    assert pp.read_trace(tmp_path / "trace.json", name="mine").label == "mine"


def test_nothing_is_overwritten_unasked(tmp_path):
    TRACE.save_chrome(tmp_path / "t.json")
    with pytest.raises(pp.PipelabError, match=r"exists. Pass overwrite=True"):
        TRACE.save_chrome(tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_a_trace_of_ours_is_given_alone(tmp_path):
    TRACE.save_chrome(tmp_path / "t.json")
    for arguments in ({"paths": [tmp_path / "t.json"] * 2}, {"paths": tmp_path / "t.json", "step": 1}):
        with pytest.raises(pp.PipelabError, match=r"t.json is a trace of pipelab: one step of all ranks"):
            pp.read_trace(**arguments)


def test_a_changed_file_of_ours_is_refused_by_field(tmp_path):
    path = tmp_path / "t.json"
    TRACE.save_chrome(path)
    text = path.read_text()
    for old, new, message in (
        ('"clock": "simulated"', '"clock": "sundial"', "clock is 'sundial'"),
        ('"version": 1', '"version": 7', "t.json is a trace of version 7"),
        ('"pipelab": "trace"', '"pipelab": "split"', "split.cuts is missing"),
        ('"pipelab": "trace"', '"pipelab": "traces"', "did you mean 'trace'"),
        ('"label"', '"lable"', "trace.label is missing"),
        ('"start": [0.0', '"start": [NaN', "NaN|not finite"),
        ("0F0 0F1", "0F1 0F1", "0F0 is missing"),
        ("3F0 3B0", "3B0 3F0", "rank 1 wants to run 3B0 but 3F0 never comes before it"),
    ):
        assert old in text, old
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(pp.PipelabError, match=message):
            pp.read_trace(path)
