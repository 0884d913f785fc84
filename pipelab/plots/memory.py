"""What each rank keeps over the step: one row per rank, all rows on one scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.text import Text
from numpy.typing import NDArray

from pipelab.core.measured_memory import MeasuredMemory
from pipelab.core.memory import MemoryCurve
from pipelab.core.quantities import as_bytes
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.plots.artists import MOST_ROW_LABELS, plain_axes, set_headline, show_rows, show_seconds
from pipelab.plots.figure import MEASURED_RIGHT, MEMORY_RIGHT, give_words, new_axes
from pipelab.plots.palette import INK, MEMORY
from pipelab.plots.wording import counted, literal

FULL = 0.82  # of a row's height: the highest peak of all ranks
_LEGEND = "area: predicted (weights, gradients, activations); line: measured when an action ended"
_MOST_STEPS = 2000  # per curve; more are drawn as their upper envelope


def plot_memory(trace: Trace, *, measured: MeasuredMemory | None = None, ax: Axes | None = None) -> Axes:
    """Draw what each rank keeps over time: bytes where they are known, otherwise micro-batches in flight.

    Every rank has a row; all rows share one scale, and each rank's peak stands at its end. Bytes are weights,
    gradients and the activations kept from a forward to the end of its backward.

    Args:
        trace: of any clock.
        measured: what a step really held (`step.memory`), as a line over the area that `trace` predicts: the step's own
            trace, or a simulation of it.
        ax: where to draw; a new figure sized to the ranks when left out.

    Raises:
        PipelabError: `measured` is of another number of ranks, or `trace` does not know its bytes.
        TypeError: something else than a trace.

    Example:
        >>> import pipelab as pp
        >>> schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> ax = pp.plot_memory(pp.simulate(schedule, pp.Costs.uniform(4)))
        >>> print(ax.get_title())
        1f1b: peak 4 micro-batches in flight on rank 0
        simulated clock · kept from a forward to the end of its backward
    """
    if isinstance(trace, MeasuredMemory):
        raise TypeError(
            "plot_memory() takes a trace first: pp.plot_memory(step.trace, measured=step.memory)."
        )
    curves = trace.memory()
    found = () if measured is None else _beside(measured, trace)
    labels = [f"rank {curve.rank}" for curve in curves]
    if ax is None:
        right = MEMORY_RIGHT if measured is None else MEASURED_RIGHT
        ax = new_axes(len(curves), labels, title_lines=2, right=right)
        give_words(ax, describe_memory(trace, measured))
    stops = [trace.makespan, *([] if measured is None else [measured.trace.makespan])]
    MemoryArtists(ax).show(curves, max(stops) or 1.0, found)
    if measured is None:
        sentence, clock, what = _peak_sentence(curves), f"{trace.clock} clock", _kept(curves)
    else:
        sentence, what = f"measured {_peak_sentence(found)}, predicted {_highest(curves)}", _LEGEND
        clocks = dict.fromkeys((trace.clock, measured.trace.clock))
        clock = f"{' and '.join(clocks)} clock"
    set_headline(ax, f"{literal(trace.label)}: {sentence}\n{clock} · {what}")
    return ax


def describe_memory(trace: Trace, measured: MeasuredMemory | None = None) -> str:
    """The picture of `plot_memory` in a sentence."""
    curves = trace.memory()
    peaks = ", ".join(f"rank {curve.rank} {_amount(curve.peak, curve.unit)}" for curve in curves[:16])
    start = f"Memory of {trace.label}, {trace.clock} clock: "
    if measured is None:
        return f"{start}{_peak_sentence(curves)}. Peaks: {peaks}."
    found = measured.memory()
    theirs = ", ".join(f"rank {curve.rank} {as_bytes(curve.peak)}" for curve in found[:16])
    return (
        f"{start}predicted as an area, measured on the {measured.trace.clock} clock as a line over it. "
        f"Measured peaks: {theirs}. Predicted peaks: {peaks}."
    )


def _beside(measured: MeasuredMemory, trace: Trace) -> tuple[MemoryCurve, ...]:
    if not isinstance(measured, MeasuredMemory):
        raise TypeError(f"measured must be step.memory, not {type(measured).__name__}.")
    if measured.trace.num_ranks != trace.num_ranks:
        raise PipelabError(
            f"measured is of {measured.trace.num_ranks} ranks, and {trace.label} has {trace.num_ranks}. Lay it over "
            f"measured.trace, or over a simulation of measured.trace.schedule."
        )
    if trace.bytes is None:
        raise PipelabError(
            f"How many bytes the stages of {trace.label} hold is not known, so there is nothing to lay the measured "
            f"ones over. Use step.trace, or a simulation with profile.costs(...)."
        )
    return measured.memory()


class MemoryArtists:
    """The steps of all ranks and their peaks, made once and moved afterwards.

    Attributes:
        axes: where.

    Args:
        axes: where.
        most_labels: of more ranks than this, only some are named.
    """

    def __init__(self, axes: Axes, most_labels: int = MOST_ROW_LABELS) -> None:
        self.axes = axes
        self._most_labels = most_labels
        self._steps = PolyCollection([], facecolors=MEMORY, edgecolors=MEMORY, linewidths=0.6, zorder=2)
        self._lines = LineCollection([], colors=INK, linewidths=1.1, zorder=4)
        self._floors = PolyCollection([], facecolors="none", edgecolors=INK, linewidths=0.4, zorder=3)
        axes.add_collection(self._steps, autolim=False)
        axes.add_collection(self._floors, autolim=False)
        axes.add_collection(self._lines, autolim=False)
        self._peaks: list[Text] = []
        plain_axes(axes)

    def show(self, curves: Sequence[MemoryCurve], stop: float, measured: Sequence[MemoryCurve] = ()) -> None:
        """Draw other curves in place of the last ones.

        Args:
            curves: one a rank, as areas.
            stop: the end of the time axis, seconds.
            measured: as lines over them; none, or one a rank.
        """
        axes = self.axes
        axes.set_xlim(0.0, stop)
        axes.set_ylim(len(curves) + 0.5, 0.5)
        row_y = np.arange(1, len(curves) + 1)
        most = max(curve.peak for curve in [*curves, *measured]) or 1.0
        self._steps.set_verts(
            [_outline(curve, stop, y + 0.5, FULL / most) for curve, y in zip(curves, row_y, strict=True)]
        )
        rows = zip(measured, row_y, strict=False)
        self._lines.set_segments([_outline(curve, stop, y + 0.5, FULL / most)[1:-1] for curve, y in rows])
        self._floors.set_verts([[(0.0, y + 0.5), (stop, y + 0.5)] for y in row_y])
        shown = show_rows(axes, row_y, [f"rank {curve.rank}" for curve in curves], self._most_labels)
        show_seconds(axes, stop)
        words = [f"peak {_amount(curve.peak, curve.unit)}" for curve in curves]
        if measured:
            pairs = zip(measured, curves, strict=True)
            words = [f"{as_bytes(m.peak)} measured\n{as_bytes(c.peak)} predicted" for m, c in pairs]
        self._show_peaks([(row_y[n], words[n]) for n in shown])

    def show_title(self, curves: Sequence[MemoryCurve], clock: str) -> None:
        """A short title, for axes that lie below a timeline."""
        set_headline(self.axes, f"memory, {clock}: {_peak_sentence(curves)} ({_kept(curves)})", size=8.5)

    def _show_peaks(self, peaks: Sequence[tuple[float, str]]) -> None:
        beside = self.axes.get_yaxis_transform()
        while len(self._peaks) < len(peaks):
            self._peaks.append(
                self.axes.text(1.008, 0, "", transform=beside, va="center", fontsize=8.5, color=INK)
            )
        for number, text in enumerate(self._peaks):
            text.set_visible(number < len(peaks))
            if number < len(peaks):
                text.set_y(peaks[number][0])
                text.set_text(peaks[number][1])


def _outline(curve: MemoryCurve, stop: float, floor: float, scale: float) -> NDArray[np.float64]:
    """The steps of a curve until `stop` as a polygon that stands on `floor`; upwards is smaller y."""
    time, value = np.append(curve.time, stop), np.append(curve.value, curve.value[-1])
    if len(time) > _MOST_STEPS:
        time, value = _envelope(time, value)
    points = np.empty((2 * len(time) + 1, 2))
    points[0] = time[0], floor
    points[1::2, 0] = time
    points[2:-1:2, 0] = time[1:]
    points[-1] = time[-1], floor
    points[1::2, 1] = floor - scale * value
    points[2:-1:2, 1] = floor - scale * value[:-1]
    return points


def _envelope(time: NDArray[np.float64], value: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Fewer steps that lie nowhere below the curve: a picture may blur a peak, it must not lose it."""
    edges = np.linspace(time[0], time[-1], _MOST_STEPS + 1)
    first = np.searchsorted(time, edges, side="right") - 1  # the step in force at each edge
    highest = np.maximum.reduceat(value, first[:-1])
    highest = np.maximum(highest, value[first[1:]])
    return edges, np.append(highest, value[-1])


def _highest(curves: Sequence[MemoryCurve]) -> str:
    highest = max(curves, key=lambda curve: curve.peak)
    return f"{as_bytes(highest.peak)} on rank {highest.rank}"


def _amount(value: float, unit: str) -> str:
    return as_bytes(value) if unit == "bytes" else f"{value:g}"


def _peak_sentence(curves: Sequence[MemoryCurve]) -> str:
    highest = max(curves, key=lambda curve: curve.peak)
    if highest.unit == "bytes":
        return f"peak {as_bytes(highest.peak)} on rank {highest.rank}"
    number = int(highest.peak)
    return f"peak {counted(number, 'micro-batch', 'micro-batches')} in flight on rank {highest.rank}"


def _kept(curves: Sequence[MemoryCurve]) -> str:
    kept = "kept from a forward to the end of its backward"
    return f"weights, gradients, and activations {kept}" if curves[0].unit == "bytes" else kept
