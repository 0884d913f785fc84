"""Mixed precision in a training loop: a loss scale, autocast, and models in half precision."""

import copy

import pytest
import torch
from torch import nn

from tests.runtime.loops import NAMES, batches, equal, grads, pipeline, same
from tests.runtime.models import mlp


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_a_scale_leaves_the_gradients_of_earlier_steps_as_they_were(name):
    model, x, y, loss_fn = mlp()
    first, second = batches(2, x)
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(first, y)
        one = grads(model)
        model.zero_grad()
        pipe.step(second, y)
        two = grads(model)
        model.zero_grad()
        pipe.step(first, y)
        step = pipe.step(second, y, scale=lambda loss: loss * 1024)
    for p, a, b in zip(model.parameters(), one, two, strict=True):
        assert torch.allclose(p.grad, a + 1024 * b, rtol=1e-12)
    assert torch.allclose(step.loss, loss_fn(model(second), y).detach(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_grad_scaler_trains_under_autocast_and_follows_the_whole_model(name, dtype):
    model, x, y, loss_fn = mlp()
    model.float()
    plain = copy.deepcopy(model)
    x, y = x.float(), y.float()

    def loop(model, run):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        scales = []
        for batch in batches(5, x):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                run(batch, scaler)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    with pipeline(model, name, loss_fn) as pipe:
        mine = loop(model, lambda batch, scaler: pipe.step(batch, y, scale=scaler.scale))
    theirs = loop(plain, lambda batch, scaler: scaler.scale(loss_fn(plain(batch), y)).backward())
    assert mine == theirs == [1024.0, 2048.0, 2048.0, 4096.0, 4096.0]
    assert same(model, plain, rtol=2e-2, atol=2e-3)


def test_a_scale_too_large_for_half_precision_skips_the_update(name):
    model, x, y, loss_fn = mlp()
    model.float()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    with pipeline(model, name, loss_fn) as pipe:
        with torch.autocast("cpu", dtype=torch.float16):
            step = pipe.step(x.float(), y.float(), scale=scaler.scale)
        scaler.step(optimizer)
        scaler.update()
    assert equal(model, before) and scaler.get_scale() == 2.0**59
    assert step.loss.isfinite() and step.not_finite is None


def test_a_model_in_half_precision_trains(name):
    model, x, y, loss_fn = mlp()
    model.bfloat16()
    with pipeline(model, name, loss_fn) as pipe:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        losses = []
        for _ in range(5):
            losses.append(float(pipe.step(x.bfloat16(), y.bfloat16()).loss))
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] and model[0].weight.dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_grad_scaler_trains_half_precision_on_a_gpu(name):
    model, x, y, loss_fn = mlp()
    model.float()
    x, y = x.float().cuda(), y.float().cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cuda")
    losses = []
    with pipeline(model, name, loss_fn, devices=["cuda:0", "cuda:0"]) as pipe:
        for _ in range(10):
            with torch.autocast("cuda", dtype=torch.float16):
                losses.append(float(pipe.step(x, y, scale=scaler.scale).loss))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
