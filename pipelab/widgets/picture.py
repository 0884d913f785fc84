"""The Lab's picture: one figure, made once, redrawn in place, and handed out as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelab.core.memory import MemoryCurve
from pipelab.core.trace import Trace
from pipelab.plots.artists import LEGEND_STYLE, TimelineArtists, legend_patches, set_headline
from pipelab.plots.figure import (
    BOTTOM,
    MEMORY_RIGHT,
    MEMORY_TITLE,
    RIGHT,
    TITLE_LINE,
    WIDTH,
    left_inches,
    memory_inches,
    row_inches,
)
from pipelab.plots.headline import describe_timeline
from pipelab.plots.memory import MemoryArtists, describe_memory
from pipelab.plots.scene import Scene, scene
from pipelab.plots.timeline import show_timelines, title_of
from pipelab.widgets.png import encode

DPI = 100


class Picture:
    """Timelines, and what they keep, as a PNG.

    The figure belongs to no backend's list of figures, so nothing of it is left when the picture is dropped.

    Attributes:
        text: the picture in words, of what was drawn last.
    """

    def __init__(self) -> None:
        self._figure = Figure(figsize=(WIDTH, 3.0), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._timeline = TimelineArtists(self._figure.add_axes((0.1, 0.2, 0.8, 0.6)), most_polygons=256)
        self._memory: MemoryArtists | None = None
        self._legend = _legend((), False)
        self.text = ""

    def draw(
        self,
        traces: Sequence[Trace],
        remarks: Sequence[str] = (),
        *,
        memory: bool = False,
        same_plan: bool = True,
    ) -> None:
        """Show traces below one another.

        Args:
            remarks: a sentence for each trace, or "".
            memory: also what the first trace keeps.
            same_plan: whether the traces are of one plan, so that their makespans may be compared.
        """
        reports = [trace.report() for trace in traces]
        shown = scene(traces)
        curves = traces[0].memory() if memory else ()
        title = title_of(traces, reports, remarks, same_plan)
        self._place(shown, len(traces), len(curves), title.count("\n") + 1)
        show_timelines(self._timeline, shown, traces, reports, remarks)
        set_headline(self._timeline.axes, title)
        self._show_memory(curves, shown.stop, traces[0].clock)
        self._legend = _legend(*self._timeline.named)
        self._canvas.draw()
        sentences = [describe_timeline(trace, report) for trace, report in zip(traces, reports, strict=True)]
        self.text = " ".join([*sentences, describe_memory(traces[0])] if memory else sentences)

    def png(self) -> bytes:
        """What was drawn last."""
        pixels = np.array(np.asarray(self._canvas.buffer_rgba())[..., :3])
        height, width = self._legend.shape[:2]
        pixels[-height:, -width:] = self._legend
        return encode(pixels)

    def _place(self, shown: Scene, traces: int, memory_rows: int, title_lines: int) -> None:
        """Give every part its room, in inches, so that no layout has to be computed."""
        rows = len(shown.row_y) + (traces if traces > 1 else 0)
        upper, lower = row_inches(rows), memory_inches(memory_rows)
        height = BOTTOM + lower + upper + 0.12 + title_lines * TITLE_LINE
        left, right = left_inches(shown.row_labels), MEMORY_RIGHT if memory_rows else RIGHT
        self._figure.set_size_inches(WIDTH, height)

        def box(bottom: float, tall: float) -> tuple[float, float, float, float]:
            return left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, tall / height

        self._timeline.axes.set_position(box(BOTTOM + lower, upper))
        if memory_rows:
            if self._memory is None:
                self._memory = MemoryArtists(self._figure.add_axes((0.1, 0.1, 0.8, 0.2)), most_labels=8)
            self._memory.axes.set_position(box(BOTTOM, lower - MEMORY_TITLE))

    def _show_memory(self, curves: Sequence[MemoryCurve], stop: float, clock: str) -> None:
        if self._memory is not None:
            self._memory.axes.set_visible(bool(curves))
            self._timeline.axes.tick_params(axis="x", labelbottom=not curves)
        if curves and self._memory is not None:
            self._memory.show(curves, stop)
            self._memory.show_title(curves, clock)
            self._timeline.axes.set_xlabel("")


@lru_cache(maxsize=16)
def _legend(paints: tuple[int, ...], is_underlined: bool) -> NDArray[np.uint8]:
    """The legend as pixels. It is the same at every tick, and drawing it takes as long as all boxes."""
    figure = Figure(figsize=(6.5, 0.28), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.legend(handles=legend_patches(paints, is_underlined), loc="center right", **LEGEND_STYLE)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    inked = np.flatnonzero((pixels < 255).any(axis=(0, 2)))
    return np.array(pixels[:, inked[0] :])
