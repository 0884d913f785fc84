"""Cycle means: against all cycles of small graphs, one by one."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from pipelab.core.max_plus import cycle_mean


def every_cycle(weights: np.ndarray) -> list[float]:
    n = len(weights)
    found = []
    for length in range(1, n + 1):
        for nodes in itertools.permutations(range(n), length):
            arcs = zip(nodes, (*nodes[1:], nodes[0]), strict=True)
            found.append(sum(weights[b, a] for a, b in arcs) / length)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_largest_mean_is_found(n):
    rng = random.Random(n)
    for _ in range(60):
        weights = np.array([[rng.choice([-np.inf, *range(-3, 9)]) for _ in range(n)] for _ in range(n)])
        wanted = max(every_cycle(weights))
        if np.isfinite(wanted):
            assert cycle_mean(weights) == pytest.approx(wanted, rel=1e-14)
        else:
            with pytest.raises(ValueError, match="No cycle"):
                cycle_mean(weights)


def test_a_loop_gives_its_weight_bit_for_bit():
    weights = np.full((5, 5), 0.1)
    weights[3, 3] = 0.1 + 0.2
    assert cycle_mean(weights) == 0.1 + 0.2
