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
from pipelab.plots.series import size_text
from pipelab.plots.wording import literal, time_unit


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
    """From 0, so that what looks twice as high is twice as much."""
    axis = ax.yaxis if along == "y" else ax.xaxis
    name = QUANTITIES[y].column.partition(" [")[0]
    if y in ("bubble_fraction", "bubble_ratio", "span_bubble"):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        name = y
    elif y == "makespan":
        length, unit = time_unit(most)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / length:g}"))
        name = f"makespan [{unit}]"
    elif y == "peak_bytes":
        axis.set_major_formatter(FuncFormatter(lambda value, _: QUANTITIES[y].text(value)))
    else:
        name = f"{name} [micro-batches]" if y == "peak_activations" else name
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
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


def few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def notes(sweep: Sweep, y: str) -> list[str]:
    conditions = [literal(line, 110) for line in wrap(sweep.conditions, 105)]
    lines = [f"simulated clock · {y}: {QUANTITIES[y].definition}", *conditions]
    refused = list(
        dict.fromkeys(f"{literal(p.schedule, 24)} at m = {p.num_microbatches}" for p in sweep.refused)
    )
    if refused:
        lines.append(f"refused: {few(refused, 4)}")
    return lines


def terms(sweep: Sweep, y: str) -> str:
    return f"Simulated clock; {y} is {QUANTITIES[y].definition}; {sweep.conditions}"


def fixed(sweep: Sweep, x: str) -> str:
    """The sizes that all points share."""
    parts = []
    for size in ("num_ranks", "num_microbatches", "latency"):
        values = sweep.values(size)
        if size != x and len(values) == 1 and (size != "latency" or values[0] > 0):
            parts.append(size_text(size, values[0]))
    return ", ".join(parts) or "sizes as labelled"
