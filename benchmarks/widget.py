"""How long the kernel works on one slider tick of the Lab (for pictures alone see picture.py).

    python benchmarks/widget.py

A tick is what a front end sets off by moving a slider or a border: a new schedule or split, simulation, report, the
columns of the timeline, the stages of the editor, and the messages to the front end (which is not there: they are built
and dropped). No model and no torch are involved. Below a tick stands what its parts take alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import matplotlib

matplotlib.use("agg")

import pipelab as pp
from pipelab.core.profile import Affine

REPEATS = 30


def profile_of(layers: int) -> pp.Profile:
    cost = [Affine(1e-4, 2e-4 * (1 + number % 3)) for number in range(layers)]
    held = [Affine(0.0, 4e5)] * layers
    names = [f"blocks.{number}" for number in range(layers)]
    return pp.Profile(names, cost, cost, cost, [4_000_000] * layers, held, held, 4, (2, 4, 8), "cpu")


def milliseconds(action: Callable[[int], object], repeats: int = REPEATS) -> tuple[float, float, float]:
    """Minimum, median and maximum of so many calls, after two warm-up calls."""
    times = []
    for number in range(repeats + 2):
        begin = time.perf_counter()
        action(number)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times[2:]), statistics.median(times[2:]), max(times[2:])


def row(what: str, limit: str, times: tuple[float, float, float]) -> None:
    print(f"{what:<58} {limit:>8}   {times[0]:7.1f} {times[1]:7.1f} {times[2]:7.1f}")


def ticks(num_ranks: int, num_microbatches: int, limit: str) -> None:
    size = f"({num_ranks}, {num_microbatches})"
    cuts = [f"blocks.{number}" for number in range(3, 3 * num_ranks, 3)]
    lab = pp.Lab.from_profile(
        profile_of(4 * num_ranks),
        batch_size=4 * num_microbatches,
        schedule="1f1b",
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        split=cuts,
    )
    controls, upper = lab._controls, lab._gallery.upper
    other = [pp.Split([*cuts[:2], name, *cuts[3:]]) for name in ("blocks.9", "blocks.10")]

    def move_microbatches(number: int) -> None:
        controls.choices.num_microbatches = num_microbatches - number % 2

    def move_border(number: int) -> None:
        controls.editor.split = other[number % 2]

    row(f"tick of the micro-batch slider, {size}", limit, milliseconds(move_microbatches))
    row(f"tick of a border, {size}", limit, milliseconds(move_border))
    lab.memory = True
    row(f"tick of a border, {size}, with memory", "", milliseconds(move_border))
    lab.memory, lab.critical_path = False, True
    row(f"tick of a border, {size}, with the critical path", "", milliseconds(move_border))
    lab.critical_path = False
    setting = lab._setting
    traces = [setting.changed(split=split).predicted for split in other]
    alone = pp.SplitEditor(lab.profile, split=other[0])
    row(
        "  setting, simulation, report",
        "",
        milliseconds(lambda n: setting.changed(split=other[n % 2]).report),
    )
    row("  the timeline", "", milliseconds(lambda n: upper.show(traces[n % 2])))
    row("  the editor", "", milliseconds(lambda n: setattr(alone, "split", other[n % 2])))
    row("  the picture that is saved (not part of a tick)", "", milliseconds(lambda n: lab.png(), 5))
    alone.close()
    lab.close()


def main() -> None:
    print(
        f"{'milliseconds, 1f1b, (ranks, micro-batches)':<58} {'limit':>8}   {'min':>7} {'median':>7} {'max':>7}"
    )
    ticks(8, 64, "< 5")
    ticks(16, 256, "< 10")


if __name__ == "__main__":
    main()
