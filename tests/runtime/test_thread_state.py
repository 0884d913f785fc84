"""What is set for the calling thread holds in the forwards of a step, or is refused by name."""

import contextvars

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pipelab as pp

SCHEDULE = pp.schedule("zb-h1", num_ranks=2, num_microbatches=4)


class Asking(nn.Module):
    """Notes the state of the thread in each of its two stages."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.seen = set()
        self.ask = lambda: None

    def forward(self, x):
        self.seen.add(self.ask())
        x = torch.tanh(self.a(x))
        x = self.b(x)
        self.seen.add(self.ask())
        return x


@pytest.fixture
def opened():
    torch.manual_seed(0)
    model, x, y = Asking().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu"] * 2) as pipe:
        yield pipe, x, y


def test_inference_mode_holds_in_the_forwards(opened):
    pipe, x, y = opened
    pipe.model.ask = torch.is_inference_mode_enabled
    for _ in range(2):
        with torch.inference_mode():
            out = pipe.forward(x)
        assert out.is_inference()
    assert pipe.model.seen == {True}
    assert pp.check_gradients(pipe, x, y)  # and the weights are none of it


def test_the_default_device_holds_in_forward_and_backward(opened):
    pipe, x, y = opened
    seen = pipe.model.seen

    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 1

        @staticmethod
        def backward(ctx, gradient):
            seen.add(torch.empty(1).device.type)
            return gradient

    pipe.model.ask = lambda: torch.empty(1).device.type
    pipe.model.b.register_forward_hook(lambda module, args, output: Made.apply(output))
    with torch.device("meta"):
        pipe.step(x, y)
        pipe.forward(x)
    assert seen == {"meta"}


def test_hooks_on_saved_tensors_hold_and_are_no_checkpoint(opened):
    pipe, x, y = opened
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    pipe.step(x, y)
    expected = [p.grad.clone() for p in pipe.model.parameters()]
    for _ in range(2):
        pipe.model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            pipe.step(x, y)
        assert packed
        packed.clear()
        for p, q in zip(pipe.model.parameters(), expected, strict=True):
            assert torch.allclose(p.grad, q, rtol=1e-12)
    assert not pipe._cut.flow.checkpoints


def test_context_variables_hold(opened):
    pipe, x, y = opened
    variable = contextvars.ContextVar("variable", default=0)
    pipe.model.ask = variable.get
    variable.set(7)
    pipe.step(x, y)
    assert pipe.model.seen == {7}


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Watching(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Counting, Watching])
def test_other_modes_are_refused_by_name(opened, mode):
    pipe, x, y = opened
    with mode(), pytest.raises(pp.PipelabError, match=f"{mode.__name__} is active around the step"):
        pipe.step(x, y)
    assert all(p.grad is None for p in pipe.model.parameters())
    assert pipe.step(x, y).loss.isfinite()


def test_transforms_of_torch_func_are_refused(opened):
    pipe, x, _ = opened
    with pytest.raises(pp.PipelabError, match=r"transform of torch\.func"):
        torch.vmap(lambda value: pipe.forward(x) * value)(torch.ones(2))
