"""What the pictures of a sweep share: axes of sizes and of quantities, and the words around them."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipelab.core.sweep import QUANTITIES, Sweep
from pipelab.plots.artists import SMALL_POINTS
from pipelab.plots.palette import INK
from pipelab.plots.series import size_text, within
from pipelab.plots.wording import literal, time_unit

SHARES = ("bubble_fraction", "bubble_ratio", "span_bubble")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def size_axis(ax: Axes, x: str, values: np.ndarray) -> None:
    if values[0] > 0 and values[-1] >= 8 * values[0]:
        ax.set_xscale("log", base=2)
    if x != "latency":
        ax.xaxis.set_minor_locator(NullLocator())
        shown = values if len(values) <= 12 else values[:: -(-len(values) // 12)]
        ax.set_xticks(shown, [f"{value:g}" for value in shown])
    names = {
        "num_microbatches": "micro-batches m",
        "num_ranks": "ranks p",
        "stages_per_rank": "stages per rank v",
    }
    ax.set_xlabel(names.get(x, "latency of a transfer [s]"), fontsize=SMALL_POINTS, color=INK)


def quantity_axis(ax: Axes, y: str, most: float, along: Literal["x", "y"] = "y") -> None:
    """From 0, so that what looks twice as high is twice as much, with ticks that are round in the axis' own unit."""
    axis = ax.yaxis if along == "y" else ax.xaxis
    name, unit = axis_unit(y, most)
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(y, value / unit)))
    axis.set_major_locator(_RoundLocator(unit))
    top = 1.06 * (most or 1.0)
    if along == "y":
        ax.set_ylim(0.0, top)
        ax.set_ylabel(name, fontsize=SMALL_POINTS, color=INK)
    else:
        ax.set_xlim(0.0, top)
        ax.set_xlabel(name, fontsize=SMALL_POINTS, color=INK, loc="left")
    ax.grid(axis=along, color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=SMALL_POINTS, labelcolor=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def axis_unit(y: str, most: float) -> tuple[str, float]:
    """What the axis of a quantity is called, and how much one of its units is."""
    name = QUANTITIES[y].column.partition(" [")[0]
    if y in SHARES:
        return y, 0.01
    if y == "makespan":
        seconds, unit = time_unit(most)
        return f"{name} [{unit}]", seconds
    if y == "peak_bytes":
        power = sum(most >= 1024**k for k in range(1, len(_BYTES)))
        return f"{name} [{_BYTES[power]}]", 1024.0**power
    return (f"{name} [micro-batches]" if y == "peak_activations" else name), 1.0


def tick_text(y: str, units: float) -> str:
    return f"{units:g}{' %' if y in SHARES else ''}"


class _RoundLocator(MaxNLocator):
    """At most seven ticks, at round multiples of a unit: of 1 GiB, not of a thousand million bytes."""

    def __init__(self, unit: float) -> None:
        super().__init__(6, steps=[1, 2, 2.5, 5, 10])
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [self._unit * n for n in super().tick_values(vmin / self._unit, vmax / self._unit)]


def few(names: Sequence[str], most: int = 3) -> str:
    shown = within(names[:most])
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def notes(sweep: Sweep, y: str, *others: str) -> list[str]:
    """The lines below the first of a title; `others` are further quantities that are drawn."""
    conditions = [literal(line, 110) for line in wrap(sweep.conditions, 105)]
    lines = [f"simulated clock · {y}: {QUANTITIES[y].definition}", *conditions]
    refused = list(
        dict.fromkeys(f"{literal(p.schedule, 24)} at m = {p.num_microbatches}" for p in sweep.refused)
    )
    if refused:
        lines.append(f"refused: {few(refused, 4)}")
    if infinite := _infinite(sweep, y, *others):
        lines.append(infinite)
    return lines


def terms(sweep: Sweep, y: str, *others: str) -> str:
    """What a picture's words say first; `others` are further quantities that are drawn."""
    said = [f"{y} is {QUANTITIES[y].definition}", sweep.conditions, _infinite(sweep, y, *others)]
    return "; ".join(["Simulated clock", *filter(None, said)])


def _infinite(sweep: Sweep, *quantities: str) -> str:
    """Which points no picture can show, or ""."""
    left_out = [p for p in sweep if any(np.isinf(p.value(name)) for name in quantities)]
    names = dict.fromkeys(f"{literal(p.schedule, 24)} at m = {p.num_microbatches}" for p in left_out)
    return f"infinite, so left out: {few(list(names), 4)}" if names else ""


def fixed(sweep: Sweep, x: str) -> str:
    """What all points share."""
    parts = []
    for size in ("num_ranks", "num_microbatches", "latency"):
        values = sweep.values(size)
        if size != x and len(values) == 1 and (size != "latency" or values[0] > 0):
            parts.append(size_text(size, values[0]))
    texts = {point.links_text for point in sweep}
    parts += texts if len(texts) == 1 and "" not in texts else ()
    return ", ".join(parts) or "sizes as labelled"
