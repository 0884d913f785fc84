from __future__ import annotations

import pytest

import pipelab as pp
from pipelab.core.differences import Measure, measures
from tests.plots.sizes import trace


def runs(*names: str, held: pp.StageBytes | None = None) -> pp.Comparison:
    costs = pp.Costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, bytes=held)
    orders = [pp.schedule(name, num_ranks=4, num_microbatches=8) for name in names]
    return pp.compare(pp.simulate(order, costs) for order in orders)


def test_where_bytes_are_not_known_micro_batches_in_flight_stand_for_them():
    assert [one.name for one in measures(runs("gpipe", "1f1b"))] == [
        "makespan",
        "bubble_fraction",
        "peak in flight",
    ]
    held = pp.StageBytes(parameters=(8.0,) * 4, activations=(2.0,) * 4, outputs=(1.0,) * 4)
    found = measures(runs("gpipe", "1f1b", held=held))
    assert [one.name for one in found] == ["makespan", "bubble_fraction", "peak memory", "bytes sent"]
    assert found[2].values == (32.0, 24.0) and found[2].texts == ("32 B", "24 B")
    assert found[3].values == (48.0, 48.0) and found[3].change_texts == (
        "",
        "same",
    )  # 8 x 3 borders, there and back


def test_numbers_are_those_of_the_reports():
    one, other = trace(4, 8), trace(4, 8, latency=0.5)
    span, bubble, *_ = measures(pp.compare([one, other]))
    assert span.values == (one.makespan, other.makespan)
    assert span.changes == (0.0, pytest.approx(other.makespan / one.makespan - 1))
    assert bubble.changes[1] == pytest.approx(other.report().bubble_fraction - one.report().bubble_fraction)
    assert bubble.change_texts[1].endswith(" points") and bubble.change_texts[1].startswith("+")


def test_the_least_is_best_and_of_equals_both():
    assert Measure("makespan", (2.0, 1.0, 1.0 + 1e-12), ("",) * 3).is_best == (False, True, True)


def test_clocks_are_never_compared_with_one_another():
    one = Measure(
        "makespan", (4.0, 8.0, 3.0, 10.0), ("",) * 4, clocks=("simulated", "wall", "simulated", "wall")
    )
    assert one.changes == (0.0, 0.0, -0.25, 0.25) and one.change_texts == ("", "", "-25.0 %", "+25.0 %")
    assert one.is_best == (False, True, True, False)
    alone = Measure("makespan", (4.0, 8.0), ("",) * 2, clocks=("simulated", "wall"))
    assert alone.change_texts == ("", "") and alone.is_best == (False, False)


def test_nothing_is_best_where_all_are_the_same_or_one_is_known():
    assert Measure("makespan", (2.0, 2.0), ("",) * 2).is_best == (False, False)
    assert Measure("peak memory", (2.0, None), ("",) * 2).is_best == (False, False)


def test_what_is_not_known_has_no_difference():
    one = Measure("peak memory", (None, 2.0, None), ("",) * 3)
    assert one.changes == (None, None, None) and one.change_texts == ("", "", "")
    assert Measure("bubble_fraction", (0.0, 0.25), ("",) * 2, is_fraction=True).change_texts == (
        "",
        "+25.0 points",
    )
    assert Measure("bytes sent", (0.0, 5.0, 0.0), ("",) * 3).change_texts == ("", "", "same")


def test_differences_are_signed():
    assert Measure("makespan", (4.0, 3.0, 5.0), ("",) * 3).change_texts == ("", "-25.0 %", "+25.0 %")
