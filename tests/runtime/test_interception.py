"""What the mode that sees operations hands to them."""

import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp


class Noted(torch.autograd.Function):
    """Appends to a list that it is handed."""

    @staticmethod
    def forward(ctx, x, notes):
        notes.append(x.shape)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Noting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        hidden, notes = self.first(x), []
        own = self.second(hidden)
        crossed = Noted.apply(hidden, notes)  # a value of another stage where the cut is at `second`
        return own + crossed.sum(1, keepdim=True) * len(notes)


def test_a_list_that_a_function_fills_is_the_models_own():
    torch.manual_seed(0)
    model, x, y = Noting().double(), torch.randn(4, 4).double(), torch.zeros(4, 1).double()
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    with pp.Pipeline(model, pp.Split(["second"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 2) as pipe:
        check = pp.check_gradients(pipe, x, y)
    assert check, check
