"""The shape that all schedules of forwards and full backwards share.

A rank runs w forwards (the warm-up), then one forward and one backward in turn, then the backwards that are
left:

    w = 0   F B F B F B          one micro-batch at a time
    w = 2   F F F B F B ... B B  one forward, one backward
    w = n   F F F F B B B B      all forwards, then all backwards

Schedules of this shape differ only in w and in the order in which a rank takes its stages.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import CODES, ActionTable, IntArray, Kind
from pipelab.core.validation import check_size

__all__ = ["alternate", "forward_only"]

_F, _B = CODES[Kind.F], CODES[Kind.B]


def alternate(
    warmup: IntArray, forward: tuple[IntArray, IntArray], backward: tuple[IntArray, IntArray]
) -> ActionTable:
    """Lay out a schedule of this shape, all ranks at once.

    Args:
        warmup: shape (p,): w of each rank; more than there is to do counts as all.
        forward: stage and micro-batch of a rank's k-th forward, each of shape (p, n).
        backward: the same of its k-th backward.
    """
    num_ranks, count = forward[0].shape
    check_size("The schedule", 2 * num_ranks * count)
    w = np.minimum(warmup, count)[:, None]
    k = np.arange(count)
    ranks = np.arange(num_ranks)[:, None]
    at_forward = np.where(k < w, k, 2 * k - w)
    at_backward = np.where(k < count - w, w + 2 * k + 1, count + k)

    columns = np.empty((3, num_ranks, 2 * count), dtype=np.int32)
    for code, at, (stage, microbatch) in ((_F, at_forward, forward), (_B, at_backward, backward)):
        columns[0, ranks, at] = code
        columns[1, ranks, at] = stage
        columns[2, ranks, at] = microbatch
    kind, stage, microbatch = columns.reshape(3, -1)
    return ActionTable(kind, stage, microbatch, np.repeat(np.arange(num_ranks), 2 * count))


def forward_only(forward: tuple[IntArray, IntArray]) -> ActionTable:
    """Lay out the forwards alone.

    Args:
        forward: stage and micro-batch of a rank's k-th forward, each of shape (p, n).
    """
    num_ranks, count = forward[0].shape
    check_size("The schedule", num_ranks * count)
    kind = np.full(num_ranks * count, _F)
    return ActionTable(kind, forward[0].ravel(), forward[1].ravel(), np.repeat(np.arange(num_ranks), count))
