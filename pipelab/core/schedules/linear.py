"""Schedules of one stage a rank: naive, GPipe, 1F1B, eager 1F1B.

They differ only in how many forwards a rank runs before its first backward; see `warmup`. Under uniform costs
and without latency GPipe, 1F1B and eager 1F1B take the same time, (m+p-1)(F+B): what differs is the peak of
activations, and what latency does to them.
"""

from __future__ import annotations

import math

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.closed_form import Assumption, ClosedForm, Terms, at_most
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.warmup import alternate, one_stage
from pipelab.core.validation import check_size

__all__ = ["FAMILY", "hops_of_1f1b", "hops_there_and_back"]


def _build(name: str, warmup: IntArray, num_microbatches: int) -> Schedule:
    num_ranks = len(warmup)
    check_size(name, 2 * num_ranks * num_microbatches)
    stream = one_stage(num_ranks, np.arange(num_microbatches))
    table = alternate(warmup, stream, stream)
    return Schedule.from_table(table, Placement.linear(num_ranks), name=name)


def _naive(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("naive", np.zeros(num_ranks, dtype=np.int64), num_microbatches)


def _gpipe(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("gpipe", np.full(num_ranks, num_microbatches), num_microbatches)


def _one_forward_one_backward(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("1f1b", np.arange(num_ranks)[::-1], num_microbatches)


def _eager(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("eager-1f1b", 2 * np.arange(num_ranks)[::-1], num_microbatches)


def hops_there_and_back(t: Terms) -> int:
    """How many hops a micro-batch makes from the first rank to the last and back."""
    return 2 * (t.p - 1)


def hops_of_1f1b(t: Terms) -> int:
    """How many hops lie on the critical path of 1F1B.

    Rank r takes a micro-batch in only when the one p-r before it came back, so it waits two hops to each of the ranks
    below for every p-r micro-batches: together one round trip between neighbours for each micro-batch after the first,
    save for one in p.
    """
    waits = t.m - 1 - math.ceil((t.m - 1) / t.p)
    return hops_there_and_back(t) + 2 * waits


FAMILY = (
    ScheduleInfo(
        name="naive",
        family="linear",
        paper="",
        constraint="",
        formulas="makespan m p (F+B) + 2 m (p-1) c; peak 1",
        description="Model parallelism without a pipeline: one micro-batch at a time, there and back.",
        builder=_naive,
        form=ClosedForm.where(
            idle=lambda t: t.m * (t.p - 1) * (t.F + t.B + 2 * t.c),
            peak=lambda t, r: 1,
        ),
    ),
    ScheduleInfo(
        name="gpipe",
        family="linear",
        paper="GPipe, arXiv 1811.06965",
        constraint="",
        formulas="idle (p-1)(F+B) + 2(p-1)c per rank; bubble fraction (p-1)/(m+p-1) at c = 0; peak m",
        description="All forwards, then all backwards: simple, but holds all activations at once.",
        builder=_gpipe,
        form=ClosedForm.where(
            idle=lambda t: (t.p - 1) * (t.F + t.B) + hops_there_and_back(t) * t.c,
            peak=lambda t, r: t.m,
        ),
    ),
    ScheduleInfo(
        name="1f1b",
        family="linear",
        paper="PipeDream-Flush, arXiv 2104.04473 and DAPPLE, arXiv 2007.01045",
        constraint="",
        formulas="idle (p-1)(F+B) per rank; bubble fraction (p-1)/(m+p-1) at c = 0; peak min(m, p-r); latency costs "
        "2(p-1)c, and 2c more for p-1 in p micro-batches",
        description="One forward, one backward in turn: GPipe's bubble, at most p micro-batches in flight.",
        builder=_one_forward_one_backward,
        form=ClosedForm.where(
            idle=lambda t: (t.p - 1) * (t.F + t.B) + hops_of_1f1b(t) * t.c,
            peak=lambda t, r: min(t.m, t.p - r),
        ),
    ),
    ScheduleInfo(
        name="eager-1f1b",
        family="linear",
        paper="arXiv 2211.05322",
        constraint="",
        formulas="idle (p-1)(F+B) per rank; peak min(m, 2(p-1-r)+1); latency costs 2(p-1)c whatever m, up to "
        "c = (F+B)/2",
        description="1F1B with twice the warm-up: hides latency behind more micro-batches in flight.",
        builder=_eager,
        form=ClosedForm.where(
            Assumption("c <= (F+B)/2", lambda t: at_most(2 * t.c, t.F + t.B)),
            idle=lambda t: (t.p - 1) * (t.F + t.B) + hops_there_and_back(t) * t.c,
            peak=lambda t, r: min(t.m, 2 * (t.p - 1 - r) + 1),
        ),
    ),
)
