"""What the tests of named schedules share: short ways to build and simulate one; oracles (torch, the papers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelab.core.costs import Costs
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate


def made(name: str, p: int, m: int, v: int | None = None) -> Schedule:
    return schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)


def lines(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


def table_of_torch(name: str, p: int, m: int, v: int) -> list[str] | None:
    """The table that torch builds, without a process group: its stages need only say where they are."""
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    found = get_schedule_class(name)
    turns = name in ("ZBVZeroBubble", "DualPipeV")
    stages = [
        SimpleNamespace(group_rank=0, group_size=p, num_stages=p * v, stage_index=index, has_backward=True)
        for index in ((0, 2 * p - 1) if turns else range(0, p * v, p))
    ]
    for stage in stages:
        vars(stage).update(is_first=False, is_last=False, submod=None, device="cpu")
    try:
        one = found(stages[0] if issubclass(found, PipelineScheduleSingle) else stages, m)
    except ValueError:
        return None  # sizes that torch does not take
    rows = [one.pipeline_order[rank] for rank in range(p)]
    return [" ".join(str(c) for c in row if c is not None and "REDUCE_GRAD" not in str(c)) for row in rows]


def one_forward_one_backward(ahead: int, p: int, m: int) -> list[str]:
    """Narayanan et al. 2021: min(p-1-r, m) forwards, then one forward and one backward, then the backwards left."""
    found = []
    for r in range(p):
        w = min(ahead * (p - 1 - r), m)
        wanted = [f"{r}F{i}" for i in range(w)]
        for i in range(m - w):
            wanted += [f"{r}F{w + i}", f"{r}B{i}"]
        found.append(" ".join(wanted + [f"{r}B{i}" for i in range(m - w, m)]))
    return found


def zb_h1(p: int, m: int) -> list[str]:
    """Qi et al. 2023: min(p-1-r, m) forwards; one F and one I in turn, W_j right after I_(j+r); the W that are left."""
    found = []
    for r in range(p):
        w = min(p - 1 - r, m)
        wanted = [f"{r}F{i}" for i in range(w)]
        for i in range(m):
            wanted += [f"{r}F{w + i}"] * (w + i < m) + [f"{r}I{i}"] + [f"{r}W{i - r}"] * (i >= r)
        found.append(" ".join(wanted + [f"{r}W{i}" for i in range(max(0, m - r), m)]))
    return found


def zb_h2(p: int, m: int) -> list[str]:
    """Qi et al. 2023: 2(p-r)-1 forwards; I, W if more than 2r are pending, F; the W that are left."""
    found = []
    for r in range(p):
        forwards, pending = min(2 * (p - r) - 1, m), []
        wanted = [f"{r}F{i}" for i in range(forwards)]
        for i in range(m):
            wanted.append(f"{r}I{i}")
            pending.append(f"{r}W{i}")
            if len(pending) > 2 * r:
                wanted.append(pending.pop(0))
            if forwards < m:
                wanted.append(f"{r}F{forwards}")
                forwards += 1
        found.append(" ".join(wanted + pending))
    return found


def forwards_of_torch(p: int, m: int, v: int) -> list[str] | None:
    """torch runs inference in the order of training, without the backwards."""
    found = table_of_torch("Interleaved1F1B", p, m, v)
    return found and [" ".join(cell for cell in line.split() if "F" in cell) for line in found]


ORACLES: dict[str, Callable[[int, int, int], list[str] | None]] = {
    "naive": lambda p, m, v: [" ".join(f"{r}F{i} {r}B{i}" for i in range(m)) for r in range(p)],
    "gpipe": lambda p, m, v: table_of_torch("GPipe", p, m, v),
    "1f1b": lambda p, m, v: one_forward_one_backward(1, p, m),
    "eager-1f1b": lambda p, m, v: one_forward_one_backward(2, p, m),
    "forward-only": forwards_of_torch,
    "interleaved-1f1b": lambda p, m, v: table_of_torch("Interleaved1F1B", p, m, v),
    "looped-bfs": lambda p, m, v: table_of_torch("LoopedBFS", p, m, v),
    "interleaved-zb": lambda p, m, v: table_of_torch("InterleavedZeroBubble", p, m, v),
    "zb-h1": lambda p, m, v: zb_h1(p, m),
    "zb-h2": lambda p, m, v: zb_h2(p, m),
    "zb-v": lambda p, m, v: table_of_torch("ZBVZeroBubble", p, m, v),
    "dualpipev": lambda p, m, v: table_of_torch("DualPipeV", p, m, v),
}


@pytest.fixture(scope="session")
def make() -> Callable[..., Schedule]:
    """A schedule by its name, p, m and v."""
    return made


@pytest.fixture(scope="session")
def cells() -> Callable[[Schedule], list[str]]:
    """The cells of each rank as one text."""
    return lines


@pytest.fixture(scope="session")
def report() -> Callable[..., Report]:
    """The report of a schedule by its name, p, m and v, at F = I = W = 1 and B = 2 unless told otherwise."""

    def reported(
        name: str, p: int, m: int, v: int | None = None, overlap: float | None = None, **costs: float
    ):
        one = made(name, p, m, v)
        seconds = Costs.uniform(one.num_model_stages, **costs)
        if overlap is not None:
            seconds = replace(seconds, overlap=(overlap,) * one.num_model_stages)
        return simulate(one, seconds).report()

    return reported


@pytest.fixture(scope="session")
def oracles() -> dict[str, Callable[[int, int, int], list[str] | None]]:
    """For each schedule another source of its cells: torch, or its paper's rule; None for sizes that torch refuses."""
    return ORACLES


@pytest.fixture(scope="session")
def equal_to_oracle() -> Callable[[str, Iterable[tuple[int, int, int]]], int]:
    """Compare a schedule with its oracle for many sizes; returns how many sizes the oracle took."""

    def compared(name: str, sizes: Iterable[tuple[int, int, int]]) -> int:
        taken = 0
        for p, m, v in sizes:
            wanted = ORACLES[name](p, m, v)
            if wanted is not None:
                taken += 1
                assert lines(made(name, p, m, v)) == wanted, (name, p, m, v)
        return taken

    return compared
