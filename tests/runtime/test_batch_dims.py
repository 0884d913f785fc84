"""Models whose batch is not the first dimension, and values that are the same for every sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp

CPUS = ["cpu", "cpu"]


def one_f_one_b(m):
    return pp.schedule("1f1b", num_ranks=2, num_microbatches=m)


class Recurrent(nn.Module):
    """Sequence first, as nn.LSTM is by default; returns its last state too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTM(3, 4), nn.LSTM(4, 2)

    def forward(self, x):
        out, (hidden, _) = self.second(self.first(x)[0])
        return out, hidden


@pytest.mark.parametrize("dim", [1, -2])
@pytest.mark.parametrize("m", [1, 3])
def test_a_sequence_first_lstm_is_cut_along_its_batch(dim, m):
    torch.manual_seed(0)
    model, x, y = Recurrent().double(), torch.randn(5, 4, 3).double(), torch.randn(5, 4, 2).double()
    with pp.Pipeline(
        model,
        pp.Split(["second"]),
        one_f_one_b(m),
        loss_fn=lambda output, target: F.mse_loss(output[0], target),
        devices=CPUS,
        batch_dim=dim,
    ) as pipe:
        check = pp.check_gradients(pipe, x, y)
        assert check and "not compared" not in str(check), str(check)
        outputs, hidden = pipe.step(x, y).outputs
        assert outputs.shape == (5, 4, 2) and hidden.shape == (1, 4, 2)
        assert torch.allclose(pipe.forward(x[:, :2])[0], model(x[:, :2])[0], rtol=1e-12)


@pytest.mark.parametrize("m", [1, 3])
def test_a_negative_dimension_is_found_in_outputs_of_more_dimensions_than_the_inputs(m):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).double()
    ids, y = torch.randint(0, 7, (5, 6)), torch.randint(0, 3, (5, 6))  # the batch of 6 comes last
    with pp.Pipeline(
        model,
        pp.Split(["1"]),
        one_f_one_b(m),
        loss_fn=lambda logits, target: F.cross_entropy(logits.flatten(0, 1), target.flatten()),
        devices=CPUS,
        batch_dim=-1,
    ) as pipe:
        check = pp.check_gradients(pipe, ids, y)
        assert check and check.notes == (), str(check)
        assert torch.allclose(pipe.step(ids, y).outputs, model(ids), rtol=1e-12)
        assert torch.allclose(pipe.forward(ids), model(ids), rtol=1e-12)


def test_a_transformer_with_a_causal_mask_for_all_trains_sequence_first():
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0).double()
    source, goal = torch.randn(5, 4, 8).double(), torch.randn(3, 4, 8).double()
    mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    with pp.Pipeline(
        model, pp.Split(["decoder.layers.0"]), one_f_one_b(2), loss_fn=F.mse_loss, devices=CPUS, batch_dim=1
    ) as pipe:
        inputs = pp.Args(source, goal, tgt_mask=pp.replicate(mask))
        check = pp.check_gradients(pipe, inputs, torch.randn(3, 4, 8).double())
        assert check, str(check)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, table, mask=None):
        x = self.a(x + table) * (1 if mask is None else mask)
        return self.b(x) + table * mask


def masked():
    torch.manual_seed(0)
    return Masked().double(), torch.randn(6, 4).double(), torch.randn(6, 4).double()


def test_a_replicated_value_and_one_per_sample_go_side_by_side():
    model, x, y = masked()
    with pp.Pipeline(model, pp.Split(["b"]), one_f_one_b(4), loss_fn=F.mse_loss, devices=CPUS) as pipe:
        inputs = pp.Args(x, pp.replicate(torch.randn(4).double()), mask=torch.rand(6, 4).double())
        assert pp.check_gradients(pipe, inputs, y)
        assert torch.allclose(pipe.forward(inputs), inputs.passed_to(model), rtol=1e-12)


def test_a_replicated_table_that_wants_a_gradient_gets_all_of_it():
    model, x, y = masked()
    table, mask = torch.randn(4).double().requires_grad_(), torch.ones(6, 4).double()
    (whole,) = torch.autograd.grad(F.mse_loss(model(x, table, mask), y), table)
    with pp.Pipeline(model, pp.Split(["b"]), one_f_one_b(3), loss_fn=F.mse_loss, devices=CPUS) as pipe:
        pipe.step(pp.Args(x, pp.replicate(table), mask), y)
        assert torch.allclose(table.grad, whole, rtol=1e-12)


def test_a_replicated_target_reaches_the_loss_whole():
    model, x, _ = masked()
    classes = torch.randn(3, 4).double()

    def loss_fn(output, target):
        assert target["classes"].shape == (3, 4)
        return F.cross_entropy(output @ target["classes"].t(), target["of"])

    target = {"of": torch.randint(0, 3, (6,)), "classes": pp.replicate(classes)}
    inputs = pp.Args(x, pp.replicate(torch.zeros(4).double()), torch.ones(6, 4).double())
    with pp.Pipeline(model, pp.Split(["b"]), one_f_one_b(4), loss_fn=loss_fn, devices=CPUS) as pipe:
        assert pp.check_gradients(pipe, inputs, target)


def test_a_model_that_writes_to_a_replicated_value_is_refused():
    class Writes(Masked):
        def forward(self, x, table, mask=None):
            return super().forward(x, table.add_(1), mask)

    model, (_, x, y) = Writes().double(), masked()
    inputs = pp.Args(x, pp.replicate(torch.zeros(4).double()), torch.ones(6, 4).double())
    with (
        pp.Pipeline(model, pp.Split(["b"]), one_f_one_b(2), loss_fn=F.mse_loss, devices=CPUS) as pipe,
        pytest.raises(pp.PipelabError, match="changes in place what every micro-batch gets whole"),
    ):
        pipe.step(inputs, y)


def test_profile_and_layers_take_the_same_inputs():
    model, x, y = masked()
    inputs = pp.Args(x, pp.replicate(torch.zeros(4).double()), torch.ones(6, 4).double())
    assert pp.layers(model, inputs) == ("a", "b")
    found = pp.profile(model, inputs, y, loss_fn=F.mse_loss, repeats=1, progress=False)
    assert found.batch_size == 6
    lstm, sequence = Recurrent(), torch.randn(5, 4, 3)
    found = pp.profile(
        lstm,
        sequence,
        torch.randn(5, 4, 2),
        loss_fn=lambda output, target: (output[0] - target) ** 2,
        reduction="none",
        batch_dim=1,
        repeats=1,
        progress=False,
    )
    assert found.batch_size == 4 and found.layers == ("first", "second")


@pytest.mark.parametrize("devices", [CPUS, pp.virtual(2)])
def test_the_gradient_of_an_input_is_that_of_one_step_and_none_after_a_failure(devices):
    model, x, y = masked()
    table, mask = torch.zeros(4).double().requires_grad_(), torch.ones(6, 4).double()
    x.requires_grad_()
    whole = torch.autograd.grad(F.mse_loss(model(x, table, mask), y), (x, table))
    fail = []

    def loss_fn(output, target):
        if fail and len(fail) == 3:
            raise RuntimeError("planned")
        fail.append(1) if fail else None
        return F.mse_loss(output, target)

    with pp.Pipeline(model, pp.Split(["b"]), one_f_one_b(3), loss_fn=loss_fn, devices=devices) as pipe:
        for _ in range(2):  # on virtual devices the second repeats itself for its times
            x.grad = table.grad = None
            pipe.step(pp.Args(x, pp.replicate(table), mask), y)
            assert torch.allclose(x.grad, whole[0], rtol=1e-12)
            assert torch.allclose(table.grad, whole[1], rtol=1e-12)
        fail.append(1)
        with pytest.raises(RuntimeError, match="planned"):
            pipe.step(pp.Args(x, pp.replicate(table), mask), y)
    assert x.grad is None and table.grad is None
