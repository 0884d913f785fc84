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

import pipelab as pp
from pipelab.core.tables import text_table

SIZES = ((8, 64), (16, 256), (64, 1024))


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


def per_action() -> list[list[str]]:
    """Build and check, simulate again, and report, at three sizes."""
    rows = []
    for p, m in SIZES:
        actions, repeats = 2 * p * m, 7 if p == 64 else 30

        def build(p: int = p, m: int = m) -> pp.Schedule:
            return pp.schedule("1f1b", num_ranks=p, num_microbatches=m)

        one, costs = build(), pp.Costs.uniform(p)
        size, unit = f"({p}, {m})", 1e6 / actions
        rows.append(line(f"build + check {size}", measure(build, repeats), "us/action", unit, "1"))
        again = measure(lambda one=one, costs=costs: pp.simulate(one, costs), repeats)
        rows.append(line(f"simulate again {size}", again, "us/action", unit, "0.2"))
        report = measure(lambda one=one, costs=costs: pp.simulate(one, costs).report(), repeats)
        rows.append(line(f"simulate + report {size}", report, "ms", 1e3, ""))
    return rows


def end_to_end() -> list[str]:
    """Everything from the name of a schedule to its makespan, at the largest size."""

    def work() -> float:
        one = pp.schedule("1f1b", num_ranks=64, num_microbatches=1024)
        return pp.simulate(one, pp.Costs.uniform(64)).makespan

    return line("build + check + simulate (64, 1024)", measure(work, 7), "s", 1, "0.5")


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
    print(text_table(header, [*per_action(), end_to_end(), many_costs(), *imports()]))


if __name__ == "__main__":
    main()
