"""One load for every value; files from strangers are refused by field, quickly and in little memory."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pp
from pipelab.core.interchange import columns, json_files
from pipelab.core.interchange.json_files import load
from pipelab.core.profile import Affine

ONE = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
HELD = pp.StageBytes((1.0,) * 4, (2.5,) * 4, (3.0,) * 4)
COSTS = pp.Costs(
    (1 / 3,) * 4, (0.2,) * 4, (0.1,) * 4, bytes=HELD, links=pp.Links(1e-5, 1e9), microbatch_size=2
)
LINE = (Affine(0.1, 0.2), Affine(0.0, 1e-9))
VALUES = {
    "schedule": ONE,
    "split": pp.Split(["b", "a <b>", "ü"]),
    "costs": COSTS,
    "plan": pp.Plan(pp.Split(["a", "b", "c"]), ONE),
    "profile": pp.Profile(("a", "b"), LINE, LINE, LINE, (1, 2), LINE, LINE, 8, (4, 8), "cpu"),
    "trace": pp.simulate(ONE, COSTS).with_label('a "name" \\ <b>'),
}


def equal(a, b):
    return a == b or (a.to_dict() == b.to_dict())


@pytest.mark.parametrize("kind", VALUES)
def test_a_loaded_value_equals_the_saved_one(kind, tmp_path):
    path = tmp_path / "value.json"
    VALUES[kind].save(path)
    assert json.loads(path.read_text())["pipelab"] == kind
    found = load(path)
    assert type(found) is type(VALUES[kind]) and equal(found, VALUES[kind])


@pytest.mark.parametrize("kind", VALUES)
def test_nothing_is_overwritten_unasked(kind, tmp_path):
    path = tmp_path / "value.json"
    path.write_text("mine")
    with pytest.raises(pp.PipelabError, match=r"exists. Pass overwrite=True"):
        VALUES[kind].save(path)
    assert path.read_text() == "mine"
    VALUES[kind].save(path, overwrite=True)
    assert equal(load(path), VALUES[kind])


@pytest.mark.parametrize("name", list(pp.SCHEDULES))
def test_every_schedule_and_its_trace_are_loaded_as_saved(name, tmp_path):
    one = pp.schedule(name, num_ranks=2, num_microbatches=4)
    trace = pp.simulate(one, pp.Costs.uniform(one.num_model_stages, forward=1 / 3))
    for value, path in ((one, tmp_path / "s.json"), (trace, tmp_path / "t.json")):
        value.save(path)
        assert load(path) == value


def test_a_plan_written_before_there_were_other_kinds_is_read(tmp_path):
    text = """{"pipelab": "plan", "version": 1, "split": {"cuts": ["b"]},
        "schedule": {"name": "1f1b", "placement": {"ranks": [0, 1], "chains": 1, "tied": [], "edges": null},
        "orders": ["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"]}, "devices": "auto",
        "links": {"latency": 1e-5, "bandwidth": null}}"""
    (tmp_path / "plan.json").write_text(text)
    found = load(tmp_path / "plan.json")
    assert found == pp.Plan(
        pp.Split(["b"]), pp.schedule("1f1b", num_ranks=2, num_microbatches=2), links=pp.Links(1e-5)
    )


def test_a_large_trace_is_read_back_bit_for_bit(tmp_path):
    one = pp.schedule("1f1b", num_ranks=64, num_microbatches=512)
    start = pp.simulate(one, pp.Costs.uniform(64, 1 / 3, 1 / 7, 0.1)).start
    rng = np.random.default_rng(0)
    end = start + rng.random(len(start)) * 10.0 ** rng.integers(-300, 3, len(start))
    following = np.append(start[1:], np.inf)
    end = np.minimum(end, np.where(following >= start, following, np.inf))  # a rank does one thing at a time
    trace = pp.Trace.from_times(one, start, end, clock="wall")
    trace.save(tmp_path / "trace.json")
    found = load(tmp_path / "trace.json")
    assert found == trace and found.start.tobytes() == trace.start.tobytes()


def test_a_long_trace_passes_the_limit_of_the_other_kinds(tmp_path):
    one = pp.schedule("gpipe", num_ranks=64, num_microbatches=1400)
    times = np.arange(one.table.num_cells) / 3 + 1e-9
    trace = pp.Trace.from_times(one, times, times, clock="wall")
    trace.save(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size > 5_000_000
    assert load(tmp_path / "trace.json") == trace
    with pytest.raises(
        pp.PipelabError, match=r"trace.json has more than 6,000 bytes, the limit \(max_bytes\)"
    ):
        load(tmp_path / "trace.json", max_bytes=6000)


def test_costs_of_very_many_stages_are_read_back(tmp_path):
    costs = pp.Costs(*(tuple((np.arange(3000) / 7).tolist()) for _ in range(3)))
    costs.save(tmp_path / "costs.json")
    assert load(tmp_path / "costs.json") == costs


def test_a_trace_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_TRACE_BYTES", 100)
    with pytest.raises(pp.PipelabError, match=r"t.json would have .* bytes; at most 100 can be read back"):
        VALUES["trace"].save(tmp_path / "t.json")
    monkeypatch.undo()
    monkeypatch.setattr(json_files, "MAX_BYTES", 100)
    with pytest.raises(pp.PipelabError, match="without its columns of numbers would have"):
        VALUES["trace"].save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


TRACE = VALUES["trace"].to_dict()
CELLS = ONE.table.num_cells
WRONG = [
    ("[]", "x.json must be an object with the keys pipelab"),
    ("{}", "x.json.pipelab is missing"),
    ('{"pipelab": "shedule", "version": 1}', "did you mean 'schedule'"),
    (
        '{"pipelab": {}, "traceEvents": []}',
        r"x.json is a trace for Perfetto and Chrome. Read it with read_trace\(\)",
    ),
    ('{"pipelab": "split", "cuts": []}', "x.json is a split of version None"),
    ('{"pipelab": ["trace"], "version": 1}', "x.json: pipelab must be text"),
    (
        '{"pipelab": "split", "version": 2, "cuts": []}',
        "is a split of version 2; this pipelab reads version 1",
    ),
    ('{"pipelab": "split", "version": true, "cuts": []}', "is a split of version True"),
    ('{"pipelab": "split", "version": 1, "cuts": [], "x": 0}', "split has the unknown key 'x'"),
    ('{"pipelab": "split", "version": 1, "cuts": [], "cuts": []}', "has the key 'cuts' twice"),
    ('{"pipelab": "costs", "version": 1, "forward": [NaN]}', "is not finite"),
    (
        '{"pipelab": "split", "version": 1, "cuts": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "nested 100,001 levels",
    ),
    (
        '{"pipelab": "schedule", "version": 1, "name": "mine", "placement": {"ranks": [0, 1]}, '
        '"orders": ["0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"]}',
        "rank 0: 0B0 waits for 1B0 of rank 1, which stands behind 1F1",
    ),
    ({"start": TRACE["start"][:-1]}, f"has shape \\({CELLS},\\), not \\({CELLS - 1},\\)"),
    ({"start": [0] * CELLS, "end": [-1] * CELLS}, "Row 0 starts at 0.0 and ends at -1.0"),
    ({"end": ["1", *TRACE["end"][1:]]}, r"trace.end\[0\] must be a finite number, not text"),
    ({"start": [0.5] * 5_000_000}, "has 5,000,.* numbers in long arrays"),
    ({"others": {**TRACE["others"], "rank": [0.5]}}, "trace.others.rank must hold integers only"),
    ({"others": {**TRACE["others"], "rank": [7]}}, "trace.others.rank holds a number out of range"),
    ({"label": list(range(3000))}, "trace.label must be text, not a list"),
    ({"clock": "sundial"}, "clock is 'sundial'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
@pytest.mark.timeout(20)
def test_what_a_stranger_made_up_is_refused_by_field_quickly_and_in_little_memory(change, message, tmp_path):
    data = {"pipelab": "trace", "version": 1} | TRACE
    text = change if isinstance(change, str) else json.dumps(data | change)
    (tmp_path / "x.json").write_text(text)
    del text
    began = time.perf_counter()
    with pytest.raises(pp.PipelabError, match=message):
        load(tmp_path / "x.json")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "filler",
    [
        b"0," * 31_999_000 + b"0]",
        b"[" * 63_000_000,
        b'"' + b"\\" * 63_000_000,
        b"1.5e3," * 10_000_000 + b"]",
        b"1e999,",
    ],
)
@pytest.mark.timeout(60)
def test_the_longest_trace_takes_little_memory_and_time(filler, tmp_path):
    filler = filler if len(filler) > 100 else filler * 5_000_000 + b"1]"
    (tmp_path / "t.json").write_bytes(b'{"pipelab": "trace", "version": 1, "start": [' + filler + b"}")
    del filler
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(pp.PipelabError):
        load(tmp_path / "t.json")
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6 and took < 2


def test_a_long_file_of_another_kind_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "s.json", "wb") as file:
        file.write(b'{"pipelab": "split"')
        file.truncate(10**12)
    with pytest.raises(
        pp.PipelabError, match=r"s.json has more than 5,000,000 bytes, the limit for all but traces"
    ):
        load(tmp_path / "s.json")


class TestColumns:
    def test_long_arrays_become_columns_and_the_rest_stays(self):
        whole, part = list(range(-1000, 1000)), [x / 7 for x in range(1000)]
        found = columns.parse(json.dumps({"a": whole, "b": {"c": [part, 1]}, "d": "[1]"}).encode(), what="x")
        assert found["a"].dtype == np.int64 and found["a"].tolist() == whole
        assert found["b"]["c"][0].tolist() == part and found["b"]["c"][1] == 1 and found["d"] == "[1]"
        assert columns.parse(json.dumps(whole, indent=1).encode(), what="x").tolist() == whole

    def test_pieces_join(self, monkeypatch):
        monkeypatch.setattr(columns, "_AT_ONCE", 7)
        part = [x * 10.0**x for x in range(-300, 300)]
        assert columns.parse(json.dumps({"a": part}).encode(), what="x")["a"].tolist() == part

    @pytest.mark.parametrize(
        "wrong", ["01", "1.", ".5", "+1", "1e", "--1", "", "1 2", "1e99999", "9" * 25, "0x1"]
    )
    def test_what_is_no_json_number_is_refused(self, wrong):
        text = '{"a": [' + "1, " * 1000 + wrong + ", 1]}"
        with pytest.raises(pp.PipelabError):
            columns.parse(text.encode(), what="x")

    def test_infinity_is_refused_with_its_place(self):
        with pytest.raises(pp.PipelabError, match=r"x: number 1,000 of a long list is not finite"):
            columns.parse(('{"a": [' + "1, " * 1000 + "1e999, 1]}").encode(), what="x")

    def test_a_long_array_inside_a_text_is_refused(self):
        text = json.dumps({"a": "[" + "1, " * 1000 + "1]"})
        with pytest.raises(pp.PipelabError):
            columns.parse(text.encode(), what="x")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(0, 3))
    def test_floats_come_back_bit_for_bit(self, numbers, indent):
        text = json.dumps({"a": numbers * 700}, indent=indent or None)
        found = columns.parse(text.encode(), what="x")["a"]
        assert np.asarray(found).tobytes() == np.array(numbers * 700).tobytes()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_no_change_of_a_file_raises_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.json"
    VALUES[data.draw(st.sampled_from(list(VALUES)))].save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    with contextlib.suppress(pp.PipelabError):
        load(path)
