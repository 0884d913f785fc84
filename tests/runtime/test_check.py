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
        assert "reduction, loss_weight or batch_dim" in str(pp.check_gradients(pipe, x, y))


def test_something_that_is_no_pipeline_is_a_wrong_call():
    with pytest.raises(TypeError, match="takes a Pipeline, not Sequential"):
        pp.check_gradients(mlp()[0], *mlp()[1:3])


class Unique(torch.nn.Sequential):
    """A model that cannot be copied, and that counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)

    def __deepcopy__(self, memo):
        raise RuntimeError("there is one of me")


def unique():
    model, x, y, loss_fn = mlp()
    return Unique(*model), x, y, loss_fn


def checked(model, x, y, loss_fn, cut="4", **options):
    schedule = options.pop("schedule", SCHEDULE)
    with pp.Pipeline(
        model, pp.Split([cut]), schedule, loss_fn=loss_fn, devices=["cpu", "cpu"], **options
    ) as pipe:
        return pp.check_gradients(pipe, x, y)


def test_a_model_that_cannot_be_copied_is_checked_and_its_attributes_are_put_back():
    model, x, y, loss_fn = unique()
    assert checked(model, x, y, loss_fn) and model.calls == 0


def test_a_loss_that_closes_over_the_model_is_no_false_alarm():
    model, x, y, loss_fn = mlp()

    def regular(output, target):
        return loss_fn(output, target) + 0.1 * sum(p.pow(2).sum() for p in model.parameters())

    assert checked(model, x, y, regular)


def test_hooks_on_parameters_run_in_the_reference_too():
    model, x, y, loss_fn = mlp()
    model[2].weight.register_hook(lambda gradient: gradient * 3)
    result = checked(model, x, y, loss_fn)
    assert result and any(d.name == "2.weight" for d in result.differences)


def test_a_hook_that_sees_parts_of_a_gradient_is_told_from_a_wrong_pipeline():
    model, x, y, loss_fn = mlp()

    def clip(parameter):
        parameter.grad.clamp_(max=1e-3)

    model[2].weight.register_post_accumulate_grad_hook(clip)
    result = checked(model, x, y, loss_fn)
    assert not result and "does equal plain gradient accumulation" in str(result)


def test_an_optimizer_in_a_hook_cannot_be_checked_and_its_updates_are_undone():
    model, x, y, loss_fn = mlp()

    def update(parameter):
        with torch.no_grad():
            parameter -= parameter.grad
        parameter.grad = None

    model[2].bias.register_post_accumulate_grad_hook(update)
    before = model[2].bias.detach().clone()
    with pytest.raises(pp.PipelabError, match=r"changed the weights themselves, '2\.bias'"):
        checked(model, x, y, loss_fn)
    assert torch.equal(before, model[2].bias)


def test_the_losss_own_parameters_are_compared_and_their_gradients_put_back():
    model, x, y, loss_fn = mlp()

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(6).double())

        def forward(self, output, target):
            return loss_fn(output * self.scale, target)

    loss = Scaled()
    loss.scale.grad = torch.full((6,), 7.0).double()
    result = checked(model, x, y, loss)
    assert result and "loss_fn.scale" in [d.name for d in result.differences]
    assert loss.scale.grad.tolist() == [7.0] * 6
    assert {d.name for d in checked(model, x, y, loss, reduction="sum").differences if d.excess > 1} >= {
        "loss_fn.scale",
        "loss",
    }


def test_losses_that_do_not_add_up_are_told_from_a_wrong_pipeline():
    model, x, y, loss_fn = mlp()
    result = checked(model, x, y, loss_fn, reduction="sum")
    assert not result and "see reduction, loss_weight and batch_dim" in str(result)


def test_gradients_may_be_tiny_and_are_still_compared(monkeypatch):
    model, x, y, _ = mlp()
    model.float()

    def tiny(output, target):
        return torch.nn.functional.mse_loss(output, target) * 1e-9

    assert checked(model, x.float(), y.float(), tiny)
    original = stages.SuspendedStages._roots

    def doubled(self, run, stage):
        roots, gradients = original(self, run, stage)
        return roots, [gradient * (1.5 if stage == 0 else 1) for gradient in gradients]

    monkeypatch.setattr(stages.SuspendedStages, "_roots", doubled)
    result = checked(model, x.float(), y.float(), tiny)
    assert not result and result.worst.name.startswith(("0.", "2."))


class Shift(torch.nn.Module):
    def __init__(self, *shape, dtype=torch.float32):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(*shape, dtype=dtype))

    def forward(self, x):
        return x + self.by


def test_a_gradient_that_is_zero_but_for_rounding_is_no_false_alarm():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), Shift(1), torch.nn.Softmax(1), torch.nn.Linear(6, 6))
    result = checked(model, torch.randn(8, 6), torch.randn(8, 6), torch.nn.functional.mse_loss, cut="3")
    assert result and next(d for d in result.differences if d.name == "1.by").relative > 1e-3


def test_outputs_that_are_not_per_sample_are_left_out_and_said_so():
    class Aux(torch.nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return {"out": out, "size": out.pow(2).mean(), "weights": self[0].weight * 1}

    model, x, y, loss_fn = mlp()
    result = checked(Aux(*model), x, y, lambda output, target: loss_fn(output["out"], target))
    said = "2 outputs are not one per sample and were not compared: 'size', 'weights'."
    assert result and result.notes == (said,)


@pytest.mark.parametrize("same", [True, False])
def test_an_output_that_is_the_loss_itself_is_no_output_to_miss(same):
    class Own(torch.nn.Sequential):
        def forward(self, x, y):
            out = super().forward(x)
            loss = torch.nn.functional.mse_loss(out, y)
            return {"loss": loss, "out": out} if same else {"loss": loss, "out": out, "half": loss / 2}

    model, x, y, _ = mlp()
    result = checked(Own(*model), {"x": x, "y": y}, None, None)
    said = "1 output is not one per sample and was not compared: 'half'."
    assert result and result.notes == (() if same else (said,))


def test_outputs_put_together_wrongly_are_found(monkeypatch):
    model, x, y, loss_fn = mlp()
    original = torch.cat
    monkeypatch.setattr("pipelab.runtime.outputs.torch.cat", lambda parts, dim: original(parts[::-1], dim))
    result = checked(model, x, y, loss_fn)
    monkeypatch.undo()
    assert not result and result.worst.name == "outputs"


def test_infinite_outputs_that_are_equal_are_equal():
    class Masked(torch.nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return out, out.masked_fill(out > 0, float("-inf"))

    model, x, y, loss_fn = mlp()
    assert checked(Masked(*model), x, y, lambda output, target: loss_fn(output[0], target))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_gradients_are_compared_in_both_parts(dtype, monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Shift(3, dtype=dtype), torch.nn.Linear(3, 3, dtype=dtype))
    x, y = torch.randn(8, 3, dtype=dtype), torch.randn(8, 3, dtype=dtype)

    def loss_fn(output, target):
        return (output - target).abs().pow(2).mean()

    assert checked(model, x, y, loss_fn, cut="1")
    original = stages.SuspendedStages._roots

    def turned(self, run, stage):
        roots, gradients = original(self, run, stage)
        return roots, [g + 1j * g.real.abs().mean() if stage == 0 else g for g in gradients]

    monkeypatch.setattr(stages.SuspendedStages, "_roots", turned)
    assert not checked(model, x, y, loss_fn, cut="1")


def test_sparse_gradients_are_compared():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 2)).double()
    x, y = torch.randint(0, 5, (8,)), torch.randn(8, 2).double()
    assert checked(model, x, y, torch.nn.functional.mse_loss, cut="1")


def test_under_autocast_the_tolerance_is_that_of_the_lower_precision():
    model, x, y, loss_fn = gpt()
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = checked(model, x, y, loss_fn, cut="blocks.2")
    assert result and result.worst.relative > 1e-6


def test_a_loss_in_lower_precision_than_the_model_is_no_false_alarm():
    model, x, y, loss_fn = mlp()
    result = checked(model, x, y, lambda out, target: loss_fn(out.float(), target.float()).mul(1 / 3))
    assert result and max(d.relative for d in result.differences) > 1e-12


def test_a_frozen_model_is_equal_to_itself():
    model, x, y, loss_fn = mlp()
    model.requires_grad_(False)
    assert "0 parameters" in str(checked(model, x, y, loss_fn))


def test_batchnorm_without_statistics_mixes_samples_in_evaluation_too():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(6, track_running_stats=False)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), norm, torch.nn.Linear(6, 6)).double().eval()
    x, y = torch.randn(8, 6).double(), torch.randn(8, 6).double()
    with pp.Pipeline(
        model, pp.Split(["2"]), SCHEDULE, loss_fn=torch.nn.functional.mse_loss, devices=["cpu", "cpu"]
    ) as pipe:
        assert "BatchNorm's statistics" in str(pp.check_gradients(pipe, x, y))


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [["cuda:0", "cpu"], ["cpu", "cuda:0"]])
def test_on_several_devices_the_weights_are_gathered_and_go_back(devices):
    model, x, y, loss_fn = unique()
    model[2].weight.register_hook(lambda gradient: gradient * 3)
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=devices) as pipe:
        before = {name: (p.device, p.detach().clone()) for name, p in model.named_parameters()}
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y)
        for name, parameter in model.named_parameters():
            device, value = before[name]
            assert parameter.device == device and torch.equal(parameter, value) and parameter.grad is None
        pipe.step(x, y)


@pytest.mark.gpu
def test_dropout_on_a_gpu_and_the_cpu_has_no_plain_run_to_compare_with():
    model, x, y, loss_fn = gpt(dropout=0.3)
    with (
        pp.Pipeline(
            model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=loss_fn, devices=["cuda:0", "cpu"]
        ) as pipe,
        pytest.raises(pp.PipelabError, match=r"model\.eval\(\)"),
    ):
        pp.check_gradients(pipe, x, y)


def test_gradients_of_inputs_are_compared_and_put_back():
    model, x, y, loss_fn = mlp()
    x.requires_grad_()
    x.grad = torch.full_like(x, 5.0)
    result = checked(model, x, y, loss_fn)
    assert result and "input 0" in [d.name for d in result.differences]
    assert torch.equal(x.grad, torch.full_like(x, 5.0))
