from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import pipelab as pp
from pipelab.core.gap import explain_gap
from pipelab.plots.gap import describe_gap, plot_gap
from pipelab.plots.palette import FORWARD, IDLE, WEIGHT

ONE = pp.schedule("zb-h1", num_ranks=2, num_microbatches=4)
COSTS = pp.Costs.uniform(2)


def gap(predicted=COSTS, measured=None):
    measured = measured or pp.Costs.uniform(2, forward=1.5, weight_grad=0.75, latency=0.25)
    return explain_gap(pp.simulate(ONE, predicted), pp.simulate(ONE, measured))


def test_each_bar_begins_where_the_one_above_ended_and_the_last_ends_at_the_measured_step():
    one = gap()
    ax = plot_gap(one)
    at = one.predicted
    for part, box in zip(one.parts, ax.patches, strict=True):
        edges = sorted([at, at + part.seconds])
        assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx(tuple(edges))
        at += part.seconds
    assert at == pytest.approx(one.measured)
    low, high = ax.get_xlim()
    assert low < min(one.predicted, one.measured) and high > max(one.predicted, one.measured)


def test_kinds_have_their_colours_and_waiting_is_white_as_idle_time():
    one = gap()
    colours = {
        part.cause: box.get_facecolor() for part, box in zip(one.parts, plot_gap(one).patches, strict=True)
    }
    assert (colours["F"], colours["W"]) == (to_rgba(FORWARD), to_rgba(WEIGHT))
    assert colours["waiting"] == to_rgba(IDLE) == colours["start"]


def test_rows_are_the_prediction_the_causes_and_the_measured_step_with_what_was_found():
    one = gap()
    ax = plot_gap(one)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "predicted",
        *(p.cause for p in one.parts),
        "measured",
    ]
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "13 s" and texts[1].startswith("+") and "1.5 s instead of 1 s" in texts[1]
    assert texts[3].startswith("−")


def test_the_axis_says_that_it_does_not_begin_at_0_and_the_title_names_both_clocks():
    ax = plot_gap(gap())
    assert ax.get_xlabel() == "time [s], not from 0"
    assert "predicted on the simulated clock, measured on the simulated clock" in ax.get_title()


def test_a_band_is_drawn_where_the_prediction_has_one():
    banded = gap(predicted=replace(COSTS, band=(0.8, 1.1)))
    ax = plot_gap(banded)
    (band,) = ax.patches[:1]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(banded.band)
    assert "predicted between" in ax.get_title() and len(ax.patches) == len(banded.parts) + 1
    low, high = ax.get_xlim()
    assert low < banded.band[0] and high > banded.band[1]


@pytest.mark.parametrize("costs", [COSTS, pp.Costs.uniform(2, 0, 0, 0)])
def test_no_gap_is_still_a_picture(costs):
    ax = plot_gap(gap(costs, costs))
    ax.figure.canvas.draw()
    assert np.ptp(ax.get_xlim()) > 0


def test_it_draws_where_it_is_told_and_names_are_data():
    _, ax = plt.subplots()
    trace = pp.simulate(ONE, COSTS)
    assert plot_gap(explain_gap(trace, trace.with_label("a $ b $")), ax=ax) is ax
    ax.figure.canvas.draw()
    assert r"a \$ b \$" in ax.get_title()


def test_it_says_itself_in_words_also_in_a_notebook():
    one = gap()
    text = describe_gap(one)
    assert text.startswith(f"From predicted to measured. {one.headline}. F: ")
    assert all(part.detail in text for part in one.parts)
    _, alternatives = plot_gap(one).figure._repr_mimebundle_()
    assert alternatives["image/png"]["alt"] == text
