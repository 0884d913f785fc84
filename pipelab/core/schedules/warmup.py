"""The two shapes that most schedules share: a warm-up, then one forward and one backward in turn.

A rank runs w forwards (the warm-up), then one forward and one backward in turn, then the backwards that are
left:

    w = 0   F B F B F B          one micro-batch at a time
    w = 2   F F F B F B ... B B  one forward, one backward
    w = n   F F F F B B B B      all forwards, then all backwards

Where the backward is cut in I and W, a rank holds some W back to fill its idle time with them; here l of them:

    w = 1, l = 0   F F I W F I W ... I W
    w = 1, l = 2   F F I F I F I W F I W ... W W

Schedules of one shape differ only in w and l and in the order in which a rank takes its stages.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import CODES, ActionTable, IntArray, Kind

__all__ = ["Stream", "alternate", "alternate_split", "forward_only", "one_stage", "stages_of"]

_F, _I, _W, _B = (CODES[kind] for kind in (Kind.F, Kind.I, Kind.W, Kind.B))

Stream = tuple[IntArray, IntArray]
"""Stage and micro-batch of a rank's k-th action of one kind, each of shape (p, n)."""


def stages_of(num_ranks: int, chunk: IntArray, microbatch: IntArray) -> Stream:
    """The same chunks and micro-batches on every rank, each of shape (n,); chunk c of rank r is stage c*p + r."""
    stage = chunk * num_ranks + np.arange(num_ranks)[:, None]
    return stage, np.broadcast_to(microbatch, stage.shape)


def one_stage(num_ranks: int, microbatch: IntArray) -> Stream:
    """The same micro-batches on every rank, whose one stage has the rank's number."""
    return stages_of(num_ranks, np.zeros_like(microbatch), microbatch)


def alternate(warmup: IntArray, forward: Stream, backward: Stream) -> ActionTable:
    """Lay out a schedule of forwards and full backwards, all ranks at once.

    Args:
        warmup: shape (p,): w of each rank; more than there is to do counts as all.
        forward: stage and micro-batch of a rank's k-th forward, each of shape (p, n).
        backward: the same of its k-th backward.
    """
    count = forward[0].shape[1]
    w = np.minimum(warmup, count)[:, None]
    k = np.arange(count)
    at_forward = np.where(k < w, k, 2 * k - w)
    at_backward = np.where(k < count - w, w + 2 * k + 1, count + k)
    return _place(((_F, at_forward, forward), (_B, at_backward, backward)))


def alternate_split(warmup: IntArray, held_back: IntArray, forward: Stream, backward: Stream) -> ActionTable:
    """Lay out a schedule whose backwards are cut in I and W, all ranks at once.

    After the warm-up a rank runs rounds of one F, one I and one W, each while there are any; the W of the first
    rounds are left out, so that W_j comes right after I_(j+l). The W that are left end the step.

    Args:
        warmup: shape (p,): w of each rank; more than there is to do counts as all.
        held_back: shape (p,): l of each rank, likewise.
        forward: stage and micro-batch of a rank's k-th forward, each of shape (p, n).
        backward: the same of its k-th I, which is also that of its k-th W.
    """
    count = forward[0].shape[1]
    w = np.minimum(warmup, count)[:, None]
    lag = np.minimum(held_back, count)[:, None]
    k = np.arange(count)

    def at_round(n: IntArray) -> IntArray:
        """Where round n begins: behind the warm-up and the F, I and W of the rounds before."""
        begin: IntArray = w + np.minimum(n, count - w) + n + np.maximum(0, n - lag)
        return begin

    at_forward = np.where(k < w, k, at_round(k - w))
    at_input = at_round(k) + (k < count - w)
    after = k + lag  # the round of the k-th W
    at_weight = np.where(after < count, at_round(after) + (after < count - w) + 1, 2 * count + k)
    return _place(((_F, at_forward, forward), (_I, at_input, backward), (_W, at_weight, backward)))


def _place(streams: tuple[tuple[int, IntArray, Stream], ...]) -> ActionTable:
    """Put each stream of one kind where it belongs in the orders of its ranks."""
    num_ranks, count = streams[0][1].shape
    columns = np.empty((3, num_ranks, len(streams) * count), dtype=np.int32)
    ranks = np.arange(num_ranks)[:, None]
    for code, at, (stage, microbatch) in streams:
        columns[0, ranks, at] = code
        columns[1, ranks, at] = stage
        columns[2, ranks, at] = microbatch
    kind, stage, microbatch = columns.reshape(3, -1)
    return ActionTable(kind, stage, microbatch, np.repeat(np.arange(num_ranks), len(streams) * count))


def forward_only(forward: Stream) -> ActionTable:
    """Lay out the forwards alone.

    Args:
        forward: stage and micro-batch of a rank's k-th forward, each of shape (p, n).
    """
    num_ranks, count = forward[0].shape
    kind = np.full(num_ranks * count, _F)
    return ActionTable(kind, forward[0].ravel(), forward[1].ravel(), np.repeat(np.arange(num_ranks), count))
