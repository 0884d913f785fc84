from __future__ import annotations

import numpy as np
import pytest

import pipelab as pp
from pipelab.plots.sweep import describe_sweep
from pipelab.plots.tradeoff import spots_of


@pytest.fixture(scope="module")
def found():
    names = ["naive", "gpipe", "1f1b", "eager-1f1b", "interleaved-1f1b", "zb-h1"]
    return pp.sweep(schedules=names, num_ranks=4, num_microbatches=16, progress=False)


def test_a_spot_lies_at_its_two_numbers_and_every_point_has_one(found):
    spots = spots_of(found, "peak_activations", "makespan")
    where = {name: (spot.x, spot.y) for spot in spots for name in spot.names}
    assert where == {
        point.schedule: (point.value("peak_activations"), point.value("makespan")) for point in found
    }


def test_the_front_is_what_no_other_beats(found):
    spots = spots_of(found, "peak_activations", "makespan")
    for spot in spots:
        beaten = [o for o in spots if o is not spot and o.x <= spot.x and o.y <= spot.y]
        assert spot.is_best is not bool(beaten)
    assert [spot.names for spot in spots if spot.is_best] == [("naive",), ("zb-h1",)]


def test_points_that_coincide_share_a_spot():
    twins = pp.sweep(schedules={"a": "1f1b", "b": "1f1b"}, num_ranks=2, num_microbatches=4, progress=False)
    (spot,) = spots_of(twins, "peak_in_flight", "bubble_fraction")
    assert spot.names == ("a", "b") and spot.is_best
    pp.plot_sweep(twins, x="peak_in_flight").figure.canvas.draw()


def test_every_spot_is_named_and_no_name_lies_on_another(found):
    ax = pp.plot_sweep(found, x="peak_activations", y="makespan")
    ax.figure.canvas.draw()
    names = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(names) == set(found.schedules)
    boxes = list(names.values())
    for k, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:k])
        assert ax.figure.bbox.x0 <= one.x0 and one.x1 <= ax.figure.bbox.x1


def test_the_title_and_the_words_say_both_definitions(found):
    ax = pp.plot_sweep(found, x="peak_activations")
    for text in (ax.get_title(), describe_sweep(found, x="peak_activations")):
        assert "simulated clock" in text.lower() and "idle / (ranks × makespan)" in text
    assert "micro-batches of one rank's share" in ax.get_title()
    assert "zb-h1: peak_activations 4, bubble_fraction 5.9 %, on the front." in describe_sweep(
        found, x="peak_activations"
    )


def test_an_axis_without_spread_has_room_around_its_spots():
    one = pp.sweep(schedules="1f1b", num_ranks=2, num_microbatches=4, progress=False)
    ax = pp.plot_sweep(one, x="peak_activations", y="makespan")
    low, high = ax.get_ylim()
    assert low < one.points[0].value("makespan") < high and np.isfinite([low, high]).all()


def test_a_number_that_is_not_known_is_refused_on_either_axis(found):
    with pytest.raises(pp.PipelabError, match="peak_bytes"):
        pp.plot_sweep(found, x="peak_bytes")
