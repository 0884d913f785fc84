"""What the core costs: building, checking, simulating, importing.

    python benchmarks/core.py

Prints one table; each line holds the least, the median and the most of several runs, beside the number to hold.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pipelab as pp
from pipelab.core.tables import text_table

SIZES = ((8, 64), (16, 256), (64, 1024))
NAMED = (("gpipe", 1), ("1f1b", 1), ("interleaved-1f1b", 2), ("zb-h1", 1))
"""Schedules with their stages a rank."""


def measure(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def line(what: str, times: list[float], unit: str, factor: float, limit: str) -> list[str]:
    """One row of the table."""
    values = (min(times), statistics.median(times), max(times))
    return [what, *(f"{value * factor:.3g}" for value in values), unit, limit]


def build(name: str, p: int, m: int, v: int) -> pp.Schedule:
    """Build and check one schedule."""
    return pp.schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)


def per_action() -> list[list[str]]:
    """Build and check, and simulate again, at three sizes."""
    rows = []
    for name, v in NAMED:
        for p, m in SIZES:
            repeats = 7 if p == 64 else 30
            one, costs = build(name, p, m, v), pp.Costs.uniform(p * v)
            size, unit = f"{name} ({p}, {m})", 1e6 / one.table.num_cells
            made = measure(lambda name=name, p=p, m=m, v=v: build(name, p, m, v), repeats)
            rows.append(line(f"build + check {size}", made, "us/action", unit, "1"))
            again = measure(lambda one=one, costs=costs: pp.simulate(one, costs), repeats)
            rows.append(line(f"simulate again {size}", again, "us/action", unit, "0.2"))
    return rows


def end_to_end() -> list[list[str]]:
    """Everything from the name of a schedule to its makespan, at the largest size."""

    def work(name: str, v: int) -> float:
        return pp.simulate(build(name, 64, 1024, v), pp.Costs.uniform(64 * v)).makespan

    return [
        line(
            f"build + check + simulate {name} (64, 1024)",
            measure(lambda name=name, v=v: work(name, v), 7),
            "s",
            1,
            "0.5",
        )
        for name, v in NAMED
    ]


def lanes() -> list[list[str]]:
    """Simulate again with further lanes, the report, and the period of chained steps."""
    rows = []
    for p, m in SIZES:
        one, plain, repeats = build("1f1b", p, m, 1), pp.Costs.uniform(p), 3 if p == 64 else 15
        serial = replace(plain, links=pp.Links(0.1, serial=True))
        feed = pp.Feed(prepare=3.0, workers=2)
        works = {
            "simulate + report": lambda one=one, plain=plain: pp.simulate(one, plain).report(),
            "serial links": lambda one=one, serial=serial: pp.simulate(one, serial),
            "updates": lambda one=one, p=p: pp.simulate(one, pp.Costs.uniform(p, update=1.0)),
            "a feed, compiled each time": lambda one=one, plain=plain, feed=feed: pp.simulate(
                one, plain, feed=feed
            ),
            "period": lambda one=one, plain=plain: pp.period(one, plain),
        }
        rows += [
            line(f"{what} ({p}, {m})", measure(work, repeats), "ms", 1e3, "") for what, work in works.items()
        ]
    return rows


def many_costs() -> list[str]:
    """1,000 cost vectors for one schedule."""
    one = pp.schedule("1f1b", num_ranks=8, num_microbatches=64)

    def work() -> object:
        many = [pp.Costs.uniform(8, forward=1 + k / 1000, latency=k / 1000) for k in range(1000)]
        return pp.simulate_many(one, many)

    return line("1,000 costs made and simulated (8, 64)", measure(work, 10), "s", 1, "0.15")


def imports() -> list[list[str]]:
    """What importing adds to the interpreter, in processes of their own."""

    def start(code: str) -> list[float]:
        return measure(lambda: subprocess.run([sys.executable, "-c", code], check=True), 7)

    bare = statistics.median(start("pass"))
    whole_core = "import pipelab as pp; pp.simulate, pp.compare, pp.load, pp.theory, pp.balance"
    lines = (
        ("import pipelab", "import pipelab"),
        ("the whole core, with numpy", whole_core),
        ("numpy", "import numpy"),
    )
    return [
        line(what, [t - bare for t in start(code)], "s", 1, "" if what == "numpy" else "0.2")
        for what, code in lines
    ]


def main() -> None:
    header = ["what", "minimum", "median", "maximum", "unit", "to hold"]
    print(text_table(header, [*per_action(), *end_to_end(), many_costs(), *lanes(), *imports()]))


if __name__ == "__main__":
    main()
