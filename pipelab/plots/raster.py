"""An artist for pictures with more actions than pixels: it paints each pixel by how long each colour was there."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist, allow_rasterization
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from numpy.typing import NDArray

from pipelab.plots.coverage import coverage
from pipelab.plots.palette import HATCH, IDLE, PAINTS, rgb
from pipelab.plots.scene import HALF, Scene

_COLOURS = rgb(PAINTS)
_IDLE, _HATCH = rgb((IDLE, HATCH))
_STROKES = 8  # pixels from one stroke over idle time to the next


class CoverageRaster(Artist):
    """Paints a scene pixel by pixel for whatever part of it the axes show, at the resolution they are drawn at.

    Because the pixels are made while drawing, zooming in shows more, and saving at more dots per inch does too.

    Attributes:
        scene: what is painted; may be replaced.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Paint what lies inside the axes."""
        axes = self.axes
        if not self.get_visible() or not isinstance(axes, Axes):
            return
        magnification = renderer.get_image_magnification()
        box = axes.bbox
        width, height = round(box.width * magnification), round(box.height * magnification)
        if width < 1 or height < 1:
            return
        limits = (*axes.get_xlim(), *axes.get_ylim())
        image = paint(self.scene, limits, width, height)
        context = renderer.new_gc()
        context.set_clip_rectangle(box)
        renderer.draw_image(context, round(box.x0), round(box.y0), image)
        context.restore()
        self.stale = False


def paint(
    scene: Scene, limits: tuple[float, float, float, float], width: int, height: int
) -> NDArray[np.uint8]:
    """The scene as pixels, shape (height, width, 4), the first line at the bottom.

    Args:
        limits: left, right, bottom and top of the axes: seconds, seconds, rows, rows.
    """
    left, right, bottom, top = limits
    begin, stop = min(left, right), max(left, right)
    rows = _row_colours(scene, begin, stop, width)
    if right < left:
        rows = rows[:, ::-1]
    y = bottom + (np.arange(height) + 0.5) * (top - bottom) / height
    nearest = np.clip(np.searchsorted(scene.row_y, y + 0.5) - 1, 0, len(scene.row_y) - 1)
    inside = np.abs(y - scene.row_y[nearest]) <= _half_height(height / abs(top - bottom))
    image = np.zeros((height, width, 4), dtype=np.uint8)
    lines = np.flatnonzero(inside)
    for phase in range(_STROKES):  # rows of the same phase look the same, strokes included
        rows_now = lines[lines % _STROKES == phase]
        image[rows_now] = _hatched(rows, phase)[nearest[rows_now]]
    return image


def _half_height(pixels_per_row: float) -> float:
    """Half of a band's height: rows too low for a gap between them touch, so that none is lost."""
    return HALF if pixels_per_row >= 5 else 0.5


def _gap(scene: Scene, pixels_per_second: float) -> NDArray[np.float64]:
    """What each box gives up on either side, so that one sees where the next begins; narrow ones give nothing."""
    return np.clip(0.2 * ((scene.end - scene.start) * pixels_per_second - 3.0), 0.0, 0.4) / pixels_per_second


def _row_colours(scene: Scene, begin: float, stop: float, width: int) -> NDArray[np.uint8]:
    """The colours along each row, shape (rows, width, 4), and how much of each pixel is idle, as its opacity."""
    kinds, rows = len(PAINTS), len(scene.row_y)
    gap = _gap(scene, width / (stop - begin))
    covered = coverage(
        scene.row * kinds + scene.paint,
        scene.start + gap,
        scene.end - gap,
        num_slots=rows * kinds,
        width=width,
        begin=begin,
        stop=stop,
        share=(scene.bottom - scene.top) / (2 * HALF),
    ).reshape(rows, kinds, width)
    step = coverage(
        np.arange(rows),
        scene.row_spans[:, 0],
        scene.row_spans[:, 1],
        num_slots=rows,
        width=width,
        begin=begin,
        stop=stop,
    )
    busy = covered.sum(axis=1)
    covered /= np.maximum(busy, 1.0)[:, None]  # where actions of one row overlap
    busy = np.minimum(busy, 1.0)
    colours = np.empty((rows, width, 4), dtype=np.uint8)
    colours[..., :3] = np.einsum("rkw,kc->rwc", covered, _COLOURS) + (1.0 - busy)[..., None] * _IDLE + 0.5
    colours[..., 3] = np.where(step + busy > 0.5, 255, 0)
    return colours


def _hatched(rows: NDArray[np.uint8], phase: int) -> NDArray[np.uint8]:
    """The rows with the pixels that one line of the strokes touches, where idle."""
    hatched = rows.copy()
    touched = hatched[:, phase::_STROKES]
    touched[_is_idle(touched)] = (*_HATCH.astype(np.uint8), 255)
    return hatched


def _is_idle(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (colours[..., 3] > 0) & (colours[..., 0] >= 250)  # no paint has much red but the one of idle time
