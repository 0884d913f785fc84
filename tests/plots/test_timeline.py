from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

import pipelab as pp
from pipelab.core.trace import CLOCKS
from pipelab.plots.artists import TimelineArtists
from pipelab.plots.palette import BACKWARD, FORWARD, IDLE, PAINTS, WEIGHT
from pipelab.plots.raster import CoverageRaster
from pipelab.plots.scene import scene
from tests.plots.sizes import SIZES, SPLIT_BACKWARD, of_orders, trace

HOSTILE = r"$\frac{a}{b} <b>&amp;</b> $ $ \$ %s {x}"


def boxes(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection) and not c.get_hatch())


def drawn(one, most_polygons):
    """The pixels of a timeline whose time axis runs from column 90 to 810."""
    figure = Figure(figsize=(9, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    TimelineArtists(figure.add_axes((0.1, 0.2, 0.8, 0.7)), most_polygons).show(scene([one]))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def numbers(ax):
    return next(c for c in ax.collections if isinstance(c, PathCollection))


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_the_boxes_extend_from_starts_to_ends_in_seconds(ranks, microbatches):
    one = trace(ranks, microbatches)
    ax = pp.plot_timeline(one)
    corners = np.array([path.vertices[:4] for path in boxes(ax).get_paths()])
    assert sorted(corners[:, :, 0].min(axis=1)) == sorted(one.start)
    assert sorted(corners[:, :, 0].max(axis=1)) == sorted(one.end)
    assert ax.get_xlim() == (0.0, one.makespan)


def test_colours_mean_the_kind_and_idle_time_is_white_with_a_hatch():
    one = of_orders(SPLIT_BACKWARD)
    ax = pp.plot_timeline(one)
    shown = [to_hex(colour).upper() for colour in boxes(ax).get_facecolor()]
    assert shown[:4] == [FORWARD, FORWARD, BACKWARD, WEIGHT]
    idle = next(c for c in ax.collections if c.get_hatch())
    assert to_hex(idle.get_facecolor()[0]).upper() == IDLE
    assert (FORWARD, BACKWARD, WEIGHT) == ("#8CCBEF", "#08306B", "#D55E00")


def test_colours_can_be_told_apart_in_grey():
    grey = sorted(float(np.dot(to_rgb(paint), (0.299, 0.587, 0.114))) for paint in (*PAINTS, IDLE))
    assert np.diff(grey).min() > 0.1
    forward, backward, weight = (np.dot(to_rgb(paint), (0.299, 0.587, 0.114)) for paint in PAINTS[:3])
    assert min(abs(forward - backward), abs(forward - weight), abs(weight - backward)) > 0.2


def test_the_first_row_is_rank_0_and_lies_on_top():
    ax = pp.plot_timeline(trace(3, 4))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["rank 0", "rank 1", "rank 2"]
    assert (
        ax.transData.transform((0, ax.get_yticks()[0]))[1]
        > ax.transData.transform((0, ax.get_yticks()[2]))[1]
    )


def test_numbers_stand_in_boxes_where_they_fit_and_nowhere_else():
    wide = numbers(pp.plot_timeline(trace(4, 8)))
    assert len(wide.get_offsets()) == 64
    assert not numbers(pp.plot_timeline(trace(8, 64))).get_visible()


def test_numbers_stand_in_the_middle_of_their_boxes():
    one = trace(2, 3)
    ax = pp.plot_timeline(one)
    middle = (one.start + one.end) / 2
    assert numbers(ax).get_offsets()[:, 0].tolist() == pytest.approx(middle.tolist())


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_title_names_clock_bubble_definition_and_devices(clock):
    one = replace(trace(4, 8), clock=clock, devices=("cpu",) * 4)
    title = pp.plot_timeline(one).get_title()
    assert f"{clock} clock, cpu ×4" in title
    assert "bubble_fraction = idle / (ranks × makespan)" in title
    assert f"bubble_fraction {100 * one.report().bubble_fraction:.1f} %" in title
    assert f"{one.makespan:g} s" in title


def test_the_title_says_why_a_clock_is_not_honest():
    one = replace(trace(2, 2), clock="wall", notes=("4 ranks share 2 CPU cores: not the time of 4 devices",))
    assert "4 ranks share 2 CPU cores" in pp.plot_timeline(one).get_title()


def test_unit_costs_are_shown_as_the_seconds_they_are():
    order = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    ax = pp.plot_timeline(pp.simulate(order, pp.Costs.uniform(4)))
    assert "33 s" in ax.get_title()
    assert ax.get_xlabel() == "time [s]"


def test_short_steps_are_labelled_in_milliseconds_while_the_data_stay_seconds():
    order = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    ax = pp.plot_timeline(pp.simulate(order, pp.Costs.uniform(4, 1e-3, 1e-3, 1e-3)))
    ax.figure.canvas.draw()
    assert ax.get_xlabel() == "time [ms]"
    labelled = [float(label.get_text()) for label in ax.get_xticklabels()]
    assert labelled == pytest.approx([1000 * tick for tick in ax.get_xticks()])


@pytest.mark.parametrize("draw", [pp.plot_timeline, pp.plot_memory, lambda t: pp.plot_timelines([t, t])])
def test_hostile_names_are_drawn_as_they_are(draw):
    ax = draw(trace(2, 2).with_label(HOSTILE))
    ax.figure.canvas.draw()
    ax.figure.savefig(io.BytesIO(), format="svg")


def test_it_draws_where_it_is_told_to_and_touches_nothing_global():
    before, figures = dict(mpl.rcParams), plt.get_fignums()
    figure = Figure()
    ax = figure.subplots()
    assert pp.plot_timeline(trace(2, 2), ax=ax) is ax
    assert plt.get_fignums() == figures
    assert dict(mpl.rcParams) == before


def test_a_new_figure_grows_with_the_ranks_up_to_a_page():
    heights = [pp.plot_timeline(trace(ranks, 2)).figure.get_figheight() for ranks in (2, 4, 8, 64, 256)]
    assert heights == sorted(heights)
    assert heights[0] < heights[1] < heights[2] < heights[3] == heights[4] < 10


def test_labels_of_many_ranks_are_thinned_out():
    ax = pp.plot_timeline(trace(256, 2))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(labels) <= 20
    assert labels[0] == "rank 0"


def test_a_dense_timeline_is_a_raster_and_a_small_one_is_not():
    def rasters(ax):
        return [
            artist
            for artist in ax.get_children()
            if isinstance(artist, CoverageRaster) and artist.get_visible()
        ]

    assert not rasters(pp.plot_timeline(trace(8, 64)))
    assert len(rasters(pp.plot_timeline(trace(4, 512)))) == 1


def test_raster_and_polygons_show_the_same():
    """One picture drawn both ways differs in edges only."""

    different = np.abs(drawn(trace(4, 8), 4096) - drawn(trace(4, 8), 0)).max(axis=-1) > 60
    assert different.mean() < 0.03


@pytest.mark.parametrize("most_polygons", [0, 4096])
def test_a_box_narrower_than_a_pixel_is_not_wiped_out_by_its_neighbours(most_polygons):
    order = pp.schedule("1f1b", num_ranks=1, num_microbatches=4)
    one = pp.simulate(order, pp.Costs((1.0,), (0.002,), (0.0,)))
    without = pp.Trace.from_times(
        order, one.start, np.where(one.kind == 3, one.start, one.end), clock="simulated"
    )
    difference = np.abs(drawn(one, most_polygons) - drawn(without, most_polygons)).max(axis=-1)[150]
    for start in one.start[one.kind == 3]:
        at = round(90 + 720 * start / one.makespan)
        assert difference[at - 2 : at + 3].max() > 40


@pytest.mark.parametrize("extension", ["png", "svg", "pdf"])
def test_dense_timelines_are_saved_in_every_format(extension):
    ax = pp.plot_timeline(trace(4, 512))
    file = io.BytesIO()
    ax.figure.savefig(file, format=extension)
    assert len(file.getvalue()) > 5000


@pytest.mark.parametrize("microbatches", [8, 512])
def test_svg_is_the_same_every_time(microbatches):
    def svg():
        file = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "pipelab"}):
            ax = pp.plot_timeline(trace(4, microbatches), memory=True)
            ax.figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    assert svg() == svg()


def test_memory_lies_under_the_timeline_on_the_same_time_axis():
    one = trace(4, 8)
    ax = pp.plot_timeline(one, memory=True)
    timeline, memory = ax.figure.axes
    assert timeline is ax
    assert memory.get_position().y1 < timeline.get_position().y0
    assert memory.get_xlim() == timeline.get_xlim()
    assert memory.get_position().x0 == timeline.get_position().x0
    assert "peak 4 micro-batches in flight on rank 0" in memory.get_title()


def test_several_timelines_share_one_axis_with_a_header_each():
    runs = [trace(4, 8, name, latency=0.5) for name in ("gpipe", "1f1b")]
    ax = pp.plot_timelines(runs)
    assert len(ax.figure.axes) == 1
    assert ax.get_xlim()[1] == max(run.makespan for run in runs)
    headers = [text.get_text() for text in ax.texts]
    assert [header.partition(":")[0] for header in headers] == ["gpipe", "1f1b"]
    assert all("simulated clock" in header and "bubble_fraction" in header for header in headers)
    assert "bubble_fraction = idle / (ranks × makespan)" in ax.get_title()


def test_measured_over_predicted_says_by_how_much_they_differ():
    predicted = trace(4, 8)
    measured = pp.Trace.from_times(
        predicted.schedule, predicted.start * 1.1, predicted.end * 1.1, clock="wall"
    )
    title = pp.plot_timelines([predicted, measured]).get_title()
    assert "+10.0 %" in title
    assert "clocks: simulated, wall" in title


def test_runs_of_different_schedules_are_not_called_predicted_and_measured():
    measured = replace(trace(4, 8, "gpipe"), clock="wall")
    assert "against predicted" not in pp.plot_timelines([trace(4, 8), measured]).get_title()


def test_one_trace_in_a_list_is_a_timeline_and_none_is_refused():
    assert pp.plot_timelines([trace(2, 2)]).get_title() == pp.plot_timeline(trace(2, 2)).get_title()
    with pytest.raises(pp.PipelabError, match="at least one"):
        pp.plot_timelines([])


def test_what_is_no_trace_is_a_wrong_call():
    with pytest.raises(TypeError, match="drawn from a Trace, not from Schedule"):
        pp.plot_timeline(trace(2, 2).schedule)
    with pytest.raises(TypeError, match="drawn from a Trace, not from int"):
        pp.plot_timelines(3)


def test_numbers_of_a_later_stage_are_underlined_and_the_legend_says_so():
    def of(name, v, m=4):
        order = pp.schedule(name, num_ranks=2, num_microbatches=m, stages_per_rank=v)
        ax = pp.plot_timeline(pp.simulate(order, pp.Costs.uniform(2 * v)))
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        marks = [c for c in ax.collections if isinstance(c, PolyCollection)][2]
        return marks, any("underlined" in text for text in texts)

    marks, said = of("interleaved-1f1b", 2)
    assert said and marks.get_visible() and len(marks.get_paths()) == 16
    plain, said = of("1f1b", 1)
    assert not said and not plain.get_visible()
    tight, said = of("interleaved-1f1b", 2, m=200)
    assert not said and not tight.get_visible(), "where there are no numbers none is underlined"
