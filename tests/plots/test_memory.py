from __future__ import annotations

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.measured_memory import MeasuredMemory
from pipelab.core.memory import MemoryCurve
from pipelab.plots.memory import FULL, MemoryArtists, describe_memory
from tests.plots.sizes import SIZES, trace


def outlines(ax):
    return [path.vertices for path in ax.collections[0].get_paths()]


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_each_rank_stands_as_high_as_its_peak_on_one_scale(ranks, microbatches):
    one = trace(ranks, microbatches)
    ax = pp.plot_memory(one)
    peaks = np.array(one.report().peak_in_flight)
    heights = [np.ptp(outline[:, 1]) for outline in outlines(ax)]
    assert heights == pytest.approx(FULL * peaks / peaks.max())


def test_the_area_is_what_is_kept_over_time():
    one = trace(2, 3)
    (outline, _) = outlines(pp.plot_memory(one))
    curve = one.memory()[0]
    area = (np.diff(np.append(curve.time, one.makespan)) * curve.value).sum()
    x, y = outline[:-1, 0], outline[:-1, 1]
    drawn = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert drawn == pytest.approx(area * FULL / max(c.peak for c in one.memory()))


def test_weights_stay_until_the_end_of_the_step():
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    held = pp.StageBytes((2**20, 2**20), (2**10, 2**10), (1, 1))
    one = pp.simulate(order, pp.Costs((1, 1), (1, 1), (1, 1), bytes=held))
    ax = pp.plot_memory(one)
    assert all(outline[:, 0].max() == one.makespan for outline in outlines(ax))
    assert "peak 2 MiB on rank 0" in ax.get_title()
    assert "weights, gradients, and activations" in ax.get_title()


def test_each_peak_is_written_beside_its_rank():
    ax = pp.plot_memory(trace(4, 8))
    assert [text.get_text() for text in ax.texts] == ["peak 4", "peak 3", "peak 2", "peak 1"]


def test_the_title_names_the_clock():
    assert "simulated clock" in pp.plot_memory(trace(2, 2)).get_title()


def test_a_long_curve_never_loses_its_peak():
    rng = np.random.default_rng(0)
    value = rng.integers(0, 5, 50_000).astype(float)
    value[31_415] = 9.0
    curve = MemoryCurve(0, np.arange(50_000.0), value, "micro-batches")
    ax = pp.plot_memory(trace(2, 2))
    MemoryArtists(ax).show([curve], 50_000.0)
    outline = ax.collections[-3].get_paths()[0].vertices
    assert len(outline) < 10_000
    assert np.ptp(outline[:, 1]) == pytest.approx(FULL)
    floor = outline[:, 1].max()
    time, height = outline[1:-1:2, 0], (floor - outline[1:-1:2, 1]) * 9 / FULL
    drawn = height[np.searchsorted(time, curve.time, side="right") - 1]
    assert (drawn >= value - 1e-9).all()


def test_it_says_itself_in_words():
    text = describe_memory(trace(4, 8))
    assert "rank 0 4, rank 1 3, rank 2 2, rank 3 1" in text
    assert "simulated clock" in text


def measured(more=0.0):
    """A step that held a little more than its own trace predicts."""
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=3)
    held = pp.StageBytes((2**20,) * 2, (2**19,) * 2, (1, 1))
    one = pp.simulate(order, pp.Costs((1, 1), (1, 1), (1, 1), bytes=held))
    cells = np.array([[1, 0], [2, 0], [1, 0], [2, 0], [1, 0], [0, 0]] + [[0, 1], [0, 0]] * 3) * (2**19 + more)
    return MeasuredMemory(one, np.arange(len(cells)), cells, 0 * cells, (0.0, 0.0))


def test_what_was_measured_lies_as_a_line_over_what_was_predicted():
    found = measured()
    ax = pp.plot_memory(found.trace, measured=found)
    lines = ax.collections[2].get_segments()
    assert len(lines) == 2
    heights = [float(line[:, 1].max() - line[:, 1].min()) for line in lines]
    areas = [float(np.ptp(outline[:, 1])) for outline in outlines(ax)]
    assert heights[0] == pytest.approx(areas[0] * 1 / 3)  # of 3 MiB, 2 are there all the time
    assert lines[0][:, 1].min() == pytest.approx(ax.collections[0].get_paths()[0].vertices[:, 1].min())


def test_both_peaks_are_written_and_share_one_scale():
    found = measured(more=2.0**19)
    ax = pp.plot_memory(found.trace, measured=found)
    assert ax.texts[0].get_text() == "4 MiB measured\n3 MiB predicted"
    assert ax.get_title().startswith("1f1b: measured peak 4 MiB on rank 0, predicted 3 MiB on rank 0")
    assert "line: measured" in ax.get_title() and "simulated clock" in ax.get_title()
    assert min(line[:, 1].min() for line in ax.collections[2].get_segments()) >= 0.5
    words = describe_memory(found.trace, found)
    assert "Measured peaks: rank 0 4 MiB, rank 1 3 MiB. Predicted peaks: rank 0 3 MiB" in words


def test_without_a_measurement_no_line_is_drawn():
    assert len(pp.plot_memory(trace(2, 2)).collections[2].get_segments()) == 0


def test_a_measurement_of_other_ranks_or_without_bytes_is_refused():
    with pytest.raises(pp.PipelabError, match="2 ranks, and 1f1b has 4"):
        pp.plot_memory(trace(4, 8), measured=measured())
    with pytest.raises(pp.PipelabError, match="not known"):
        pp.plot_memory(trace(2, 3), measured=measured())
    with pytest.raises(TypeError, match=r"step\.memory"):
        pp.plot_memory(trace(2, 3), measured=trace(2, 3))


def test_a_measurement_in_the_place_of_the_trace_is_told_where_it_belongs():
    with pytest.raises(TypeError, match=r"pp\.plot_memory\(step\.trace, measured=step\.memory\)"):
        pp.plot_memory(measured())
