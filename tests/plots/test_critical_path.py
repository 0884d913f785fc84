from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection

import pipelab as pp
from pipelab.plots.artists import NUMBER_POINTS
from pipelab.plots.critical_path import _EDGE, path_points
from pipelab.plots.palette import PATH
from pipelab.plots.scene import HALF, scene
from tests.plots.sizes import OVERLAPPED, SIZES, SPLIT_BACKWARD, of_orders, trace


def lines(ax):
    return [line for line in ax.get_lines() if line.get_label() == "critical path"]


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_the_line_runs_from_the_beginning_to_the_end_and_never_back(ranks, microbatches):
    one = trace(ranks, microbatches, latency=0.5)
    (line,) = lines(pp.plot_timeline(one, critical_path=True))
    x = line.get_xdata()
    assert (x[0], x[-1]) == (0, one.makespan)
    assert (np.diff(x) >= -1e-9).all()


@pytest.mark.parametrize("orders", [OVERLAPPED, SPLIT_BACKWARD])
def test_every_corner_lies_in_the_row_of_its_rank(orders):
    one = of_orders(orders)
    path = one.critical_path()
    corners = path_points(one, path, scene([one]))
    assert np.repeat(path.rank, 2).tolist() == np.round(corners[:, 1] + 0.3).astype(int).tolist()


def test_without_asking_there_is_no_line():
    assert not lines(pp.plot_timeline(trace()))


def test_the_title_says_of_what_the_makespan_consists():
    one = pp.simulate(pp.schedule("1f1b", num_ranks=4, num_microbatches=8), pp.Costs.uniform(4, latency=0.5))
    title = pp.plot_timeline(one, critical_path=True).get_title()
    assert title.splitlines()[-1] == "critical path: 22 actions, 33 s, and 8 s between them"
    free = pp.simulate(one.schedule, pp.Costs.uniform(4))
    assert pp.plot_timeline(free, critical_path=True).get_title().endswith("33 s")


def test_it_is_in_the_legend_and_in_the_words():
    ax = pp.plot_timeline(trace(4, 2), critical_path=True)
    assert "critical path" in [text.get_text() for text in ax.get_legend().get_texts()]
    alt = ax.figure._repr_mimebundle_()[1]["image/png"]["alt"]
    assert "Critical path: " in alt and "0F0, 1F0, 2F0, 3F0" in alt


def test_a_long_path_is_told_in_part():
    alt = pp.plot_timeline(trace(8, 64), critical_path=True).figure._repr_mimebundle_()[1]["image/png"]["alt"]
    assert " more)" in alt and len(alt) < 2000


def test_the_line_is_seen_in_a_crowded_picture_too():
    figure = pp.plot_timeline(trace(8, 512), critical_path=True).figure
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    wanted = [int(PATH[k : k + 2], 16) for k in (1, 3, 5)]
    assert (np.abs(pixels - wanted).max(axis=2) < 12).sum() > 500


def test_lanes_of_their_own_are_part_of_the_path():
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    costs = pp.Costs((1, 1), (1, 1), (1, 1), update=(1, 1), links=pp.Links(0.5, serial=True))
    one = pp.simulate(order, costs, feed=pp.Feed(prepare=5))
    (line,) = lines(pp.plot_timeline(one, critical_path=True))
    labels = scene([one]).row_labels
    rows = {labels[round(y + 0.3)] for y in line.get_ydata()}
    assert {"prepare:0", "rank 0", "copy"} <= rows


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev", "1f1b"])
def test_the_line_lies_on_no_number(name):
    order = pp.schedule(name, num_ranks=4, num_microbatches=10)
    ax = pp.plot_timeline(pp.simulate(order, pp.Costs.uniform(order.num_model_stages)), critical_path=True)
    ax.figure.canvas.draw()
    (line,) = lines(ax)
    (numbers,) = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets())]
    per_point = ax.figure.dpi / 72
    places = ax.transData.transform(numbers.get_offsets())[:, 1] / per_point
    level = np.unique(ax.transData.transform(line.get_xydata())[:, 1] / per_point)
    edge = _EDGE * line.get_linewidth() / 2
    assert np.abs(places[:, None] - level).min() >= NUMBER_POINTS * 0.37 + edge, (
        "half a digit and half a line"
    )


def test_among_many_ranks_the_line_is_thinner_than_the_gap_between_rows():
    ax = pp.plot_timeline(trace(64, 64, latency=0.5), critical_path=True)
    (line,) = lines(ax)
    row = ax.bbox.height / ax.figure.dpi * 72 / 64
    assert _EDGE * line.get_linewidth() < (1 - 2 * HALF) * row
