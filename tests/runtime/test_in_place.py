"""Tensors on modules that one stage changes in place and another uses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp

DIM = 4
REFUSED = r"The forward changes '{}' in place .*, and the stages 0 and 1 use it"


class Model(nn.Module):
    """Cut at `b`; what it does around that, the subclasses say."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.register_buffer("mean", torch.zeros(DIM))
        self.on = True
        self.double()


class Across(Model):
    def forward(self, x):
        x = self.a(x)
        if self.on:
            self.mean.copy_(x.detach().mean(0))
        return self.b(x) + self.mean


class AcrossByView(Model):
    def forward(self, x):
        x = self.a(x)
        view = self.mean[:2]
        view.copy_(x.detach().mean(0)[:2])
        return self.b(x) + view.sum()


class Plain(Model):
    def __init__(self):
        super().__init__()
        self.kept = torch.zeros(DIM).double()

    def forward(self, x):
        x = self.a(x)
        self.kept.copy_(x.detach().mean(0))
        return self.b(x) * self.kept


class WrittenLate(Model):
    """The stage that reads it comes before the one that writes."""

    def forward(self, x):
        x = self.b(self.a(x) + self.mean)
        self.mean.add_(x.detach().mean(0))
        return x


class Block(nn.Linear):
    def __init__(self):
        super().__init__(DIM, DIM)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


class WrittenByCaller(Model):
    def __init__(self):
        super().__init__()
        self.b = Block().double()

    def forward(self, x):
        x = self.a(x)
        self.b.scale.mul_(0.9)
        return self.b(x)


def data():
    return torch.randn(8, DIM).double(), torch.randn(8, DIM).double()


def opened(model, name="1f1b", m=4, **options):
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=m)
    return pp.Pipeline(
        model,
        pp.Split(["b"]),
        schedule,
        loss_fn=F.mse_loss,
        devices=options.pop("devices", ["cpu"] * 2),
        **options,
    )


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Across, "mean"),
        (AcrossByView, "mean"),
        (Plain, "kept"),
        (WrittenLate, "mean"),
        (WrittenByCaller, "b.scale"),
    ],
)
def test_a_tensor_that_one_stage_changes_and_another_uses_is_refused_in_every_step(make, name, schedule):
    torch.manual_seed(0)
    model = make()
    with opened(model, schedule) as pipe:
        for _ in range(2):
            with pytest.raises(pp.PipelabError, match=REFUSED.format(name)):
                pipe.step(*data())
            assert all(p.grad is None for p in model.parameters())


def test_it_is_refused_without_gradients_too():
    with opened(Across()) as pipe, pytest.raises(pp.PipelabError, match=REFUSED.format("mean")):
        pipe.forward(data()[0])


def test_a_change_that_a_later_step_makes_first_is_refused():
    torch.manual_seed(0)
    model = Across()
    model.on = False

    def first_stage_reads(module, args):
        return (args[0] + model.mean,)

    model.a.register_forward_pre_hook(first_stage_reads)
    with opened(model) as pipe:
        for _ in range(2):
            pipe.step(*data())
        model.on = True
        with pytest.raises(pp.PipelabError, match=REFUSED.format("mean")):
            pipe.step(*data())


def assert_accumulates(pipe, model, x, y, m):
    whole = copy.deepcopy(model)
    for _ in range(3):
        model.zero_grad()
        whole.zero_grad()
        pipe.step(x, y)
        for part, goal in zip(x.chunk(m), y.chunk(m), strict=True):
            (F.mse_loss(whole(part), goal) / m).backward()
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-12)
        for p, q in zip(model.buffers(), whole.buffers(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12)


def test_with_one_micro_batch_in_flight_it_is_right():
    torch.manual_seed(0)
    model = Across()
    with opened(model, "naive", 1) as pipe:
        assert_accumulates(pipe, model, *data(), 1)


class Within(Model):
    """Each stage has buffers of its own, and both read one that nobody changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.table = nn.BatchNorm1d(DIM).double(), torch.ones(DIM).double()

    def forward(self, x):
        self.mean.copy_(x.detach().mean(0))
        x = self.norm(self.a(x)) * self.mean.clone() + self.table
        return self.b(x) + self.table


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_what_one_stage_alone_changes_and_uses_is_right(schedule):
    torch.manual_seed(0)
    model = Within()
    with opened(model, schedule) as pipe:
        assert_accumulates(pipe, model, *data(), 4)


class Counts(Model):
    """Keeps a number and a list in plain containers."""

    def __init__(self):
        super().__init__()
        self.inner, self.b = CountsInside().double(), CountsInside().double()

    def forward(self, x):
        return self.b(self.inner(self.a(x)))


class CountsInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.state, self.seen = nn.Linear(DIM, DIM), {"n": 0}, []

    def forward(self, x):
        self.state["n"] += 1
        self.seen.append(x.sum().item())
        return self.lin(x).tanh() * self.state["n"]


@pytest.mark.parametrize("devices", [["cpu"] * 2, pp.virtual(2)], ids=["threads", "virtual"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_what_containers_count_is_counted_once_for_each_micro_batch(devices, recompute):
    torch.manual_seed(0)
    model = Counts()
    with opened(model, m=2, devices=devices, recompute=recompute) as pipe:
        assert_accumulates(pipe, model, *data(), 2)
        if recompute == "all":
            assert "inner (a buffer or a container is written to" in pipe.recompute_notes[0]
    assert model.inner.state["n"] == model.b.state["n"] == len(model.b.seen) == 3 * 2


@pytest.mark.parametrize("devices", [["cpu"] * 2, pp.virtual(2)], ids=["threads", "virtual"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_an_optimizer_in_hooks_steps_once_a_step(devices, recompute):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.a, model.b = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), nn.Linear(DIM, DIM)
    model.double()
    whole, (x, y) = copy.deepcopy(model), data()
    optimizers = {p: torch.optim.Adam([p], lr=0.01) for p in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    with opened(model, m=1, devices=devices, recompute=recompute) as pipe:
        for _ in range(2):
            pipe.step(x, y)
    plain = torch.optim.Adam(whole.parameters(), lr=0.01)
    for _ in range(2):
        plain.zero_grad()
        F.mse_loss(whole(x), y).backward()
        plain.step()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12)
