"""The rate at which a max-plus recurrence grows: the mean of its critical cycle.

With x(n+1)[r] = max over s of (x(n)[s] + weights[r, s]), every x[r] grows in the long run by the largest mean of a
cycle that leads to r, whatever x(0) is (Baccelli, Cohen, Olsder, Quadrat: Synchronization and Linearity, 1992).
"""

from __future__ import annotations

import itertools

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.recurrence import FloatArray

__all__ = ["cycle_mean"]


def cycle_mean(weights: FloatArray) -> float:
    """The largest mean weight of a cycle, by Karp's algorithm (Discrete Mathematics 23, 1978): O(n^3).

    The result is the mean of a cycle that was found, added up along it; so it is exact where the weights are
    integers, and where the cycle is one node's own loop it is that loop's weight, bit for bit.

    Args:
        weights: shape (n, n): of the arc from s to r in row r, column s; -inf where there is none.

    Example:
        >>> cycle_mean(np.array([[1.0, 2.0], [6.0, 3.0]]))
        4.0

    Raises:
        ValueError: there is no cycle.
    """
    n = len(weights)
    longest = np.zeros((n + 1, n))  # the longest walk of k arcs to each node, from anywhere
    arcs = np.zeros((n + 1, n), dtype=np.int64)
    for k in range(1, n + 1):
        walks = weights + longest[k - 1]
        arcs[k] = walks.argmax(axis=1)
        longest[k] = walks.max(axis=1)
    ends = np.flatnonzero(longest[n] > -np.inf)
    if not len(ends):
        raise ValueError("No cycle: nothing carries over.")
    lengths = n - np.arange(n)[:, None]
    slowest = ((longest[n, ends] - longest[:n, ends]) / lengths).min(axis=0)
    return _best_cycle(weights, arcs, int(ends[slowest.argmax()]))


def _best_cycle(weights: FloatArray, arcs: IntArray, end: int) -> float:
    """Follow the longest walk back; the critical cycle is among those that it runs through."""
    walk = [end]
    for k in range(len(weights), 0, -1):
        walk.append(int(arcs[k, walk[-1]]))
    best, seen = -np.inf, dict[int, int]()
    for place, node in enumerate(walk):
        if node in seen:
            cycle = walk[seen[node] : place + 1]
            total = sum(float(weights[r, s]) for r, s in itertools.pairwise(cycle))
            best = max(best, total / (len(cycle) - 1))
        seen[node] = place
    return best
