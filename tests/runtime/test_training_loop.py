"""Training loops as people write them, beside the same loop on the whole model."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pipelab as pp
from tests.runtime.loops import NAMES, batches, equal, grads, pipeline, same
from tests.runtime.models import gpt, mlp, resnet


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


# -- optimizers, schedulers, clipping, accumulation --------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_accumulation_clipping_and_a_scheduler_follow_the_whole_model(name, optimizer, clip):
    model, x, y, loss_fn = mlp()
    plain = copy.deepcopy(model)

    def loop(model, run):
        chosen = optimizer(model.parameters(), lr=0.05)
        rates = torch.optim.lr_scheduler.StepLR(chosen, 1, gamma=0.5)
        for number, batch in enumerate(batches(9, x), start=1):
            run(batch)
            if number % 3 == 0:  # an update for three batches
                clip(model.parameters(), 0.1)
                chosen.step()
                rates.step()
                chosen.zero_grad()
        return chosen.param_groups[0]["lr"]

    with pipeline(model, name, loss_fn) as pipe:
        mine = loop(model, lambda batch: pipe.step(batch, y))
    theirs = loop(plain, lambda batch: loss_fn(plain(batch), y).backward())
    assert same(model, plain) and mine == theirs == 0.05 / 8


@pytest.mark.parametrize("before", [True, False])
def test_an_optimizer_may_be_made_before_the_pipeline_or_after(name, before):
    model, x, y, loss_fn = mlp()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01) if before else None
    if before:  # with state of its own already
        loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    with pipeline(model, name, loss_fn) as pipe:
        optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
        for batch in batches(3, x):
            pipe.step(batch, y)
            optimizer.step()
            optimizer.zero_grad()
    theirs = torch.optim.Adam(plain.parameters(), lr=0.01)
    for batch in [x] * before + batches(3, x):
        theirs.zero_grad()
        loss_fn(plain(batch), y).backward()
        theirs.step()
    assert same(model, plain)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_zeroed_either_way(name, set_to_none):
    model, x, y, loss_fn = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
        once = grads(model)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=set_to_none)
            assert all((p.grad is None) is set_to_none for p in model.parameters())
            pipe.step(x, y)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), once, strict=True))


def test_a_gradient_kept_by_the_user_is_added_to_in_place(name):
    model, x, y, loss_fn = mlp()
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
        kept, once = [p.grad for p in model.parameters()], grads(model)
        pipe.step(x, y)
    for gradient, parameter, value in zip(kept, model.parameters(), once, strict=True):
        assert parameter.grad is gradient and torch.allclose(gradient, 2 * value, rtol=1e-12)


def test_the_model_trains_on_without_the_pipeline(name):
    model, x, y, loss_fn = mlp()
    plain = copy.deepcopy(model)
    mine, theirs = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, plain))
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
    mine.step()
    loss_fn(plain(x), y).backward()
    theirs.step()
    for chosen, optimizer in ((model, mine), (plain, theirs)):
        optimizer.zero_grad()
        loss_fn(chosen(x), y).backward()
        optimizer.step()
    assert same(model, plain)


# -- data -------------------------------------------------------------------------------------------------------


def test_a_data_loader_with_an_uneven_last_batch_follows_the_whole_model(name):
    model, x, _, loss_fn = mlp()
    plain = copy.deepcopy(model)
    (xs,), (ys,) = batches(1, x, 21), batches(1, x, 21)
    seen = []

    def loop(model, run):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = DataLoader(
            TensorDataset(xs, ys), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)
        )
        for _ in range(2):
            for inputs, target in loader:
                run(inputs, target)
                seen.append(len(inputs))
                optimizer.step()
                optimizer.zero_grad()

    with pipeline(model, name, loss_fn) as pipe:
        loop(model, pipe.step)
    loop(plain, lambda inputs, target: loss_fn(plain(inputs), target).backward())
    assert same(model, plain) and seen[:3] == [8, 8, 5]


def test_a_last_batch_smaller_than_the_microbatches_is_refused_and_the_loop_may_go_on(name):
    model, x, y, loss_fn = mlp()
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
        before = grads(model)
        with pytest.raises(pp.PipelabError, match="at least 4 samples, but the batch has 3"):
            pipe.step(x[:3], y[:3])
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
        pipe.step(x, y)
        assert pipe.forward(x[:3]).shape == (3, 6)


# -- training and evaluation ------------------------------------------------------------------------------------


def test_evaluation_between_steps_uses_running_statistics_and_leaves_them(name):
    model, x, y, loss_fn = resnet()
    with pipeline(model, name, loss_fn, cuts=("blocks.1", "blocks.2", "blocks.3")) as pipe:
        for _ in range(2):
            pipe.step(x, y)
            model.eval()
            before = copy.deepcopy(model)
            outputs = pipe.forward(x)
            assert torch.allclose(outputs, model(x), rtol=1e-12) and not outputs.requires_grad
            assert equal(model, before)
            model.train()
        counted = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
        assert all(value == 2 * 4 for value in counted)  # two steps of four micro-batches


def test_dropout_follows_the_flag_from_step_to_step(name):
    model, x, y, loss_fn = gpt(dropout=0.5)
    plain = copy.deepcopy(model).eval()
    whole = loss_fn(plain(x), y).detach()
    with pipeline(model, name, loss_fn, cuts=("blocks.1", "blocks.2", "norm")) as pipe:
        for training in (True, False, True, False):
            model.train(training)
            losses = {float(pipe.step(x, y).loss) for _ in range(2)}
            assert len(losses) == (2 if training else 1)
            assert training or torch.isclose(torch.tensor(losses.pop()), whole.float(), rtol=1e-6)


def test_layers_frozen_between_steps_keep_their_weights_and_get_no_gradient(name):
    model, x, y, loss_fn = mlp()
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        model[2].requires_grad_(False)
        assert pp.check_gradients(pipe, x, y)
        pipe.step(x, y)
        assert model[2].weight.grad is None and model[0].weight.grad is not None
        model[2].requires_grad_(True)
        pipe.step(x, y)
        assert model[2].weight.grad is not None


# -- saving -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_saved_and_resumed_goes_on_bit_for_bit(name):
    def objects():
        torch.manual_seed(0)
        model, x, y, loss_fn = gpt(dropout=0.2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        return model, optimizer, rates, x, y, loss_fn

    def steps(pipe, optimizer, rates, x, y, count):
        losses = []
        for _ in range(count):
            losses.append(float(pipe.step(x, y).loss))
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        return losses

    cuts = ("blocks.1", "blocks.2", "norm")
    model, optimizer, rates, x, y, loss_fn = objects()
    with pipeline(model, name, loss_fn, cuts=cuts) as pipe:
        steps(pipe, optimizer, rates, x, y, 3)
        file = io.BytesIO()
        parts = {"model": model, "optimizer": optimizer, "rates": rates}
        saved = {key: part.state_dict() for key, part in parts.items()} | {"random": torch.get_rng_state()}
        torch.save(saved, file)
        expected = steps(pipe, optimizer, rates, x, y, 5)
    again, optimizer, rates, x, y, loss_fn = objects()
    file.seek(0)
    saved = torch.load(file)
    again.load_state_dict(saved["model"])
    with pipeline(again, name, loss_fn, cuts=cuts) as pipe:
        optimizer.load_state_dict(saved["optimizer"])
        rates.load_state_dict(saved["rates"])
        torch.set_rng_state(saved["random"])
        assert steps(pipe, optimizer, rates, x, y, 5) == expected
    assert equal(model, again)


def test_weights_loaded_into_an_open_pipeline_are_used(name):
    model, x, y, loss_fn = mlp()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    with pipeline(model, name, loss_fn) as pipe:
        pipe.step(x, y)
        model.load_state_dict(other.state_dict())
        assert torch.allclose(pipe.step(x, y).loss, loss_fn(other(x), y).detach(), rtol=1e-12)


# -- GPUs -------------------------------------------------------------------------------------------------------


def gpu_placements():
    yield ["cuda:0", "cuda:0"]
    yield ["cuda:0", "cpu"]
    yield ["cpu", "cuda:0"]
    if torch.cuda.device_count() > 1:
        yield ["cuda:0", "cuda:1"]


@pytest.mark.gpu
def test_an_optimizer_whose_state_is_moved_by_the_documented_line_follows_the_whole_model(name):
    for devices in gpu_placements():
        model, x, y, loss_fn = mlp()
        plain = copy.deepcopy(model)
        mine, theirs = (torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, plain))
        for chosen, optimizer in ((model, mine), (plain, theirs)):  # state on the CPU
            loss_fn(chosen(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        with pipeline(model, name, loss_fn, devices=devices) as pipe:
            for number, batch in enumerate(batches(3, x)):
                pipe.step(batch, y)
                if number == 0:  # the first step has put every parameter where it belongs
                    mine.load_state_dict(mine.state_dict())
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                mine.step()
                mine.zero_grad()
                loss_fn(plain(batch), y).backward()
                nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
                theirs.step()
                theirs.zero_grad()
        assert same(model, plain), devices
        assert {p.device.type for p in model.parameters()} == {device.split(":")[0] for device in devices}


@pytest.mark.gpu
def test_a_batch_on_another_device_than_the_first_stage_is_brought_there(name):
    for devices in gpu_placements():
        for place in ("cpu", "cuda:0"):
            model, x, y, loss_fn = mlp()
            with pipeline(model, name, loss_fn, devices=devices) as pipe:
                assert pp.check_gradients(pipe, x.to(place), y.to(place)), (devices, place)
                assert F.mse_loss(pipe.forward(x.to(place)).cpu(), y).isfinite()
