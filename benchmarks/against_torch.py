"""The same tables, built and simulated by pipelab and by torch.distributed.pipelining, in turns.

    python benchmarks/against_torch.py

Prints one table: microseconds an action (medians), and how many times as long torch takes: the least, the median and
the most over pairs of runs, one of each right after the other.

What is compared, and what is not:
- build: `pp.schedule` builds a table and checks it whole. torch's constructor builds `pipeline_order` of every rank;
  those of several stages a rank also lower it to sends and receives and so check it. Its stages need no process
  group here, since they only say where they are.
- simulate: `pp.simulate` finds start and end in seconds under costs. torch's `_simulate_comms_compute` moves every rank
  on by one action a step, without costs; the table must first be lowered by `_add_send_recv` (not counted). Both are
  private.
- torch's `pipeline_order` holds REDUCE_GRAD cells, which its simulator does not know: they are taken out.
- Schedule1F1B cannot be simulated: its picture of the order is not the order that it runs (the last rank has no forward
  of micro-batch 0), and `_add_send_recv` refuses it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch.distributed.pipelining import schedules as torch_schedules

import pipelab as pp
from pipelab.core.tables import text_table

PAIRS = (
    ("gpipe", "GPipe", 1),
    ("1f1b", "1F1B", 1),
    ("interleaved-1f1b", "Interleaved1F1B", 2),
    ("looped-bfs", "LoopedBFS", 2),
    ("zb-h1", "InterleavedZeroBubble", 1),
    ("zb-v", "ZBVZeroBubble", 2),
)
SIZES = ((8, 64, 9), (16, 256, 3))
"""Ranks, micro-batches, and how many pairs of runs."""

Order = dict[int, list[Any]]


def build_of_torch(name: str, p: int, m: int, v: int) -> Order:
    """torch's table, without the cells that only reduce gradients."""
    found = torch_schedules.get_schedule_class(name)
    last = 2 * p - 1 if name == "ZBVZeroBubble" else p
    stages = [
        SimpleNamespace(
            group_rank=0, group_size=p, num_stages=p * v, stage_index=index, has_backward=True, is_first=index == 0,
            is_last=False, submod=None, device="cpu",
        )
        for index in (0, last)[:v]
    ]  # fmt: skip
    single = issubclass(found, torch_schedules.PipelineScheduleSingle)
    return found(stages[0] if single else stages, m).pipeline_order


def simulation_of_torch(name: str, order: Order, p: int, v: int) -> Callable[[], object] | str:
    """torch's simulator on its own table, or why it does not run."""
    ranks = pp.Placement.v(p).ranks if name == "ZBVZeroBubble" else pp.Placement.looped(p, v).ranks
    plain = {
        rank: [action for action in actions if action is not None and "REDUCE_GRAD" not in str(action)]
        for rank, actions in order.items()
    }
    try:
        lowered = torch_schedules._add_send_recv(plain, ranks.__getitem__, p * v)

        def work() -> object:
            return torch_schedules._simulate_comms_compute(lowered, ranks.__getitem__, p * v)

        work()
    except (AssertionError, ValueError) as error:
        return f"torch: {str(error).splitlines()[0][:60]}"
    return work


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of each run of the one and the other, after one pair that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs + 1):
        for work, times in zip((ours, theirs), seconds, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                times.append(time.perf_counter() - began)
    return seconds


def line(what: str, seconds: tuple[list[float], list[float]], actions: int) -> list[str]:
    """One row of the table."""
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    medians = [f"{statistics.median(times) / actions * 1e6:.3g}" for times in seconds]
    return [what, *medians, *(f"{x:.3g}" for x in (min(ratios), statistics.median(ratios), max(ratios)))]


def rows() -> list[list[str]]:
    """Build and simulate each pair of schedules at each size."""
    found = []
    for name, torch_name, v in PAIRS:
        for p, m, pairs in SIZES:

            def build(name: str = name, p: int = p, m: int = m, v: int = v) -> pp.Schedule:
                return pp.schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)

            def build_theirs(torch_name: str = torch_name, p: int = p, m: int = m, v: int = v) -> Order:
                return build_of_torch(torch_name, p, m, v)

            one = build()
            size, actions = f"{name} ({p}, {m})", one.table.num_cells
            found.append(line(f"build {size}", in_turns(build, build_theirs, pairs), actions))
            theirs = simulation_of_torch(torch_name, build_theirs(), p, v)
            if isinstance(theirs, str):
                found.append([f"simulate {size}", theirs, "", "", "", ""])
                continue
            costs = pp.Costs.uniform(one.num_model_stages)
            times = in_turns(lambda one=one, costs=costs: pp.simulate(one, costs), theirs, pairs)
            found.append(line(f"simulate {size}", times, actions))
    return found


def main() -> None:
    header = ["what", "pipelab [us/action]", "torch [us/action]", "ratio: least", "median", "most"]
    print(text_table(header, rows()))


if __name__ == "__main__":
    main()
