"""How long pictures take: a figure of 131,072 actions, the columns of a live timeline, and the PNG saved with it.

    python benchmarks/picture.py

Drawn to pixels without a screen. A figure is what `plot_timeline` makes in a notebook cell. Columns are the kernel's
share of a live timeline, when only costs changed: simulation, report, words, packing; the browser draws them. For
whole ticks of the Lab see widget.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

import pipelab as pp

ANEW = (("1f1b", 64, 1024, 1), ("zb-h1", 32, 1366, 1), ("zb-v", 32, 683, 2), ("dualpipev", 32, 1904, 2))
LIVE = (
    ("1f1b", 16, 64, 1),
    ("1f1b", 8, 128, 1),
    ("zb-h1", 8, 85, 1),
    ("zb-v", 8, 43, 2),
    ("dualpipe", 8, 198, 1),
    ("1f1b", 64, 16, 1),
)
REPEATS = 20


def milliseconds(action: Callable[[int], object]) -> tuple[float, float, float]:
    """Minimum, median and maximum of so many calls, after two warm-up calls."""
    times = []
    for number in range(REPEATS + 2):
        begin = time.perf_counter()
        action(number)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times[2:]), statistics.median(times[2:]), max(times[2:])


def row(what: str, limit: str, times: tuple[float, float, float]) -> None:
    print(f"{what:<66} {limit:>8}   {times[0]:7.1f} {times[1]:7.1f} {times[2]:7.1f}")


def built(name: str, p: int, m: int, v: int) -> pp.Schedule:
    return pp.schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)


def anew(name: str, p: int, m: int, v: int) -> None:
    order = built(name, p, m, v)
    trace = pp.simulate(order, pp.Costs.uniform(order.num_model_stages))

    def draw(number: int) -> None:
        ax = pp.plot_timeline(trace)
        ax.figure.canvas.draw()
        plt.close(ax.figure)

    row(f"anew, {name} ({p}, {m}): {len(trace.start):,} actions", "< 100", milliseconds(draw))


def live(name: str, p: int, m: int, v: int) -> None:
    order = built(name, p, m, v)
    stages = order.num_model_stages
    costs = [pp.Costs.uniform(stages, forward=1 + 0.1 * k, latency=0.1 * k) for k in range(4)]
    view = pp.TimelineView(pp.simulate(order, costs[0]))

    def show(number: int) -> None:
        view.show(pp.simulate(order, costs[number % 4]))

    what = f"columns for other costs, {name} ({p}, {m}): {order.table.num_cells:,} actions"
    row(what, "", milliseconds(show))
    if order.table.num_cells < 4096:
        row(f"  the PNG that is saved, {name} ({p}, {m})", "", milliseconds(lambda _: view.png()))
    view.close()


def main() -> None:
    print(f"{'milliseconds, (ranks, micro-batches)':<66} {'limit':>8}   {'min':>7} {'median':>7} {'max':>7}")
    for sizes in ANEW:
        anew(*sizes)
    for sizes in (*LIVE, ANEW[0]):
        live(*sizes)


if __name__ == "__main__":
    main()
