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


@pytest.mark.parametrize("seed", range(40))
def test_with_arcs_of_several_steps_it_is_that_of_a_line_of_nodes_in_between(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))
    weights = rng.integers(0, 30, (n, n)).astype(float)
    weights[rng.random((n, n)) < 0.3] = -np.inf
    np.fill_diagonal(weights, rng.integers(0, 30, n))
    steps = rng.integers(1, 5, n)
    last = (
        np.cumsum(steps) - 1
    )  # the end of each node's line; the others pass on what the one before them was
    whole = np.full((steps.sum(), steps.sum()), -np.inf)
    whole[np.arange(1, len(whole)), np.arange(len(whole) - 1)] = 0
    whole[last - steps + 1] = -np.inf
    whole[np.ix_(last - steps + 1, last)] = weights
    assert cycle_mean(weights, steps) == pytest.approx(cycle_mean(whole), rel=1e-14)
