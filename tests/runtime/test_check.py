"""The check finds what is wrong. Each test plants a defect and expects it to be named."""

import pytest
import torch

import pipelab as pp
from pipelab.runtime import parameters, randomness, stages
from tests.runtime.models import gpt, mlp, unet

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)


def check(make, cuts, **options):
    model, x, y, loss_fn = make(**options)
    with pp.Pipeline(model, pp.Split(cuts), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        return pp.check_gradients(pipe, x, y)


def test_a_right_pipeline_is_true_and_says_what_it_was_compared_with():
    result = check(mlp, ["4"])
    assert (
        result and "the whole model on the whole batch" in str(result) and "7 parameters" not in str(result)
    )


def test_a_lost_gradient_of_a_tied_parameter_is_found_and_named(monkeypatch):
    monkeypatch.setattr(parameters.Parameters, "reduce", parameters.Parameters.drop_replicas)
    result = check(gpt, ["blocks.2"], tied=True)
    assert not result and result.worst.name == "token_embedding.weight"
    assert str(result).startswith("DIFFERENT") and "token_embedding.weight" in str(result)


def test_a_lost_skip_connection_is_found(monkeypatch):
    original = stages.SuspendedStages._roots

    def forgetful(self, run, stage):
        roots, gradients = original(self, run, stage)
        return roots[:1], gradients[:1]

    monkeypatch.setattr(stages.SuspendedStages, "_roots", forgetful)
    result = check(unet, ["up.0"])
    assert not result and result.worst.name.startswith("down")


def test_dropout_seeded_otherwise_is_found(monkeypatch):
    monkeypatch.setattr(randomness, "seed_generators", lambda *args: torch.manual_seed(3))
    assert not check(gpt, ["blocks.2"], dropout=0.4)


def test_a_wrong_weight_of_the_microbatches_is_found():
    model, x, y, loss_fn = mlp()
    with pp.Pipeline(
        model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, reduction="sum", devices=["cpu", "cpu"]
    ) as pipe:
        result = pp.check_gradients(pipe, x, y)  # the loss is a mean: its micro-batches must not be summed
    assert not result and {d.name for d in result.differences if d.excess > 1} >= {"loss", "0.weight"}


def test_nan_is_worse_than_any_number():
    model, x, y, loss_fn = mlp()
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        original = model[0].forward
        calls = []

        def once(x):
            calls.append(1)
            return original(x) * (float("nan") if len(calls) == 1 else 1.0)

        model[0].forward = once
        result = pp.check_gradients(pipe, x, y)
    assert not result


def test_everything_is_put_back():
    model, x, y, loss_fn = gpt(dropout=0.2)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        random = torch.get_rng_state()
        pp.check_gradients(pipe, x, y)
        assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tolerance_follows_the_precision(dtype):
    model, x, y, loss_fn = mlp()
    model.to(dtype)
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        assert pp.check_gradients(pipe, x.to(dtype), y.to(dtype))


def test_a_wrong_reduction_is_found_behind_dropout_too():
    model, x, y, _ = gpt(dropout=0.3)

    def total(logits, target):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")

    for reduction, right in (("mean", False), ("sum", True)):
        with pp.Pipeline(
            model,
            pp.Split(["blocks.2"]),
            SCHEDULE,
            loss_fn=total,
            reduction=reduction,
            devices=["cpu", "cpu"],
        ) as pipe:
            result = pp.check_gradients(pipe, x, y)
            assert bool(result) is right
    assert all(module.training for module in model.modules())


def test_loss_weights_are_checked_too():
    model, x, y, _ = gpt(dropout=0.3)
    y[:4, 1:] = -100

    def loss_fn(logits, target):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        assert pp.check_gradients(pipe, x, y, loss_weight=(y != -100).sum(1))
        assert "reduction or loss_weight" in str(pp.check_gradients(pipe, x, y))


def test_something_that_is_no_pipeline_is_a_wrong_call():
    with pytest.raises(TypeError, match="takes a Pipeline, not Sequential"):
        pp.check_gradients(mlp()[0], *mlp()[1:3])
