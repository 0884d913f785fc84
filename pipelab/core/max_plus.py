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


def cycle_mean(weights: FloatArray, steps: IntArray | None = None) -> float:
    """The largest weight of a cycle per step, by Karp's algorithm (Discrete Mathematics 23, 1978): O(n^3).

    The result is the mean of a cycle that was found, added up along it; so it is exact where the weights are
    integers, and where the cycle is one node's own loop it is that loop's weight, bit for bit.

    Where arcs take several steps, x(n)[r] = max over s of (x(n - steps[s])[s] + weights[r, s]). Then the rate found so
    far is taken off each step, and a cycle that still grows has a higher one (Newton's method; Dinkelbach,
    Management Science 13, 1967). Each rate is that of another cycle, so this ends, mostly after two or three rounds.

    Args:
        weights: shape (n, n): of the arc from s to r in row r, column s; -inf where there is none.
        steps: shape (n,): how many steps the arcs from each node take, at least 1; None: one each.

    Example:
        >>> weights = np.array([[1.0, 2.0], [6.0, 3.0]])
        >>> cycle_mean(weights), cycle_mean(weights, np.array([1, 4]))
        (4.0, 1.6)

    Raises:
        ValueError: there is no cycle.
    """
    if steps is None:
        return _grown(weights, weights, np.ones(len(weights), dtype=np.int64))
    rate = _grown(weights, weights, steps)
    while (higher := _grown(weights, weights - rate * steps, steps)) > rate:
        rate = higher
    return rate


def _grown(true: FloatArray, weights: FloatArray, steps: IntArray) -> float:
    """The true weight per step of the cycle whose mean is largest under some weights."""
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
    return _best_cycle(true, steps, arcs, int(ends[slowest.argmax()]))


def _best_cycle(weights: FloatArray, steps: IntArray, arcs: IntArray, end: int) -> float:
    """Follow the longest walk back; the critical cycle is among those that it runs through."""
    walk = [end]
    for k in range(len(weights), 0, -1):
        walk.append(int(arcs[k, walk[-1]]))
    best, seen = -np.inf, dict[int, int]()
    for place, node in enumerate(walk):
        if node in seen:
            cycle = walk[seen[node] : place + 1]
            total = sum(float(weights[r, s]) for r, s in itertools.pairwise(cycle))
            best = max(best, total / int(steps[cycle[1:]].sum()))
        seen[node] = place
    return best
