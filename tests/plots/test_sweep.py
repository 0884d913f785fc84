from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import pipelab as pp
from pipelab.core.sweep import QUANTITIES, SIZES
from pipelab.plots.series import series_of
from pipelab.plots.sweep import _apart, describe_sweep
from pipelab.plots.sweep_axes import quantity_axis

HOSTILE = r"$\frac{a}{b} <b> $ %s {x}"


def picky(num_ranks, num_microbatches):
    if num_microbatches < 2:
        raise pp.PipelabError("picky needs two.")
    return pp.schedule("naive", num_ranks=num_ranks, num_microbatches=num_microbatches)


@pytest.fixture(scope="module")
def found():
    schedules = {"gpipe": "gpipe", "1f1b": "1f1b", "loops": "interleaved-1f1b", HOSTILE: picky}
    costs = pp.Costs.uniform(4, latency=0.5)
    return pp.sweep(
        schedules=schedules, num_ranks=4, num_microbatches=[1, 4, 8, 16], costs=costs, progress=False
    )


@pytest.fixture(scope="module")
def free():
    names = ["gpipe", "1f1b", "eager-1f1b", "naive"]
    return pp.sweep(schedules=names, num_ranks=[2, 4], num_microbatches=[4, 8], progress=False)


@pytest.mark.parametrize("y", [name for name in QUANTITIES if name != "peak_bytes"])
@pytest.mark.parametrize("x", [*SIZES, "schedule"])
def test_every_quantity_can_be_drawn_against_every_size(found, x, y):
    ax = pp.plot_sweep(found, x=x, y=y)
    ax.figure.canvas.draw()
    title = " ".join(ax.get_title().split())
    assert title.startswith(y) and "simulated clock" in title and QUANTITIES[y].definition in title
    plt.close(ax.figure)


def test_a_line_goes_through_the_numbers_of_its_points(found):
    ax = pp.plot_sweep(found, y="makespan")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    for name in ("gpipe", "1f1b"):
        points = found.where(schedule=name)
        assert drawn[name] == [[p.num_microbatches, p.value("makespan")] for p in points]


def test_schedules_that_do_not_differ_share_one_line_and_say_so(free):
    ax = pp.plot_sweep(free.where(num_ranks=4))
    assert [line.get_label() for line in ax.get_lines()] == ["gpipe, 1f1b, eager-1f1b", "naive"]
    peaks = pp.plot_sweep(free.where(num_ranks=4), y="peak_activations")
    assert len(peaks.get_lines()) == 4


def test_a_schedule_keeps_its_colour_and_marker_in_every_picture_of_a_sweep(free):
    looks = []
    for y in ("bubble_fraction", "peak_activations"):
        ax = pp.plot_sweep(free.where(num_ranks=4), y=y)
        line = next(line for line in ax.get_lines() if line.get_label().startswith("naive"))
        looks.append((line.get_color(), line.get_marker(), line.get_linestyle()))
    assert looks[0] == looks[1]


def test_lines_of_one_schedule_are_told_apart_by_what_differs(free):
    labels = [s.label() for s in series_of(free.where(schedule="naive"), "num_microbatches", "makespan")]
    assert labels == ["naive, p = 2", "naive, p = 4"]
    (line,) = series_of(free.where(schedule="naive"), "num_microbatches", "bubble_ratio")[1:]
    assert line.number == 1


def test_a_refused_size_is_a_gap_and_is_named_in_the_title(found):
    ax = pp.plot_sweep(found)
    picky_line = ax.get_lines()[-1]
    assert picky_line.get_xdata().tolist() == [4, 8, 16]
    assert "refused:" in ax.get_title() and "at m = 1" in ax.get_title()


def test_names_are_data(found):
    ax = pp.plot_sweep(found)
    ax.figure.canvas.draw()
    assert r"\$" in ax.get_lines()[-1].get_label()
    pp.plot_sweep(found, x="schedule", y="peak_in_flight").figure.canvas.draw()


def test_the_title_names_all_that_are_least_and_the_sizes_they_share(free):
    title = pp.plot_sweep(free.where(num_ranks=4)).get_title()
    assert title.splitlines()[0] == "bubble_fraction, p = 4; least at m = 8: gpipe, 1f1b, eager-1f1b, 27.3 %"
    assert "F = I = W = 1 s for the stages of a rank together; free links" in title


def test_the_title_names_the_least_point_wherever_it_lies():
    def costs(num_stages, num_microbatches):
        third = (1 + 16 / num_microbatches) / 3
        return pp.Costs.uniform(num_stages, third, third, third)

    found = pp.sweep(schedules=["gpipe", "1f1b"], num_ranks=4, num_microbatches=[1, 4, 64], costs=costs)
    assert (
        pp.plot_sweep(found, y="makespan")
        .get_title()
        .startswith("makespan, p = 4; least at m = 4: gpipe, 1f1b, 35 s")
    )


def test_bars_are_sorted_and_as_long_as_the_makespan(free):
    part = free.where(num_ranks=4, num_microbatches=8)
    ax = pp.plot_sweep(part, x="schedule", y="makespan")
    ends = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert [ends[row] for row in sorted(ends)] == [33, 33, 33, 96]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["gpipe", "1f1b", "eager-1f1b", "naive"]
    assert ax.patches[0].get_width() == 24, "the busy part"


def test_more_bars_than_can_be_read_are_refused_with_the_remedy():
    many = pp.sweep(schedules="gpipe", num_ranks=1, num_microbatches=range(1, 62), progress=False)
    with pytest.raises(pp.PipelabError, match=r"61 bars.*where"):
        pp.plot_sweep(many, x="schedule")


def test_wrong_calls_name_what_is_there(found):
    with pytest.raises(pp.PipelabError, match="did you mean 'makespan'"):
        pp.plot_sweep(found, y="makespam")
    with pytest.raises(pp.PipelabError, match="num_microbatches"):
        pp.plot_sweep(found, x="num_microbatch")
    with pytest.raises(TypeError, match="not Report"):
        pp.plot_sweep(found.points[0].trace().report())
    with pytest.raises(pp.PipelabError, match="costs with bytes"):
        pp.plot_sweep(found, y="peak_bytes")


def test_it_draws_where_it_is_told_and_changes_nothing_else(found):
    figure = Figure()
    one, other = figure.subplots(2)
    assert pp.plot_sweep(found, ax=one) is one
    assert one.get_legend() is not None and not other.has_data()
    assert "_repr_mimebundle_" not in vars(figure)


def test_the_picture_says_itself_in_words(found, free):
    figure = pp.plot_sweep(free.where(num_ranks=4)).figure
    alt = figure._repr_mimebundle_()[1]["image/png"]["alt"]
    assert "gpipe, 1f1b, eager-1f1b: 42.9 % at m = 4, 27.3 % at m = 8." in alt
    assert "idle / (ranks × makespan)" in alt
    bars = describe_sweep(found.where(num_microbatches=8), x="schedule", y="makespan")
    assert "1f1b: 41 s" in bars and "gpipe: 36 s" in bars


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_labels_lie_apart_in_order_and_within_the_picture(wishes):
    wanted = np.array(wishes)
    places = _apart(wanted, 10.0, 100.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(places[order]) >= 10 - 1e-9).all()
    assert places.min() >= 5 - 1e-9 and places.max() <= 95 + 1e-9 if len(wishes) <= 9 else True


def test_labels_with_room_stay_where_they_belong():
    assert _apart(np.array([20.0, 50.0, 80.0]), 10.0, 100.0).tolist() == [20, 50, 80]
    assert _apart(np.array([50.0, 50.0]), 10.0, 100.0).tolist() == [45, 55]


@pytest.fixture(scope="module")
def by_links():
    costs = pp.Costs((1,) * 4, (1,) * 4, (1,) * 4, bytes=pp.StageBytes((0,) * 4, (8 * 2**30,) * 4, (2,) * 4))
    links = [pp.Links(bandwidth=1.0), pp.Links(bandwidth=10.0), pp.Links(bandwidth=1.0, serial=True)]
    return pp.sweep(
        schedules="1f1b", num_ranks=4, num_microbatches=[4, 8], costs=costs, links=links, progress=False
    )


def test_long_names_are_counted_where_they_have_no_room(by_links):
    (line,) = series_of(by_links, "num_microbatches", "peak_bytes")
    assert len(line.names) == 3 and line.label() == "1f1b, bandwidth 1 B/s, 1f1b, bandwidth 10 B/s, 1 more"
    for x in ("num_microbatches", "schedule"):
        ax = pp.plot_sweep(by_links, x=x, y="peak_bytes")
        ax.figure.canvas.draw()
        texts = [ax.title, ax._left_title, *ax.texts]
        assert max(text.get_window_extent().x1 for text in texts) <= ax.figure.bbox.x1


def test_links_have_lines_bars_and_names_of_their_own(by_links):
    ax = pp.plot_sweep(by_links, y="makespan")
    for line in ax.get_lines():
        assert line.get_xdata().tolist() == [4, 8]
    told = ", ".join(line.get_label() for line in ax.get_lines())
    assert all(p.links_text in told for p in by_links)
    least = by_links.where(num_microbatches=8).best()
    assert f"1f1b, {least.links_text}" in ax.get_title().splitlines()[0]
    bars = pp.plot_sweep(by_links, x="schedule", y="makespan")
    assert len({text.get_text() for text in bars.get_yticklabels()}) == len(by_links)
    part = by_links.where(links=pp.Links(bandwidth=10.0))
    assert "bandwidth 10 B/s" in pp.plot_sweep(part).get_title().splitlines()[0]


def test_numbers_that_look_alike_do_not_share_a_line():
    links = [pp.Links(0.5), pp.Links(0.5001)]
    near = pp.sweep(schedules="1f1b", num_ranks=2, num_microbatches=[2, 4], links=links, progress=False)
    assert [s.x.tolist() for s in series_of(near, "num_microbatches", "makespan")] == [[2, 4], [2, 4]]


def test_links_of_several_latencies_are_no_point_of_that_axis():
    table = pp.Links([[0, 1], [2, 0]])
    one = pp.sweep(schedules="1f1b", num_ranks=2, num_microbatches=2, links=table, progress=False)
    with pytest.raises(pp.PipelabError, match="one latency"):
        pp.plot_sweep(one, x="latency")


@pytest.mark.parametrize("most", [1.0, 900.0, 1500.0, 3e9, 37e9, 999 * 2.0**30, 5e15])
@pytest.mark.parametrize("along", ["x", "y"])
def test_ticks_of_bytes_are_round_in_a_binary_unit_and_few(most, along):
    ax = Figure().subplots()
    quantity_axis(ax, "peak_bytes", most, along=along)
    axis = getattr(ax, f"{along}axis")
    ticks = [tick for tick in axis.get_majorticklocs() if tick <= most]
    unit = 1024.0 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(axis.get_label_text()[13:-1])
    assert 3 <= len(ticks) <= 8 and unit <= max(most, 1.0)
    for tick in ticks:
        assert float(f"{tick / unit:.2g}") == pytest.approx(tick / unit)


def test_the_label_of_bytes_lies_within_the_figure(by_links):
    ax = pp.plot_sweep(by_links, y="peak_bytes")
    ax.figure.canvas.draw()
    assert ax.get_ylabel() == "peak memory [GiB]"
    assert ax.yaxis.label.get_window_extent().x0 >= 0


def busy_only_beyond_four(num_stages, num_microbatches):
    return pp.Costs.uniform(num_stages, *[float(num_microbatches > 4)] * 3, latency=1.0)


def test_infinite_numbers_are_left_out_and_named():
    sizes = {"schedules": "1f1b", "num_ranks": 2, "costs": busy_only_beyond_four, "progress": False}
    some = pp.sweep(num_microbatches=[4, 8], **sizes)
    for x in ("num_microbatches", "schedule", "makespan"):
        ax = pp.plot_sweep(some, x=x, y="bubble_ratio")
        ax.figure.canvas.draw()
        assert "infinite, so left out: 1f1b at m = 4" in ax.get_title()
        assert "left out" in describe_sweep(some, x=x, y="bubble_ratio")
    with pytest.raises(pp.PipelabError, match="bubble_ratio is infinite at every point"):
        pp.plot_sweep(pp.sweep(num_microbatches=4, **sizes), y="bubble_ratio")
