"""Models and losses that the runtime's tests share."""

import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp


def token_loss(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def gpt(**options):
    torch.manual_seed(0)
    model = pp.zoo.gpt(**{"layers": 4, "width": 16, "heads": 2, "vocab": 12, "context": 6} | options).double()
    return model, torch.randint(0, 12, (8, 6)), torch.randint(0, 12, (8, 6)), token_loss


def mlp():
    torch.manual_seed(0)
    return (
        pp.zoo.mlp(layers=4, width=6).double(),
        torch.randn(8, 6).double(),
        torch.randn(8, 6).double(),
        F.mse_loss,
    )


def resnet():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 6, 6).double(), torch.randint(0, 5, (8,))
    return pp.zoo.resnet(blocks=4, channels=4, classes=5).double(), x, y, F.cross_entropy


def unet():
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 8, 8).double(), torch.randn(8, 1, 8, 8).double()
    return pp.zoo.unet(depth=2, channels=3).double(), x, y, F.mse_loss


class Awkward(nn.Module):
    """What real models do: root parameters, keyword arguments, dicts and None across cuts, reused modules, in-place."""

    class Part(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, state, *, mask=None, nothing=None):
            x = self.linear(state["x"]).relu_()
            if mask is not None:
                x = x * mask
            return {"x": x + state["first"], "first": state["first"], "none": nothing}

    def __init__(self, width=6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.unused = nn.Linear(width, width)
        self.shared = nn.Linear(width, width)
        self.parts = nn.ModuleList(self.Part(width) for _ in range(4))

    def forward(self, x, mask=None):
        first = self.shared(x)
        state = {"x": first * self.scale, "first": first}
        for part in self.parts:
            state = part(state, mask=mask)
        return self.shared(state["x"]) * self.scale + self.frozen


def awkward():
    torch.manual_seed(0)
    x = pp.Args(torch.randn(8, 6).double(), mask=(torch.rand(8, 6) > 0.3))
    return Awkward().double(), x, torch.randn(8, 6).double(), F.mse_loss


ZOO = {
    "mlp": (mlp, ["2", "4", "6"]),
    "gpt": (gpt, ["blocks.1", "blocks.2", "norm"]),
    "tied gpt": (lambda: gpt(tied=True), ["blocks.1", "blocks.2", "blocks.3"]),
    "resnet": (resnet, ["blocks.1", "blocks.2", "blocks.3"]),
    "unet": (unet, ["down.1", "bottom", "up.1"]),
    "awkward": (awkward, ["parts.1", "parts.2", "parts.3"]),
}


class OwnStatistics(nn.Module):
    """A norm that somebody wrote: torch's batch_norm leaves no mark in the version of these buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(F.batch_norm(x, self.mean, self.variance, training=self.training))
