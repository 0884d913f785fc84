"""How much of each pixel is busy: what a picture shows when it has more actions than pixels.

Dropping actions, or drawing them over each other, makes a dense picture say something false (the last action drawn
wins the pixel). Averaging is true at any width: the coverages of a row sum to its busy time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]


def coverage(
    slot: Integers,
    start: Floats,
    end: Floats,
    *,
    num_slots: int,
    width: int,
    begin: float,
    stop: float,
    share: Floats | float = 1.0,
) -> Floats:
    """The share of each of `width` equal pieces of [begin, stop] that is covered, per slot.

    A slot is whatever is to be told apart: a row, or a row and a colour. Work is proportional to the number of
    actions plus the number of pixels, without a loop over either.

    Args:
        slot: for each action its slot, 0 .. num_slots - 1.
        start: seconds.
        end: seconds, not before `start`.
        share: how much of the slot each action takes; less than 1 where actions share a rank at the same time.

    Returns:
        Array of shape (num_slots, width). Entries are at most 1 where the actions of a slot do not overlap.

    Example:
        >>> start, end = np.array([0.0, 2.5]), np.array([1.5, 4.0])
        >>> coverage(np.array([0, 0]), start, end, num_slots=1, width=4, begin=0, stop=4)
        array([[1. , 0.5, 0.5, 1. ]])
    """
    per_second = width / (stop - begin)
    # The integral of a step that rises at x, pixel by pixel, is 1 - frac(x) in x's own pixel and 1 in all later
    # ones: two impulses, summed up once for all actions. Two spare pixels take what lies beyond the right edge.
    stride = width + 2
    impulses = np.zeros(num_slots * stride)
    for time, sign in ((start, 1.0), (end, -1.0)):
        at = np.clip((time - begin) * per_second, 0.0, width)
        pixel = at.astype(np.int64)
        rest = at - pixel
        flat = slot * stride + pixel
        impulses += np.bincount(flat, sign * share * (1.0 - rest), minlength=len(impulses))
        impulses += np.bincount(flat + 1, sign * share * rest, minlength=len(impulses))
    covered = np.cumsum(impulses.reshape(num_slots, stride), axis=1)[:, :width]
    return np.clip(covered, 0.0, None)
