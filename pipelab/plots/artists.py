"""The artists of a timeline, made once and moved afterwards: a slider's tick must not rebuild a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from pipelab.plots.palette import HATCH, IDLE, INK, INKS, LEGEND, PAINTS
from pipelab.plots.raster import CoverageRaster
from pipelab.plots.scene import Scene
from pipelab.plots.wording import time_unit

NUMBER_POINTS = 8.0
_DIGIT = 0.62 * NUMBER_POINTS  # the width of one, in points
_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
SMALL_POINTS = 8.5
MOST_ROW_LABELS = 20  # each costs a third of a millisecond, and nobody reads more


class TimelineArtists:
    """What is drawn for a scene: idle spans, boxes with numbers (or coverage per pixel when crowded), row labels.

    Attributes:
        axes: where.

    Args:
        axes: where.
        most_polygons: with more boxes they are painted pixel by pixel, which is faster and hardly looks different.
    """

    def __init__(self, axes: Axes, most_polygons: int = 4096) -> None:
        self.axes = axes
        self._most_polygons = most_polygons
        self._idle = PolyCollection(
            [], facecolors=IDLE, edgecolors=HATCH, linewidths=0.0, hatch="////", zorder=1
        )
        self._boxes = PolyCollection([], edgecolors="white", linewidths=0.5, zorder=2)
        self._boxes.set_snap(False)  # snapped to whole pixels, a narrow box has none
        self._underlines = PolyCollection([], linewidths=0.0, zorder=3)
        self._numbers = PathCollection([], linewidths=0.0, offset_transform=axes.transData, zorder=3)
        self._raster: CoverageRaster | None = None
        self._paints: tuple[int, ...] = ()
        self._headers: list[Text] = []
        for artist in (self._idle, self._boxes, self._underlines, self._numbers):
            axes.add_collection(artist, autolim=False)
        plain_axes(axes)

    def show(self, scene: Scene, headers: Sequence[str] = ()) -> None:
        """Draw another scene in place of the last one.

        Args:
            headers: a text for each trace, above its rows; already safe for matplotlib.
        """
        axes, self._paints = self.axes, tuple(np.unique(scene.paint).tolist())
        first = 0.5 - (1.0 if scene.header_y else 0.5) if len(scene.row_y) else 0.0
        axes.set_xlim(0.0, scene.stop)
        axes.set_ylim(scene.bottom_y, min(first, float(scene.row_y.min(initial=0.5)) - 0.5))
        pixels_wide, pixels_high = _pixels(axes)
        crowded = scene.crowded(pixels_wide, self._most_polygons)
        self._show_raster(scene if crowded else None)
        self._idle.set_visible(not crowded)
        self._boxes.set_visible(not crowded)
        if not crowded:
            self._idle.set_verts(scene.spans())  # type: ignore[arg-type]
            self._show_boxes(scene, pixels_wide)
        self._show_numbers(scene, pixels_wide, pixels_high)
        self._show_headers(scene, headers)
        show_rows(axes, scene.row_y, scene.row_labels)
        show_seconds(axes, scene.stop)

    @property
    def named(self) -> tuple[tuple[int, ...], bool]:
        """What a legend has to name: the colours that occur, and whether numbers are underlined."""
        return self._paints, self._underlines.get_visible()

    def _show_boxes(self, scene: Scene, pixels_wide: float) -> None:
        """White edges part neighbours; a narrow box has none and lies on top, or edges would wipe it out."""
        narrow = (scene.end - scene.start) * pixels_wide / scene.stop < 4.0
        order = np.argsort(narrow, kind="stable")
        self._boxes.set_verts(scene.boxes()[order])  # type: ignore[arg-type]
        self._boxes.set_facecolor(np.array(PAINTS)[scene.paint[order]])  # type: ignore[arg-type]
        self._boxes.set_linewidth(np.where(narrow[order], 0.0, 0.5))  # type: ignore[arg-type]

    def _show_raster(self, scene: Scene | None) -> None:
        if scene is not None and self._raster is None:
            self._raster = CoverageRaster(scene)
            self._raster.set_zorder(2)
            self.axes.add_artist(self._raster)
        if self._raster is not None:
            self._raster.set_visible(scene is not None)
            if scene is not None:
                self._raster.scene = scene
                self._raster.stale = True

    def _show_numbers(self, scene: Scene, pixels_wide: float, pixels_high: float) -> None:
        """Numbers where they fit, as one collection of glyphs: a Text for each would take ten times as long.

        Those of a rank's later stages are underlined.
        """
        per_point = _dots_per_inch(self.axes) / 72.0
        points_per_row = pixels_high / abs(np.subtract(*self.axes.get_ylim())) / per_point
        points_per_second = pixels_wide / scene.stop / per_point
        wide = _DIGIT * (1 + np.floor(np.log10(np.maximum(scene.number, 1))))
        tall = (scene.bottom - scene.top) * points_per_row >= NUMBER_POINTS + 1
        fits = np.flatnonzero(tall & ((scene.end - scene.start) * points_per_second >= wide + 2))
        self._numbers.set_visible(bool(len(fits)))
        self._underlines.set_visible(bool(scene.later[fits].any()))
        if not len(fits):
            return
        glyphs = [_glyph(number) for number in scene.number[fits].tolist()]
        middle = scene.row_y[scene.row] + (scene.top + scene.bottom) / 2
        places = np.column_stack([(scene.start + scene.end) / 2, middle])
        colours = np.array(INKS)[scene.paint]
        self._numbers.set_paths(glyphs)
        self._numbers.set_offsets(places[fits])
        self._numbers.set_facecolor(colours[fits])  # type: ignore[arg-type]
        self._numbers.set_transform(_figure(self.axes).dpi_scale_trans)
        lined = fits[scene.later[fits]]
        if len(lined):
            half = np.column_stack(
                [wide[lined] / 2 / points_per_second, np.full(len(lined), 0.45 / points_per_row)]
            )
            below = places[lined] + (0.0, (NUMBER_POINTS / 2 + 0.6) / points_per_row)
            self._underlines.set_verts(below[:, None] + half[:, None] * _CORNERS)  # type: ignore[arg-type]
            self._underlines.set_facecolor(colours[lined])  # type: ignore[arg-type]

    def _show_headers(self, scene: Scene, headers: Sequence[str]) -> None:
        beside = self.axes.get_yaxis_transform()
        while len(self._headers) < len(scene.header_y):
            text = self.axes.text(0, 0, "", transform=beside, va="center", fontsize=SMALL_POINTS, color=INK)
            self._headers.append(text)
        for number, text in enumerate(self._headers):
            shown = number < len(scene.header_y)
            text.set_visible(shown)
            if shown:
                text.set_y(scene.header_y[number] + 0.1)
                text.set_text(headers[number])


def show_rows(
    axes: Axes, row_y: Sequence[float] | np.ndarray, labels: Sequence[str], most: int = MOST_ROW_LABELS
) -> Sequence[int]:
    """Label the rows, or every second, fourth ... where they are too low for all labels; returns which."""
    room = min(most, len(labels) * points_per_row(axes) / (SMALL_POINTS + 1.5))
    every = next(n for n in (2**k for k in range(31)) if len(labels) <= n * max(room, 1.0))
    shown = range(0, len(labels), every)
    axes.set_yticks([row_y[n] for n in shown], [labels[n] for n in shown])
    return shown


def show_seconds(axes: Axes, stop: float) -> None:
    """Label the time axis, whose data are seconds, in the unit that suits its length."""
    length, name = time_unit(stop)
    axes.xaxis.set_major_formatter(FuncFormatter(partial(_tick_text, length)))
    axes.set_xlabel(f"time [{name}]", loc="left")


def _tick_text(length: float, seconds: float, position: int | None = None) -> str:
    return f"{seconds / length:g}"


LEGEND_STYLE: dict[str, Any] = {
    "frameon": False,
    "fontsize": SMALL_POINTS,
    "borderaxespad": 0.0,
    "handlelength": 1.2,
    "columnspacing": 1.2,
    "handletextpad": 0.5,
    "ncols": 8,
}


def legend_patches(paints: Iterable[int], is_underlined: bool = False) -> list[Artist]:
    """What the legend names.

    Args:
        paints: the colours that occur.
        is_underlined: whether numbers are underlined where a rank has several stages.
    """
    used = set(paints)
    patches = [Patch(facecolor=colour, label=name) for n, (name, colour) in enumerate(LEGEND) if n in used]
    idle = Patch(facecolor=IDLE, edgecolor=HATCH, hatch="////", linewidth=0.0, label="idle")
    later = Line2D([], [], color=INK, linewidth=0.9, label="underlined: a rank's later stage")
    return [*patches, idle, *([later] if is_underlined else [])]


def add_legend(axes: Axes, patches: Sequence[Artist]) -> None:
    """A legend below the right end of the time axis, where no box can lie."""
    below = -0.24 / (_pixels(axes)[1] / _dots_per_inch(axes))
    axes.legend(handles=list(patches), loc="upper right", bbox_to_anchor=(1.0, below), **LEGEND_STYLE)


def set_headline(axes: Axes, text: str, size: float = 10.0) -> None:
    """The title, flush with the time axis; already safe for matplotlib."""
    axes.set_title(text, x=0.0, y=1.0, ha="left", fontsize=size, color=INK, linespacing=1.35)


def plain_axes(axes: Axes) -> None:
    """Axes with a time axis below and nothing else around."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=SMALL_POINTS, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=SMALL_POINTS, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.label.set(fontsize=SMALL_POINTS, color=INK, ha="left")
    # A fixed place for the axis' name, left of the legend: finding one means measuring every tick label, each time.
    below = axes.transAxes + ScaledTranslation(0.0, -0.3, _figure(axes).dpi_scale_trans)
    axes.xaxis.set_label_coords(0.0, 0.0, transform=below)


@lru_cache(maxsize=4096)
def _glyph(number: int) -> Path:
    """The outline of a number, centred on (0, 0), in inches."""
    path = TextPath((0, 0), str(number), size=NUMBER_POINTS)
    box = path.get_extents()
    centred = path.vertices - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
    return Path(centred / 72.0, path.codes)


def _figure(axes: Axes) -> Figure:
    figure = axes.figure
    assert figure is not None
    return figure if isinstance(figure, Figure) else figure.get_figure(root=True)


def points_high(axes: Axes) -> float:
    """The height of the axes in points, of which 72 are an inch."""
    return 72.0 * _pixels(axes)[1] / _dots_per_inch(axes)


def points_per_row(axes: Axes) -> float:
    """The height of a row, where rows are 1 high in data."""
    return points_high(axes) / abs(float(np.subtract(*axes.get_ylim())))


def _dots_per_inch(axes: Axes) -> float:
    return float(_figure(axes).dpi)


def _pixels(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes, in dots."""
    return axes.bbox.width, axes.bbox.height
