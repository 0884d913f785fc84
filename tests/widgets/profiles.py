"""Profiles without a model."""

from __future__ import annotations

from pipelab.core.profile import Affine, Profile

HOSTILE = "cost in $ and $ <b>bold</b>"


def profile_of(layers: int) -> Profile:
    """Layers of unequal cost, whose names a careless view would trip over."""
    names = [f"blocks.{number}" for number in range(layers)]
    names[1] = HOSTILE
    cost = [Affine(1e-4, 2e-4 * (1 + number % 3)) for number in range(layers)]
    held = [Affine(0.0, 4e5)] * layers
    return Profile(names, cost, cost, cost, [4_000_000] * layers, held, held, 8, (4, 8, 16), "cpu")
