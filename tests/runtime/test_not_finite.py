"""A loss that is no number: shown with the first micro-batch, stage and module where it came from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.runtime.models import gpt, mlp

CPUS = ["cpu", "cpu"]
ONE_F_ONE_B = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)


class Breaks(nn.Module):
    """Gives a value that is not finite for samples whose first number is above 100."""

    def __init__(self, value=float("nan")):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.where(x[:, :1] > 100, self.value, x)


class Body(nn.Module):
    def forward(self, x):
        return x / (x[:, :1] <= 100)  # in the code of the model, between the modules that it calls


def run(model, cut, x, y, loss_fn=F.mse_loss, schedule=ONE_F_ONE_B, devices=CPUS, **options):
    with pp.Pipeline(model, pp.Split([cut]), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        pipe.step(torch.zeros_like(x), y)
        return pipe.step(x, y, **options)


def data(bad):
    x, y = torch.zeros(8, 3).double(), torch.zeros(8, 3).double()
    x[bad] = 200
    return x, y


def chain(*modules):
    return nn.Sequential(*modules)


@pytest.mark.parametrize("devices", [CPUS, pp.virtual(2)])
@pytest.mark.parametrize(
    ("model", "cut", "stage", "place"),
    [
        (chain(nn.ReLU(), Breaks(), nn.ReLU()), "2", 0, "the output of '1'"),
        (chain(nn.ReLU(), nn.ReLU(), Breaks(float("inf"))), "1", 1, "the output of '2'"),
        (chain(nn.ReLU(), chain(nn.ReLU(), Breaks())), "1", 1, "the output of '1.1'"),
        (chain(nn.ReLU(), Body(), nn.ReLU()), "2", 0, "the output of '1'"),
    ],
)
def test_the_first_module_with_a_value_that_is_not_finite_is_named(model, cut, stage, place, devices):
    step = run(model, cut, *data([5, 7]), devices=devices)
    assert (step.not_finite.microbatch, step.not_finite.stage, step.not_finite.place) == (2, stage, place)
    assert f"(not finite, first in micro-batch 2: stage {stage}, {place})" in str(step).splitlines()[0]


def test_what_the_models_own_code_made_before_a_cut_belongs_to_the_stage_before():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.b(self.a(x) / (x <= 100))

    assert str(run(Between(), "b", *data([0])).not_finite).endswith("stage 0, what comes to 'b'")


def test_the_data_and_the_loss_are_named_as_such():
    model, x, y, loss_fn = mlp()
    bad = x.clone()
    bad[7] = float("nan")
    assert run(model, "4", bad, y, loss_fn).not_finite.place == "the inputs"
    bad = y.clone()
    bad[7] = float("nan")
    found = run(model, "4", x, bad, loss_fn).not_finite
    assert (found.microbatch, found.stage, found.place) == (3, 1, "the loss")


def test_a_mask_of_minus_infinity_is_not_to_blame():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.MultiheadAttention(4, 1, batch_first=True), Breaks()

        def forward(self, x, mask):
            return self.b(self.a(x, x, x, attn_mask=mask)[0].flatten(1) + x.flatten(1))

    torch.manual_seed(0)
    x, mask = torch.zeros(8, 2, 4), torch.triu(torch.full((2, 2), float("-inf")), 1)
    x[3] = 300
    with pp.Pipeline(
        Attends(), pp.Split(["b"]), ONE_F_ONE_B, loss_fn=lambda output: output.sum(), devices=CPUS
    ) as pipe:
        assert pipe.step(pp.Args(x, mask=pp.replicate(mask))).not_finite.place == "the output of 'b'"


def test_a_finite_loss_runs_nothing_twice_and_says_nothing():
    calls = []
    model = chain(nn.ReLU(), nn.ReLU())
    model[0].register_forward_hook(lambda *_: calls.append(1))
    step = run(model, "1", *data([]))
    assert step.not_finite is None and len(calls) == 8 and "finite" not in str(step)


def test_the_second_look_leaves_no_trace_and_repeats_dropout():
    class Falls(nn.Module):  # the more a draw, the worse; only the same draws break it
        def forward(self, x):
            return x / (x.flatten(1)[:, :1, None] != 0)

    torch.manual_seed(0)
    model = chain(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (2, 2)), nn.Dropout(0.5), Falls(), nn.Flatten()
    )
    model.double()
    x = torch.randn(8, 3).double()

    def steps(count):
        torch.manual_seed(1)
        with pp.Pipeline(
            model, pp.Split(["3"]), ONE_F_ONE_B, loss_fn=lambda out: out.square().mean(), devices=CPUS
        ) as pipe:
            return [pipe.step(x) for _ in range(count)]

    found = steps(6)
    assert all(step.not_finite is None or step.not_finite.place == "the output of '4'" for step in found)
    assert any(step.not_finite is not None for step in found)
    model.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (step,) = steps(1)
    counted = model.state_dict()["1.num_batches_tracked"] - before["1.num_batches_tracked"]
    assert counted == 4 and step.not_finite is not None
    random = torch.get_rng_state()
    torch.manual_seed(1)
    torch.randint(2**62, (1,))  # a step draws once
    assert torch.equal(random, torch.get_rng_state())


def test_a_second_look_that_fails_is_no_failure_of_the_step():
    calls = []

    class Once(nn.Module):
        def forward(self, x):
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("only four times")
            return x * float("nan")

    x, y = data([])
    with pp.Pipeline(
        chain(nn.ReLU(), Once()), pp.Split(["1"]), ONE_F_ONE_B, loss_fn=F.mse_loss, devices=CPUS
    ) as pipe:
        step = pipe.step(x, y)
    assert step.not_finite.stage is None and "(not finite, first in micro-batch 0)" in str(step)


def test_an_interrupt_during_the_second_look_ends_the_step():
    x, y = data([])
    seen = []

    class Asks(nn.Module):
        def forward(self, x):
            seen.append(1)
            if len(seen) == 5:
                pipe.interrupt()
            return x * float("nan")

    model = chain(nn.Linear(3, 3).double(), Asks(), nn.ReLU())
    with pp.Pipeline(model, pp.Split(["1"]), ONE_F_ONE_B, loss_fn=F.mse_loss, devices=CPUS) as pipe:
        with pytest.raises(KeyboardInterrupt):
            pipe.step(x, y)
        assert model[0].weight.grad is None
        assert pipe.step(x, y).not_finite.place == "the output of '1'"


@pytest.mark.parametrize("name", ["interleaved-1f1b", "chimera"])
def test_it_is_found_on_every_kind_of_placement(name):
    model, x, y, loss_fn = gpt()
    options = {"stages_per_rank": 2} if name == "interleaved-1f1b" else {}
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=4, **options)
    cuts = ["blocks.1", "blocks.2", "norm"] if name == "interleaved-1f1b" else ["blocks.2"]
    with torch.no_grad():
        model.blocks[2].mlp[0].weight[0, 0] = float("inf")
    with pp.Pipeline(
        model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=["cpu"] * schedule.num_ranks
    ) as pipe:
        found = pipe.step(x, y).not_finite
    assert found.place == "the output of 'blocks.2.mlp.0'" and found.stage == cuts.index("blocks.2") + 1
