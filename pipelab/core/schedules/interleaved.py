"""Schedules of several stages a rank, looped: interleaved 1F1B, and forward only.

Rank r holds the stages r, p+r, 2p+r, ...: v chunks. Micro-batches go through in groups: the whole group
through the first chunk, then through the second, and so on (depth first). The bubble shrinks by v, the
messages grow by v.

    p = 2, v = 2, m = 4, forwards of rank 0:   0F0 0F1 | 2F0 2F1 | 0F2 0F3 | 2F2 2F3
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.warmup import alternate, forward_only
from pipelab.core.validation import check_size

__all__ = ["FAMILY"]


def _groups(num_ranks: int, num_microbatches: int) -> IntArray:
    """Shape (rounds,): how many micro-batches go together.

    The paper wants m mod p = 0 and groups of p. In general there are max(1, m // p) groups, as even as can be
    and the larger ones first, so that no group is smaller than p unless m is: a rank then always has a next
    forward that can have arrived. Where torch takes the sizes, its groups are these.
    """
    rounds = max(1, num_microbatches // num_ranks)
    return np.full(rounds, num_microbatches // rounds) + (np.arange(rounds) < num_microbatches % rounds)


def _depth_first(groups: IntArray, num_chunks: int) -> tuple[IntArray, IntArray]:
    """Chunk and micro-batch of a rank's k-th forward, each of shape (m v,)."""
    chunk = np.repeat(np.tile(np.arange(num_chunks), len(groups)), np.repeat(groups, num_chunks))
    block_start = np.repeat(np.cumsum(groups) - groups, num_chunks)
    block_size = np.repeat(groups, num_chunks)
    block_first = np.cumsum(block_size) - block_size
    return chunk, np.arange(len(chunk)) + np.repeat(block_start - block_first, block_size)


def _stages(num_ranks: int, chunk: IntArray, microbatch: IntArray) -> tuple[IntArray, IntArray]:
    stage = chunk * num_ranks + np.arange(num_ranks)[:, None]
    return stage, np.broadcast_to(microbatch, stage.shape)


def _interleaved(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    check_size("interleaved-1f1b", 2 * num_ranks * num_microbatches * stages_per_rank)
    groups = _groups(num_ranks, num_microbatches)
    chunk, microbatch = _depth_first(groups, stages_per_rank)
    forward = _stages(num_ranks, chunk, microbatch)
    backward = _stages(num_ranks, stages_per_rank - 1 - chunk, microbatch)
    warmup = 2 * np.arange(num_ranks)[::-1] + (stages_per_rank - 1) * int(groups[0])
    placement = Placement.looped(num_ranks, stages_per_rank)
    return Schedule.from_table(alternate(warmup, forward, backward), placement, name="interleaved-1f1b")


def _forward_only(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    check_size("forward-only", num_ranks * num_microbatches * stages_per_rank)
    chunk, microbatch = _depth_first(_groups(num_ranks, num_microbatches), stages_per_rank)
    table = forward_only(_stages(num_ranks, chunk, microbatch))
    return Schedule.from_table(table, Placement.looped(num_ranks, stages_per_rank), name="forward-only")


FAMILY = (
    ScheduleInfo(
        name="forward-only",
        family="looped",
        paper="",
        constraint="",
        formulas="idle (p-1) F per rank at v = 1; peak: outputs only",
        description="Inference: every micro-batch forward, no backward.",
        builder=_forward_only,
        stages_per_rank=(1, None),
    ),
    ScheduleInfo(
        name="interleaved-1f1b",
        family="looped",
        paper="Megatron-LM, arXiv 2104.04473, section 2.2",
        constraint="m mod p = 0 in the paper; here any m",
        formulas="at m mod p = 0: idle (p-1)(F+B of a rank)/v; peak min(m v, (v-1)p + 2(p-1-r) + 1) chunks",
        description="1F1B over v chunks a rank: a bubble v times smaller for v times the messages.",
        builder=_interleaved,
        stages_per_rank=(1, None),
    ),
)
