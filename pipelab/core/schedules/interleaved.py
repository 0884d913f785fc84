"""Schedules of several stages a rank, looped: interleaved 1F1B, looped BFS, and forward only.

Rank r holds the stages r, p+r, 2p+r, ...: v chunks. Micro-batches go through in groups: the whole group
through the first chunk, then through the second, and so on (depth first); or all of them at once (breadth
first). The bubble shrinks by v, the messages grow by v.

    p = 2, v = 2, m = 4, forwards of rank 0:
    depth first      0F0 0F1 | 2F0 2F1 | 0F2 0F3 | 2F2 2F3
    breadth first    0F0 0F1 0F2 0F3 | 2F0 2F1 2F2 2F3
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.closed_form import Assumption, ClosedForm, Terms, at_most
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.linear import hops_there_and_back
from pipelab.core.schedules.warmup import alternate, forward_only, stages_of
from pipelab.core.validation import check_size

__all__ = ["FAMILY", "WHOLE_GROUPS", "depth_first", "groups_of"]


def groups_of(num_ranks: int, num_microbatches: int) -> IntArray:
    """Shape (rounds,): how many micro-batches go together.

    The paper wants m mod p = 0 and groups of p. In general there are max(1, m // p) groups, as even as can be
    and the larger ones first, so that no group is smaller than p unless m is: a rank then always has a next
    forward that can have arrived. Where torch takes the sizes, its groups are these.
    """
    rounds = max(1, num_microbatches // num_ranks)
    return np.full(rounds, num_microbatches // rounds) + (np.arange(rounds) < num_microbatches % rounds)


def depth_first(groups: IntArray, num_chunks: int) -> tuple[IntArray, IntArray]:
    """Chunk and micro-batch of a rank's k-th forward, each of shape (m v,)."""
    chunk = np.repeat(np.tile(np.arange(num_chunks), len(groups)), np.repeat(groups, num_chunks))
    block_start = np.repeat(np.cumsum(groups) - groups, num_chunks)
    block_size = np.repeat(groups, num_chunks)
    block_first = np.cumsum(block_size) - block_size
    return chunk, np.arange(len(chunk)) + np.repeat(block_start - block_first, block_size)


def _interleaved(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    check_size("interleaved-1f1b", 2 * num_ranks * num_microbatches * stages_per_rank)
    groups = groups_of(num_ranks, num_microbatches)
    chunk, microbatch = depth_first(groups, stages_per_rank)
    forward = stages_of(num_ranks, chunk, microbatch)
    backward = stages_of(num_ranks, stages_per_rank - 1 - chunk, microbatch)
    warmup = 2 * np.arange(num_ranks)[::-1] + (stages_per_rank - 1) * int(groups[0])
    placement = Placement.looped(num_ranks, stages_per_rank)
    return Schedule.from_table(alternate(warmup, forward, backward), placement, name="interleaved-1f1b")


def _forward_only(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    check_size("forward-only", num_ranks * num_microbatches * stages_per_rank)
    chunk, microbatch = depth_first(groups_of(num_ranks, num_microbatches), stages_per_rank)
    table = forward_only(stages_of(num_ranks, chunk, microbatch))
    return Schedule.from_table(table, Placement.looped(num_ranks, stages_per_rank), name="forward-only")


def _breadth_first(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    check_size("looped-bfs", 2 * num_ranks * num_microbatches * stages_per_rank)
    chunk, microbatch = np.divmod(np.arange(num_microbatches * stages_per_rank), num_microbatches)
    forward = stages_of(num_ranks, chunk, microbatch)
    backward = forward[0][:, ::-1], forward[1][:, ::-1]
    table = alternate(np.full(num_ranks, len(chunk)), forward, backward)
    return Schedule.from_table(table, Placement.looped(num_ranks, stages_per_rank), name="looped-bfs")


WHOLE_GROUPS = Assumption("m mod p = 0 where v > 1", lambda t: t.v == 1 or t.m % t.p == 0)


def _turns(t: Terms, groups: IntArray, seconds: float) -> float:
    """How long a rank waits at all changes of chunk: until a group's first micro-batch has gone around all ranks."""
    around = t.p * (seconds + (t.c if t.p > 1 else 0.0))
    return (t.v - 1) * float(np.maximum(0.0, around - groups * seconds).sum())


def _idle_forward(t: Terms) -> float:
    return (t.p - 1) * (t.F + t.c) + _turns(t, groups_of(t.p, t.m), t.F)


def _idle_breadth_first(t: Terms) -> float:
    there_and_back = (t.p - 1) * (t.F + t.B) + hops_there_and_back(t) * t.c
    all_at_once = np.array([t.m])
    return there_and_back + _turns(t, all_at_once, t.F) + _turns(t, all_at_once, t.B)


def _idle_interleaved(t: Terms) -> float:
    hops = 2 * (t.p * t.v - 1) if t.p > 1 else 0
    return (t.p - 1) * (t.F + t.B) + hops * t.c


FAMILY = (
    ScheduleInfo(
        name="forward-only",
        family="looped",
        paper="",
        constraint="",
        formulas="idle (p-1)(F+c) at v = 1, or with m mod p = 0 and c = 0; peak: outputs only",
        description="Inference: every micro-batch forward, no backward.",
        builder=_forward_only,
        stages_per_rank=(1, None),
        form=ClosedForm.where(
            idle=_idle_forward,
            peak=lambda t, r: 1,
            work=lambda t: t.m * t.v * t.F,
        ),
    ),
    ScheduleInfo(
        name="interleaved-1f1b",
        family="looped",
        paper="Megatron-LM, arXiv 2104.04473, section 2.2",
        constraint="m mod p = 0 in the paper; here any m",
        formulas="at m mod p = 0: idle (p-1)(F+B of a rank)/v; peak min(m v, (v-1)p + 2(p-1-r) + 1) chunks; latency "
        "costs 2(pv-1)c up to c = min(F, B), where p > 1",
        description="1F1B over v chunks a rank: a bubble v times smaller for v times the messages.",
        builder=_interleaved,
        stages_per_rank=(1, None),
        form=ClosedForm.where(
            WHOLE_GROUPS,
            Assumption("c <= (F+B)/2", lambda t: at_most(2 * t.c, t.F + t.B)),
            Assumption("c <= F and c <= B where v > 1", lambda t: t.v == 1 or at_most(t.c, min(t.F, t.B))),
            idle=_idle_interleaved,
            peak=lambda t, r: min(t.m * t.v, (t.v - 1) * t.p + 2 * (t.p - 1 - r) + 1),
        ),
    ),
    ScheduleInfo(
        name="looped-bfs",
        family="looped",
        paper="Breadth-First Pipeline Parallelism, arXiv 2211.05953",
        constraint="",
        formulas="at m >= p: idle (p-1)(F+B of a rank)/v; peak m v chunks; latency costs 2(p-1)c where m > p, up to "
        "c = (m/p-1) min(F, B)",
        description="GPipe over v chunks a rank: interleaving's bubble, latency hidden where m > p, all the memory.",
        builder=_breadth_first,
        stages_per_rank=(1, None),
        form=ClosedForm.where(
            idle=_idle_breadth_first,
            peak=lambda t, r: t.m * t.v,
        ),
    ),
)
