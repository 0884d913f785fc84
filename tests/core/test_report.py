"""The four bubbles, on a run small enough to count by hand, and their laws."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.costs import Costs, StageBytes
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace

ONE = Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")


def report(**more):
    """Rank 0 computes from 0 to 2 and from 8 to 10, rank 1 from 3 to 4 and from 4 to 7."""
    return Trace.from_times(ONE, [0, 8, 3, 4], [2, 10, 4, 7], clock="wall", **more).report()


def test_each_bubble_by_its_definition():
    found = report()
    assert found.makespan == 10
    assert found.busy == (4, 4) and found.bubble_time == (6, 6)
    assert found.bubble_fraction == 12 / 20
    assert found.bubble_ratio == 12 / 8
    assert found.span_bubble == 1 - 8 / (2 * 10)
    assert found.peak_in_flight == (1, 1) and found.peak_bytes is None
    assert (found.clock, found.label, found.num_ranks) == ("wall", "one", 2)


def test_the_span_bubble_is_0_where_every_rank_works_without_a_break():
    found = simulate(schedule("forward-only", num_ranks=4, num_microbatches=8), Costs.uniform(4)).report()
    assert found.span_bubble == 0 and found.bubble_fraction == 3 / 11


def test_peaks_in_bytes_where_they_are_known():
    found = report(bytes=StageBytes((100, 200), (7, 9), (0, 0)))
    assert found.peak_bytes == (207, 409)


def test_a_run_without_any_work_has_no_bubble():
    found = simulate(ONE, Costs.uniform(2, 0, 0, 0)).report()
    assert (found.makespan, found.bubble_fraction, found.bubble_ratio, found.span_bubble) == (0, 0, 0, 0)


def test_the_print_has_a_line_a_rank_and_names_every_bubble():
    lines = str(report(bytes=StageBytes((100, 200), (7, 9), (0, 0)))).splitlines()
    assert lines[0].split("  ")[0] == "rank" and lines[0].endswith("peak memory")
    assert lines[1].split() == ["0", "4", "s", "6", "s", "60.0", "%", "1", "207", "B"]
    assert lines[3].split() == [
        "all",
        "8",
        "s",
        "12",
        "s",
        "60.0",
        "%",
        "at",
        "most",
        "1",
        "at",
        "most",
        "409",
        "B",
    ]
    assert lines[4] == (
        "makespan 10 s (wall clock), bubble fraction 60.0 %, bubble ratio 150.0 %, span bubble 60.0 %"
    )


def test_labels_are_escaped_in_html():
    html = report(label="<img onerror=x>")._repr_html_()
    assert "<img" not in html and "&lt;img" in html and "wall clock" in html


def test_frames_name_units():
    frame = report(bytes=StageBytes((1, 2), (3, 4), (5, 6))).to_frame()
    assert list(frame.columns) == [
        "rank",
        "busy [s]",
        "bubble time [s]",
        "bubble fraction",
        "peak in flight",
        "peak memory [bytes]",
        "sent [bytes]",
    ]
    assert frame["sent [bytes]"].tolist() == [5, 5] and frame["bubble time [s]"].tolist() == [6, 6]


def test_dicts_hold_every_number():
    data = json.loads(json.dumps(report().to_dict()))
    assert data["busy"] == [4, 4] and data["bubble_fraction"] == 0.6 and data["peak_bytes"] is None


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_laws_of_every_run(random_schedule, random_costs, seed, other):
    one = random_schedule(seed)
    found = simulate(one, random_costs(other, one)).report()
    for busy, idle in zip(found.busy, found.bubble_time, strict=True):
        assert busy + idle == pytest.approx(found.makespan) and busy >= 0
    assert 0 <= found.span_bubble <= found.bubble_fraction + 1e-12 <= 1 + 1e-12
    work = sum(found.busy)
    if work:
        assert found.bubble_ratio == pytest.approx(
            found.bubble_fraction * one.num_ranks * found.makespan / work
        )
