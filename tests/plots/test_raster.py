from __future__ import annotations

import numpy as np
import pytest

import pipelab as pp
from pipelab.plots.palette import PAINTS, rgb
from pipelab.plots.raster import paint
from pipelab.plots.scene import scene
from tests.plots.sizes import SIZES, trace


def painted(one, width=600, height=400, begin=0.0, stop=None):
    shown = scene([one])
    stop = shown.stop if stop is None else stop
    return paint(shown, (begin, stop, shown.bottom_y, shown.row_y[0] - 0.5), width, height)


@pytest.mark.parametrize(("ranks", "microbatches"), [*SIZES, (4, 500)])
def test_the_ink_of_a_dense_row_is_its_busy_time(ranks, microbatches):
    one = trace(ranks, microbatches)
    width = 37  # few pixels: nearly every one holds several actions
    image = painted(one, width=width, height=ranks * 8)
    forward, backward = rgb(PAINTS)[:2]
    for rank in range(ranks):
        row = image[ranks * 8 - 1 - (rank * 8 + 3), :, :3].astype(float)
        mine = one.rank == rank
        busy = {
            kind: one.durations[mine & (one.kind == kind)].sum() / one.makespan * width for kind in (0, 3)
        }
        ink = busy[0] * (255 - forward) + busy[3] * (255 - backward)
        # Strokes over pixels that are wholly idle darken by 43 at most every eighth pixel; rounding is half a step;
        # a box of more than three pixels gives up 0.8 of one, so that one sees where the next begins.
        wide = (mine & (one.durations * width > 3 * one.makespan)).sum()
        assert (255 - row).sum(axis=0) == pytest.approx(ink, abs=43 * width / 8 + width + wide * 0.8 * 247)


def test_no_action_is_dropped_however_narrow():
    order = pp.schedule("gpipe", num_ranks=2, num_microbatches=2000)
    one = pp.simulate(order, pp.Costs.uniform(2))
    image = painted(one, width=50, height=16)
    forward, backward = rgb(PAINTS)[:2]
    first = image[12, :, :3].astype(float)
    assert first[2:14] == pytest.approx(np.tile(forward, (12, 1)), abs=1)
    assert first[-14:-2] == pytest.approx(np.tile(backward, (12, 1)), abs=1)


def test_zooming_in_shows_the_same_moment_at_a_higher_resolution():
    one = trace(4, 8)
    whole = painted(one, width=4000)
    half = painted(one, width=2000, begin=0.0, stop=scene([one]).stop / 2)
    same = np.abs(whole[:, :2000, :3].astype(int) - half[..., :3]).max(axis=-1)
    assert (same > 2).mean() < 0.005


def test_time_after_the_end_of_a_step_is_not_shown_as_idle():
    short, long = trace(2, 2), trace(2, 9)
    shown = scene([short, long])
    image = paint(shown, (0.0, shown.stop, shown.bottom_y, -0.5), 300, 240)
    line = image[-60]  # in the first trace
    after = round(300 * short.makespan / shown.stop) + 2
    assert line[after:, 3].max() == 0
    assert line[: after - 4, 3].min() == 255
