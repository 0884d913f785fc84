"""Losses of every kind, against the whole model on the whole batch."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.runtime.loss import loss_modules
from tests.runtime.models import gpt, mlp

CPUS = ["cpu", "cpu"]


def one_f_one_b(m):
    return pp.schedule("1f1b", num_ranks=2, num_microbatches=m)


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def same_gradients(model, expected):
    return all(
        torch.allclose(p.grad, expected[name], rtol=1e-10, atol=1e-14) for name, p in model.named_parameters()
    )


def token_losses(logits, target):
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-100
    ).view_as(target)


class OwnLoss(nn.Module):
    """Computes its loss from `labels`, as transformers' models do: a mean over the labels that are not -100."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.reduction = reduction

    def forward(self, x, labels):
        logits = self.head(self.body(x).tanh())
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=self.reduction)
        return {"loss": loss, "logits": logits}


def own_loss(reduction="mean"):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(6, 5, 4).double(), "labels": torch.randint(0, 3, (6, 5))}
    inputs["labels"][0, 1:] = -100
    inputs["labels"][3:5] = -100
    return OwnLoss(reduction).double(), inputs


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("per_token", [True, False])
def test_one_loss_a_sample_or_a_token_is_averaged_over_the_batch(m, per_token):
    model, x, y, _ = gpt()

    def loss_fn(logits, target):
        losses = token_losses(logits, target)
        return losses if per_token else losses.mean(1)

    token_losses(model(x), y).mean().backward()
    expected = gradients(model)
    model.zero_grad()
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), one_f_one_b(m), loss_fn=loss_fn, reduction="none", devices=CPUS
    ) as pipe:
        step = pipe.step(x, y)
    assert same_gradients(model, expected) and step.losses.shape == (m,)
    assert torch.isclose(step.loss, token_losses(model(x), y).mean(), rtol=1e-12)


def test_weights_of_samples_and_of_tokens_enter_losses_without_reduction():
    model, x, y, _ = gpt()
    y[:3, 2:] = -100
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), one_f_one_b(3), loss_fn=token_losses, reduction="none", devices=CPUS
    ) as pipe:
        losses = token_losses(model(x), y)
        samples = torch.arange(8.0)
        by_sample = (losses.mean(1) * samples).sum() / samples.sum()
        assert torch.isclose(pipe.step(x, y, loss_weight=samples).loss, by_sample, rtol=1e-12)
        assert torch.isclose(
            pipe.step(x, y, loss_weight=y != -100).loss, losses[y != -100].mean(), rtol=1e-12
        )
        assert pp.check_gradients(pipe, x, y, loss_weight=lambda target: target != -100)


def test_a_loss_that_forgot_its_samples_is_refused():
    model, x, y, loss_fn = mlp()
    with (
        pp.Pipeline(
            model, pp.Split(["4"]), one_f_one_b(2), loss_fn=loss_fn, reduction="none", devices=CPUS
        ) as pipe,
        pytest.raises(pp.PipelabError, match=r"one entry for each of the 4 samples.*shape \(\)"),
    ):
        pipe.step(x, y)


def test_a_vector_under_a_mean_names_the_other_reduction():
    model, x, y, _ = mlp()

    def loss_fn(output, target):
        return (output - target).pow(2).mean(1)

    with (
        pp.Pipeline(model, pp.Split(["4"]), one_f_one_b(2), loss_fn=loss_fn, devices=CPUS) as pipe,
        pytest.raises(
            pp.PipelabError, match=r"tensor of shape \(4,\)\. For one loss a sample say reduction='none'"
        ),
    ):
        pipe.step(x, y)


def test_a_forgotten_target_is_said_beside_the_error_of_the_loss_and_a_loss_of_one_argument_needs_none():
    model, x, _, loss_fn = mlp()
    with (
        pp.Pipeline(
            model,
            pp.Split(["4"]),
            one_f_one_b(2),
            loss_fn=lambda out, target: loss_fn(out, target),
            devices=CPUS,
        ) as pipe,
        pytest.raises(TypeError, match="target") as caught,
    ):
        pipe.step(x)
    assert any("pipe.step got no target" in note for note in caught.value.__notes__)
    with pp.Pipeline(
        model, pp.Split(["4"]), one_f_one_b(2), loss_fn=lambda out: out.mean(), devices=CPUS
    ) as pipe:
        pipe.step(x)


def test_an_own_loss_that_is_none_asks_for_the_labels():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        loss: torch.Tensor | None = None

    class Unlabelled(nn.Sequential):
        def forward(self, x):
            return Output(super().forward(x))

    model, x, _, _ = mlp()
    with (
        pp.Pipeline(Unlabelled(*model), pp.Split(["4"]), one_f_one_b(2), devices=CPUS) as pipe,
        pytest.raises(pp.PipelabError, match=r"output's \.loss, and it is None: were labels passed\?\n"),
    ):
        pipe.step(x)


@pytest.mark.parametrize("scale", [torch.amp.GradScaler("cpu"), 1024.0])
def test_a_scale_that_is_no_function_is_refused_before_anything_runs(scale):
    model, x, y, loss_fn = mlp()
    model.register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    with (
        pp.Pipeline(model, pp.Split(["4"]), one_f_one_b(2), loss_fn=loss_fn, devices=CPUS) as pipe,
        pytest.raises(
            TypeError, match=r"function of the loss, such as scaler\.scale, not (GradScaler|float)"
        ),
    ):
        pipe.step(x, y, scale=scale)


@pytest.mark.parametrize(
    "loss_weight",
    [lambda inputs: (inputs["labels"] != -100).sum(), "mask", "counts"],
)
def test_a_models_own_mean_over_valid_labels_is_exact_with_loss_weight(loss_weight):
    model, inputs = own_loss()
    valid = inputs["labels"] != -100
    loss_weight = {"mask": valid, "counts": valid.sum(1)}.get(loss_weight, loss_weight)
    model(**inputs)["loss"].backward()
    expected = gradients(model)
    model.zero_grad()
    with pp.Pipeline(model, pp.Split(["head"]), one_f_one_b(2), devices=CPUS) as pipe:
        step = pipe.step(inputs, loss_weight=loss_weight)
        assert same_gradients(model, expected)
        assert torch.isclose(step.loss, model(**inputs)["loss"].detach(), rtol=1e-12)
        assert not pp.check_gradients(pipe, inputs)  # without it the mean is another


def test_a_microbatch_without_a_valid_label_counts_nothing_and_breaks_nothing():
    model, inputs = own_loss()
    model(**inputs)["loss"].backward()
    expected = gradients(model)
    model.zero_grad()
    with pp.Pipeline(model, pp.Split(["head"]), one_f_one_b(6), devices=CPUS) as pipe:
        step = pipe.step(inputs, loss_weight=inputs["labels"] != -100)
        assert pp.check_gradients(pipe, inputs, loss_weight=inputs["labels"] != -100)
    assert same_gradients(model, expected) and step.loss.isfinite()
    assert step.losses.isnan().tolist() == [False, False, False, True, True, False]
    assert "not finite" not in str(step)


def test_the_bytes_of_a_stage_are_counted_where_the_first_microbatch_counts_nothing():
    model, inputs = own_loss()
    found = []
    for valid in (True, False):
        labels = inputs["labels"].clamp_min(0)
        if not valid:
            labels[0] = -100
        with pp.Pipeline(model, pp.Split(["head"]), one_f_one_b(6), devices=CPUS) as pipe:
            found.append(pipe.step(inputs | {"labels": labels}, loss_weight=labels != -100).trace.bytes)
    assert found[0] == found[1] and all(found[0].activations)


def test_a_models_own_losses_may_come_one_a_sample():
    model, inputs = own_loss()

    class PerSample(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x, labels):
            logits = self.inner.head(self.inner.body(x).tanh())
            return token_losses(logits, labels).sum(1)

    mine = PerSample()
    with pp.Pipeline(mine, pp.Split(["inner.head"]), one_f_one_b(3), reduction="none", devices=CPUS) as pipe:
        step = pipe.step(inputs)
    assert torch.isclose(step.loss, mine(**inputs).mean(), rtol=1e-12)


def test_a_loss_that_is_divided_by_a_count_of_the_whole_batch_is_a_sum():
    # what transformers' models do with num_items_in_batch, a scalar that every micro-batch gets
    class Divided(OwnLoss):
        def forward(self, x, labels, count):
            return super().forward(x, labels)["loss"] / count

    torch.manual_seed(0)
    model, (_, inputs) = Divided("sum").double(), own_loss()
    inputs["count"] = (inputs["labels"] != -100).sum()
    model(**inputs).backward()
    expected = gradients(model)
    model.zero_grad()
    with pp.Pipeline(model, pp.Split(["head"]), one_f_one_b(3), reduction="sum", devices=CPUS) as pipe:
        pipe.step(inputs)
    assert same_gradients(model, expected)


def test_modules_that_a_loss_uses_are_found_where_python_keeps_them():
    head, other = nn.Linear(2, 2), nn.MSELoss()

    class Holder(nn.Module):
        def compute(self, output, target):
            return output

    holder = Holder()
    assert loss_modules(head) == [head] and loss_modules(None) == []
    assert loss_modules(lambda output, target: other(head(output), target)) == [head, other]
    assert loss_modules(functools.partial(F.mse_loss, weight=head)) == [head]
    assert loss_modules(holder.compute) == [holder]


def test_gradients_of_the_losss_own_parameters_are_exact_and_cleared_after_a_failure():
    model, x, y, _ = mlp()
    head = nn.Linear(6, 6).double()
    fail = []

    def loss_fn(output, target):
        if fail and len(fail) > 2:
            raise RuntimeError("planned")
        fail.append(1) if fail else None
        return F.mse_loss(head(output), target)

    loss_fn(model(x), y).backward()
    expected = head.weight.grad.clone()
    head.zero_grad()
    with pp.Pipeline(model, pp.Split(["4"]), one_f_one_b(4), loss_fn=loss_fn, devices=CPUS) as pipe:
        pipe.step(x, y)
        assert torch.allclose(head.weight.grad, expected, rtol=1e-12)
        fail.append(1)
        with pytest.raises(RuntimeError, match="planned"):
            pipe.step(x, y)
    assert head.weight.grad is None


def test_a_language_model_of_transformers_is_exact_over_uneven_labels_with_loss_weight(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).double().eval()
    ids = torch.randint(0, 16, (6, 6))
    labels = ids.clone()
    labels[:3, 2:] = -100
    labels[4:] = -100  # two samples without any label
    inputs = {"input_ids": ids, "labels": labels}
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()

    def valid(inputs):  # the model shifts its labels by one
        return inputs["labels"][:, 1:] != -100

    with pp.Pipeline(model, pp.Split(["transformer.h.1"]), one_f_one_b(3), devices=CPUS) as pipe:
        step = pipe.step(inputs, loss_weight=valid)
        for name, p in model.named_parameters():  # the model computes its loss in single precision
            assert torch.allclose(p.grad, expected[name], rtol=1e-5, atol=1e-8), name
        assert torch.isclose(step.loss, model(**inputs).loss.detach(), rtol=1e-6)
        check = pp.check_gradients(pipe, inputs, loss_weight=lambda inputs: valid(inputs).sum())
        assert check and check.notes == ()  # the output's loss, one a micro-batch, is the loss itself
        assert not pp.check_gradients(pipe, inputs)
