"""Labs small enough to run in a test."""

from __future__ import annotations

import time

import torch
from torch import nn

import pipelab as pp
from pipelab.core.profile import Affine

LIMIT = 60.0


def batch(size: int = 8):
    return torch.randn(size, 8), torch.randn(size, 1)


def small_model() -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)], nn.Linear(8, 1))


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        time.sleep(0.05)
        return self.b(self.a(x))


def two_layers() -> pp.Profile:
    cost = (Affine(0.01), Affine(0.01))
    return pp.Profile(("a", "b"), cost, cost, cost, (1, 1), cost, cost, 1, (1, 2), "cpu")


def live_lab() -> pp.Lab:
    """A Lab with a model."""
    x, y = batch()
    profile = pp.profile(
        small_model(), x[:2], y[:2], loss_fn=nn.functional.mse_loss, repeats=1, progress=False
    )
    return pp.Lab(
        small_model(),
        x,
        y,
        loss_fn=nn.functional.mse_loss,
        profile=profile,
        num_ranks=2,
        devices=pp.virtual(2),
    )


def slow_lab() -> pp.Lab:
    """A Lab whose run takes long enough to be stopped."""
    x, y = batch()
    profile = two_layers()
    return pp.Lab(
        Slow(), x, y, loss_fn=nn.functional.mse_loss, profile=profile, num_ranks=2, devices=pp.virtual(2)
    )
