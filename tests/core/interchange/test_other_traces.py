"""Other tools' traces as a Trace: ranks, steps, waiting, and files made to do harm.

(tests/runtime/test_torch_contract.py reads a real trace of torch.profiler.)
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pp

ONE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
TRACE = pp.simulate(ONE, pp.Costs.uniform(2))


def events(trace=TRACE, *, prefix="PP:", offset=0.0, rank=None, at="pid", noise=True):
    """What a profiler would write: the cells (of one rank), with much else among them."""
    columns = (trace.rank, trace.start * 1e6 + offset, trace.durations * 1e6)
    rows = zip(trace.schedule.table.texts(), *(column.tolist() for column in columns), strict=True)
    found = [
        {"ph": "X", "cat": "user_annotation", "name": prefix + name, "pid": 7, "tid": 9, "ts": ts, "dur": dur}
        | {at: where}
        for name, where, ts, dur in rows
        if rank in (None, where)
    ]
    if noise:
        found += [
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 7, "tid": 1, "ts": 3.5, "dur": 1e9},
            {
                "ph": "X",
                "cat": "user_annotation",
                "name": "PP:0SEND_F0",
                "pid": 7,
                "tid": 1,
                "ts": 1,
                "dur": 1,
            },
            {"ph": "X", "name": "PP:1UNSHARD", "pid": 7, "tid": 1, "ts": 1, "dur": 1},
            {"ph": "B", "name": "0F0", "pid": 3, "tid": 3, "ts": 1},
            {"ph": "i", "name": "PP:0F0", "pid": 3, "tid": 3, "ts": 1},
            {"ph": "X", "name": "1F0junk", "pid": 3, "tid": 3, "ts": "later"},
            {"ph": "X", "name": "x", "args": {"name": "0F0", "ph": "X"}, "pid": 3, "ts": 1, "dur": 1},
            {"ph": "M", "name": "process_name", "args": {"name": '{"name": "0F1"'}},
        ]
    random.Random(0).shuffle(found)
    return found


def write(path, found, **keys):
    text = json.dumps(keys | {"traceEvents": found})
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", list(pp.SCHEDULES))
def test_the_actions_of_any_schedule_are_found_again(name, tmp_path):
    one = pp.schedule(name, num_ranks=4, num_microbatches=8)
    if set(one.table.kind.tolist()) & {list(pp.Kind).index(pp.Kind.U)} or one.slices > 1:
        return
    trace = pp.simulate(one, pp.Costs.uniform(one.num_model_stages, 1, 2, 3))
    for prefix in ("", "PP:"):
        path = write(tmp_path / "t.json.gz", events(trace, prefix=prefix, offset=1e12))
        found = pp.read_trace(path, placement=one.placement, name=name)
        assert found.schedule == one and found.clock == "wall" and found.notes == ()
        assert found.start == pytest.approx(trace.start, abs=1e-9)
        assert found.report().bubble_fraction == pytest.approx(trace.report().bubble_fraction)
    if one.placement.chains == 1:
        assert pp.read_trace(path, name=name).schedule == one


def test_ranks_are_processes_or_the_threads_of_one(tmp_path):
    want = pp.read_trace(write(tmp_path / "a.json", events(at="pid")))
    assert pp.read_trace(write(tmp_path / "b.json", events(at="tid"))) == want
    found = events(at="pid")
    for event in found:
        event["pid"] = {0: "worker 77", 1: 4}.get(event.get("pid"), 3)
    assert pp.read_trace(write(tmp_path / "c.json", found)) == want


def test_an_array_of_events_and_torchs_own_picture_of_a_table_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(events())[:-1])
    assert pp.read_trace(tmp_path / "a.json").schedule.orders == ONE.orders


def test_ranks_of_several_files_are_those_that_the_files_say(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for rank, path in zip((1, 0), paths, strict=True):
        write(
            path,
            events(rank=rank, at="x"),
            distributedInfo={"backend": "gloo", "rank": rank, "world_size": 2},
        )
    assert (
        pp.read_trace(paths)
        == pp.read_trace(paths[::-1])
        == pp.read_trace(write(tmp_path / "c.json", events()))
    )
    for rank, path in zip((0, 1), paths, strict=True):
        write(path, events(rank=rank, at="x"))
    assert pp.read_trace(paths).start == pytest.approx(TRACE.start)


def test_files_that_count_from_different_moments_are_brought_together(tmp_path):
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    base = 1_767_225_600_000_000_000
    for rank, path in enumerate(paths):
        write(
            path,
            events(rank=rank, offset=-2e6 * rank, at="x"),
            baseTimeNanoseconds=base + 2_000_000_000 * rank,
        )
    assert pp.read_trace(paths).start == pytest.approx(TRACE.start, abs=1e-9)


def test_one_of_several_steps_is_chosen(tmp_path):
    slow = pp.simulate(ONE, pp.Costs.uniform(2, 3, 1, 1))
    path = write(tmp_path / "t.json", events() + events(slow, offset=1e9) + events(offset=2e9))
    assert pp.read_trace(path).makespan == pytest.approx(TRACE.makespan)
    assert (
        pp.read_trace(path, step=1).makespan
        == pp.read_trace(path, step=-2).makespan
        == pytest.approx(slow.makespan)
    )
    assert pp.read_trace(path, step=1).notes == ("step 2 of 3 that were recorded",)
    for step in (3, -4):
        with pytest.raises(pp.PipelabError, match=rf"step is {step}; there are 3 steps"):
            pp.read_trace(path, step=step)


def test_waiting_inside_of_an_event_is_idle_time(tmp_path):
    """As torch writes it: an action's event begins when the rank comes to it, and waits inside for its input."""
    start = TRACE.start.copy()
    for rank in (0, 1):
        rows = np.flatnonzero(TRACE.rank == rank)
        start[rows[1:]] = TRACE.end[rows[:-1]]
        start[rows[0]] = 0
    waiting = pp.Trace.from_times(ONE, start, TRACE.end, clock="wall")
    assert waiting.report().bubble_fraction < TRACE.report().bubble_fraction
    found = pp.read_trace(write(tmp_path / "t.json", events(waiting)))
    assert found.start == pytest.approx(TRACE.start) and found.end == pytest.approx(TRACE.end)
    assert found.notes == (
        "3 actions waited for input inside of the recorded event, 4 s in all, which counts as idle here",
    )


def test_clocks_that_differ_are_noted(tmp_path):
    late = [event | {"ts": event["ts"] - 3e6 * (event["pid"] == 1)} for event in events(noise=False)]
    notes = pp.read_trace(write(tmp_path / "t.json", late)).notes
    assert any(
        "ended before what they need had ended: the clocks of the ranks differ" in note for note in notes
    )


def test_times_of_a_device_are_taken_if_they_are_there_for_every_action(tmp_path):
    slow = pp.simulate(ONE, pp.Costs.uniform(2, 3, 1, 1))
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    for missing in (0, 1):
        for rank, path in enumerate(paths):
            on_device = [
                e | {"cat": "gpu_user_annotation", "tid": 20}
                for e in events(slow, rank=rank, at="x", noise=False)
            ]
            on_device += [e | {"tid": 24} for e in on_device[:1]]  # another stream
            host = events(rank=rank, at="x")
            write(path, host + on_device[missing:], distributedInfo={"rank": rank})
        found = pp.read_trace(paths)
        if missing:
            assert found.makespan == pytest.approx(TRACE.makespan)
            assert found.notes[0].startswith("0.json does not say of every action when it ran on the device")
        else:
            assert found.makespan == pytest.approx(slow.makespan) and found.notes == ()


def test_ends_that_were_rounded_up_are_no_overlap(tmp_path):
    longer = [event | {"dur": event["dur"] + 0.4} for event in events(noise=False)]
    found = pp.read_trace(write(tmp_path / "t.json", longer))
    assert found.start == pytest.approx(TRACE.start, abs=1e-6) and found.report().bubble_time[0] > 0
    for rank in (0, 1):
        rows = found.rank == rank
        assert (found.end[rows][:-1] <= found.start[rows][1:]).all()


def changed(**keys):
    """The events with one of them (1F2) changed; None leaves a key out."""
    found = events(noise=False)
    (event,) = (event for event in found if event["name"] == "PP:1F2")
    event.update(keys)
    for key in [key for key in keys if keys[key] is None]:
        del event[key]
    return found


REFUSED = [
    (changed(dur=-1), "t.json: 1F2: dur is -1.0; it must not be negative"),
    (changed(dur=None), "t.json: 1F2: dur is missing"),
    (changed(ts="5"), "t.json: 1F2: ts must be a finite number, not text"),
    (changed(ts=float("nan")), "t.json.*NaN is no number"),
    (changed(ts=float("inf")), "t.json.*Infinity is no number"),
    (changed(ts=1e300), "t.json: 1F2: ts is 1e.300; it must be microseconds"),
    (changed(ts=10**400), "t.json: 1F2: ts must be an integer|it must be microseconds"),
    (changed(ts=True), "t.json: 1F2: ts must be a finite number, not true or false"),
    (changed(pid=[1]), "t.json: 1F2: pid must be text, not a list"),
    (changed(tid="x" * 300), "t.json: 1F2: tid has 300 characters"),
    (changed(name="PP:1F9"), r"form no schedule.*\n.*F. is missing"),
    (changed(name="PP:1F1"), r"1F1 is there 2 times, but 1.. 1 time. Record whole steps"),
    (changed(name="aten::mm"), "form no schedule.*\n.*1F2 is missing"),
    (
        changed(dur=1e7),
        r"t.json, rank 1: 1B. begins [0-9,.]+ us before 1F2 ends. A rank runs one action after",
    ),
    (changed(pid=0), "1F2"),
    (
        events(rank=1),
        "form no schedule. Record whole steps of all ranks of one pipeline.\n.*stage 0 has no action",
    ),
    (
        [*events(rank=0), {"name": "PP:0SEND_F1", "ph": "X"}],
        "Stage 0 sends to stage 1, which nothing that was recorded",
    ),
    (events() + events(offset=1e9, rank=0), "t.json, rank 0 has 2 steps, but t.json, rank 1 has 1"),
    (events() + events(offset=1e9)[:9], "time"),
    (events() + events(offset=1.0), "ends|twice"),
    ([], "t.json holds no complete event whose name is an action, such as 2F0 or PP:2F0"),
    (
        [{"name": "Forward 0", "ph": "X"}],
        r"but events such as 'Forward 0', which name no stage.*Schedule.to_csv\(\)",
    ),
]


@pytest.mark.parametrize(("found", "message"), REFUSED)
def test_what_is_wrong_is_refused_by_name(found, message, tmp_path):
    path = write(tmp_path / "t.json", found)
    with pytest.raises(pp.PipelabError, match=message):
        pp.read_trace(path)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "t.json").write_text('[{"name": "0F0", "ph": "X", "ts": 1, "ts": 2, "dur": 1}]')
    with pytest.raises(pp.PipelabError, match=r"t.json.*a key is there twice"):
        pp.read_trace(tmp_path / "t.json")


def test_files_that_are_not_of_one_run_are_refused(tmp_path):
    def files(*ranks):
        paths = []
        for k, rank in enumerate(ranks):
            found = events(rank=rank % 2, at="x")
            paths.append(
                write(tmp_path / f"{k}.json", found, distributedInfo={"rank": rank, "world_size": 16})
            )
        return paths

    assert pp.read_trace(files(4, 11)) == pp.read_trace(files(0, 1))  # of a job of several pipelines
    with pytest.raises(pp.PipelabError, match=r"Several of the files are of rank 0. Give one of each rank"):
        pp.read_trace(files(0, 0))
    with pytest.raises(pp.PipelabError, match=r"0.json: distributedInfo.rank is -1"):
        pp.read_trace(files(-1, 0))
    with pytest.raises(pp.PipelabError, match="paths is empty"):
        pp.read_trace([])
    with pytest.raises(FileNotFoundError):
        pp.read_trace(tmp_path / "none.json")


def test_the_actions_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelab.core.interchange.annotations.MAX_ACTIONS", 15)
    with pytest.raises(pp.PipelabError, match=r"t.json has more than 15 actions. Profile fewer steps"):
        pp.read_trace(write(tmp_path / "t.json", events()))


class TestFilesMadeToDoHarm:
    """Each is read in the memory of a few blocks."""

    def peak_of(self, read, message):
        tracemalloc.start()
        began = time.perf_counter()
        with pytest.raises(pp.PipelabError, match=message):
            read()
        took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak, took

    def test_a_bomb_stops_at_the_limit(self, tmp_path):
        path = tmp_path / "t.json.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(b'{"traceEvents": [')
            for _ in range(60):
                file.write(b" " * 1_000_000)
        assert path.stat().st_size < 300_000
        peak, took = self.peak_of(
            lambda: pp.read_trace(path, max_bytes=50_000_000), "more than 50,000,000 bytes after"
        )
        assert peak < 20e6 and took < 5

    @pytest.mark.parametrize(
        "filler",
        [
            b'{"name": "aten::mm", "ph": "X", "args": {"Input Dims": [[1, 2], []], "x": "{[,"}},\n',
            b'"\\\\\\"{",',
            b"[[[[",
            b'"name": "1F1"',
            b"1",
            b"\\",
        ],
    )
    def test_much_of_anything_is_passed_by(self, filler, tmp_path):
        path = tmp_path / "t.json"
        with open(path, "wb") as file:
            file.write(b'{"traceEvents": [{"name": "0F0", "ph": "X", "ts": 1, "dur": 1},')
            for _ in range(30):
                file.write(filler * (1_000_000 // len(filler)))
        peak, took = self.peak_of(lambda: pp.read_trace(path), "t.json")
        assert peak < 60e6 and took < 10

    def test_a_large_whole_trace_is_read_in_the_memory_of_what_is_kept(self, tmp_path):
        one = pp.schedule("gpipe", num_ranks=4, num_microbatches=1000)
        trace = pp.simulate(one, pp.Costs.uniform(4))
        path, noise = (
            tmp_path / "t.json",
            b'{"name": "aten::mm", "ph": "X", "args": {"x": [1, 2]}},\n' * 10_000,
        )
        with open(path, "wb") as file:
            file.write(b'{"traceEvents": [\n')
            for event in events(trace, noise=False):
                file.write(json.dumps(event).encode() + b",\n")
                if event["name"].endswith("00"):
                    file.write(noise)
            file.write(b"{}]}")
        assert path.stat().st_size > 40_000_000
        tracemalloc.start()
        found = pp.read_trace(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.schedule.orders == one.orders and peak < 40e6


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_file_raises_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "t.json"
    raw = bytearray(write(path, events(), distributedInfo={"rank": 0}, baseTimeNanoseconds=3).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    with contextlib.suppress(pp.PipelabError):
        pp.read_trace(path)
