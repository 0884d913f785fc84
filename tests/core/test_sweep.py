"""The value: a table of points, some of them refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.sweep import QUANTITIES


@pytest.fixture(scope="module")
def found():
    def picky(num_ranks, num_microbatches):
        if num_microbatches < num_ranks:
            raise pp.PipelabError(f"picky needs m >= {num_ranks}, not {num_microbatches}.\nMore of it.")
        return pp.schedule("eager-1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches)

    schedules = {"gpipe": "gpipe", "1f1b": "1f1b", "picky": picky}
    return pp.sweep(schedules=schedules, num_ranks=4, num_microbatches=[2, 8], progress=False)


def test_the_columns_have_units_and_one_row_a_point(found):
    columns = found.columns()
    assert {len(column) for column in columns.values()} == {len(found)} == {6}
    assert columns["makespan [s]"].tolist()[:4] == [15, 33, 15, 33]
    assert columns["peak activations [micro-batches]"].tolist()[:4] == [2, 8, 2, 4]
    assert list(found.to_frame().columns) == list(columns)
    assert "peak memory [bytes]" not in columns and "latency [s]" not in columns


def test_every_quantity_is_a_column_and_agrees_with_the_report(found):
    point = found.where(schedule="1f1b", num_microbatches=8).points[0]
    for name in ("makespan", "bubble_fraction", "bubble_ratio", "span_bubble"):
        assert point.value(name) == getattr(point.trace().report(), name)
    assert {q.column for q in QUANTITIES.values()} - set(found.columns()) == {"peak memory [bytes]"}


def test_a_refused_point_has_a_reason_and_no_numbers(found):
    (refused,) = found.refused
    assert (refused.schedule, refused.num_microbatches) == ("picky", 2)
    assert refused.refusal == "picky needs m >= 4, not 2."
    assert math.isnan(refused.value("makespan"))
    row = found.to_frame().iloc[4]
    assert row["refused"] == refused.refusal and math.isnan(row["makespan [s]"])
    with pytest.raises(pp.PipelabError, match="picky needs m >= 4"):
        refused.trace()


def test_the_repr_of_a_point_names_its_numbers(found):
    assert repr(found.where(schedule="1f1b", num_microbatches=8).points[0]) == (
        "SweepPoint(schedule='1f1b', num_ranks=4, num_microbatches=8, stages_per_rank=1, latency=0.0, makespan=33, "
        "bubble_fraction=0.272727, bubble_ratio=0.375, span_bubble=0.272727, peak_in_flight=4, peak_activations=4)"
    )
    assert repr(found.refused[0]).endswith("refusal='picky needs m >= 4, not 2.')")


def test_print_shows_the_points_that_ran_and_says_why_the_others_did_not(found):
    text = str(found)
    assert text.splitlines()[0].split()[:2] == ["schedule", "ranks"]
    assert len([line for line in text.splitlines() if line.startswith("picky")]) == 1
    assert "Refused at p = 4, m = 2: picky needs m >= 4, not 2." in text
    assert "Simulated clock; F = I = W = 1 s for the stages of a rank together; free links." in text
    assert "idle / (ranks × makespan)" in text
    assert repr(found) == "<Sweep: 3 schedules, 6 points, 1 refused>"


def test_names_are_data_in_html():
    hostile = "<script>alert(1)</script>"
    one = pp.sweep(schedules={hostile: "gpipe"}, num_ranks=2, num_microbatches=2, progress=False)
    assert "<script>" not in one._repr_html_() and "&lt;script&gt;" in one._repr_html_()


def test_a_long_table_is_printed_with_its_middle_left_out():
    many = pp.sweep(schedules="gpipe", num_ranks=1, num_microbatches=range(1, 101), progress=False)
    lines = str(many).splitlines()
    assert sum(line.startswith("gpipe") for line in lines) == 60
    assert any(line.startswith("...") for line in lines)


def test_where_keeps_the_points_asked_for(found):
    some = found.where(schedule=("gpipe", "1f1b"), num_microbatches=8)
    assert [(p.schedule, p.num_microbatches) for p in some] == [("gpipe", 8), ("1f1b", 8)]
    assert some.conditions == found.conditions
    with pytest.raises(pp.PipelabError, match=r"num_microbatches=3\. There are num_microbatches: 2, 8"):
        found.where(num_microbatches=3)
    with pytest.raises(TypeError, match="num_microbatches"):
        found.where(num_microbatch=8)


def test_best_is_the_shortest_and_of_equal_ones_the_one_that_holds_least(found):
    at_8 = found.where(num_microbatches=8)
    assert at_8.best().schedule == "1f1b"
    assert at_8.where(schedule=("gpipe", "picky")).best().schedule == "picky"
    assert found.best("peak_activations").value("peak_activations") == 2


def test_best_keeps_to_limits_and_says_how_far_off_the_nearest_is(found):
    assert found.best(peak_activations=4, bubble_fraction=0.5).schedule == "1f1b"
    with pytest.raises(pp.PipelabError, match=r"peak_activations of at most 1; the least left is 2\."):
        found.best(peak_activations=1)
    with pytest.raises(pp.PipelabError, match="did you mean 'makespan'"):
        found.best("makespam")
    with pytest.raises(TypeError, match="peak_bytes"):
        found.best(peak_byte=3)


def test_bytes_that_are_not_known_are_a_sentence(found):
    with pytest.raises(pp.PipelabError, match="has a peak_bytes"):
        found.best("peak_bytes")


def test_a_point_makes_its_timeline_again(found):
    for point in found:
        if not point.refusal:
            trace = point.trace()
            assert trace.makespan == point.value("makespan")
            assert trace.label == point.schedule


def test_the_sizes_that_occur(found):
    assert found.values("num_microbatches") == (2, 8)
    assert found.values("latency") == (0.0,)
    assert found.schedules == ("gpipe", "1f1b", "picky")
    with pytest.raises(pp.PipelabError, match="num_ranks"):
        found.values("ranks")


def test_two_sweeps_of_the_same_compare_equal():
    def make():
        return pp.sweep(schedules=["gpipe"], num_ranks=2, num_microbatches=[1, 2], progress=False)

    assert make() == make()
    assert np.array_equal(make().columns()["ranks"], [2, 2])
