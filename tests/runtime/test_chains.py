"""Two chains of one model: what the second computes on its twin ends in the user's parameters."""

import copy
import gc
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.runtime.twins import Twin
from tests.runtime.models import ZOO, gpt, mlp, resnet

NAMES = ["chimera", "dualpipe"]


def schedule_for(name, num_ranks, num_microbatches):
    return pp.schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)


def devices_for(num_ranks, clock):
    return pp.virtual(num_ranks) if clock == "virtual" else ["cpu"] * num_ranks


def pipeline(made, cuts, name="chimera", num_microbatches=4, clock="threads"):
    model, _, _, loss_fn = made
    p = len(cuts) + 1
    schedule = schedule_for(name, p, num_microbatches)
    return pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices_for(p, clock))


def made_for(model_name):
    make, cuts = ZOO[model_name]
    made = make()
    if model_name == "resnet":
        made[0].eval()
    return made, cuts


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("num_microbatches", [1, 4, 7])
def test_loss_outputs_and_gradients_equal_the_whole_models(model_name, name, num_ranks, num_microbatches):
    made, cuts = made_for(model_name)
    _, x, y, _ = made
    clock = "virtual" if num_microbatches == 1 else "threads"  # few samples on it: further steps, put back
    with pipeline(made, cuts if num_ranks == 4 else cuts[1:2], name, num_microbatches, clock) as pipe:
        for _ in range(2):  # the step that learns, and one that knows
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
            assert not pipe.leaks


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", NAMES)
def test_threaded_equals_virtual_bit_for_bit(model_name, name):
    results = []
    for clock in ("threads", "virtual"):
        made, cuts = made_for(model_name)
        model, x, y, _ = made
        with pipeline(made, cuts, name, 6, clock) as pipe:
            for _ in range(2):
                model.zero_grad()
                step = pipe.step(x, y)
        results.append([step.loss, step.outputs, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_that_of_every_other_schedule(name):
    found = []
    for schedule in (name, "gpipe"):
        made = gpt(dropout=0.3, tied=True)
        torch.manual_seed(7)
        with pipeline(made, ["blocks.1", "blocks.2", "norm"], schedule, 6) as pipe:
            for _ in range(2):
                made[0].zero_grad()
                losses = pipe.step(*made[1:3]).losses
        found.append((losses, [p.grad for p in made[0].parameters()], torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][2], found[1][2])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_activations_may_be_recomputed_in_both_chains():
    model, x, y, loss_fn = gpt(dropout=0.3)
    schedule = schedule_for("chimera", 2, 4)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cpu"] * 2, recompute="all"
    ) as pipe:
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y)


def test_a_model_without_dropout_leaves_the_random_state_alone():
    made = mlp()
    before = torch.get_rng_state()
    with pipeline(made, ["4"]) as pipe:
        pipe.step(*made[1:3])
        pipe.step(*made[1:3])
    assert torch.equal(before, torch.get_rng_state())


def test_training_follows_the_whole_model_through_optimizer_steps():
    model, x, y, loss_fn = made = gpt(tied=True)
    plain = copy.deepcopy(model)
    mine, theirs = (torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, plain))
    with pipeline(made, ["blocks.2"]) as pipe:
        for _ in range(3):
            mine.zero_grad()
            theirs.zero_grad()
            step, loss = pipe.step(x, y), loss_fn(plain(x), y)
            loss.backward()
            assert torch.allclose(step.loss, loss.detach(), rtol=1e-9)
            mine.step()
            theirs.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-9)


def change(model, what):
    if what == "load_state_dict":
        model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    elif what == "freeze":
        model[2].weight.requires_grad_(False)
    elif what == "replace a module":
        model[1] = nn.Tanh()
    elif what == "dtype":
        model.float()


@pytest.mark.parametrize("what", ["load_state_dict", "freeze", "replace a module", "dtype"])
def test_what_changes_between_steps_holds_in_both_chains(what):
    model, x, y, _ = made = mlp()
    with pipeline(made, ["4"]) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        change(model, what)
        dtype = model[0].weight.dtype
        check = pp.check_gradients(pipe, x.to(dtype), y.to(dtype))
        assert check, str(check)
        pipe.step(x.to(dtype), y.to(dtype))
    assert (model[2].weight.grad is None) == (what == "freeze")


@pytest.mark.parametrize("skipped", [(Twin, "refresh"), (Twin, "add_gradients")])
def test_a_twin_left_out_of_date_or_unread_would_be_caught(skipped, monkeypatch):
    model, x, y, _ = made = mlp()
    with pipeline(made, ["4"]) as pipe:
        pipe.step(x, y)
        with torch.no_grad():
            model[0].weight.mul_(2)
        monkeypatch.setattr(*skipped, lambda self: None)
        assert not pp.check_gradients(pipe, x, y)


def test_gradients_add_to_those_of_earlier_steps():
    model, x, y, _ = made = mlp()
    with pipeline(made, ["4"]) as pipe:
        pipe.step(x, y)
        once = [p.grad.clone() for p in model.parameters()]
        pipe.step(x, y)
    for p, gradient in zip(model.parameters(), once, strict=True):
        assert torch.allclose(p.grad, 2 * gradient, rtol=1e-12)


def test_batchnorm_in_training_is_refused_when_a_step_begins_and_runs_in_evaluation():
    model, x, y, _ = made = resnet()
    with pipeline(made, ["blocks.2"]) as pipe:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            pp.PipelabError,
            match=r"'blocks.0.norm1', a BatchNorm2d in training.*'chimera' runs 2 copies.*1f1b",
        ):
            pipe.step(x, y)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.eval()
        assert pp.check_gradients(pipe, x, y)
        model.train()
        with pytest.raises(pp.PipelabError, match="in training"):
            pipe.step(x, y)
        pipe.forward(x)  # one chain alone: nothing is kept twice


def test_a_forward_that_changes_another_buffer_is_refused_and_leaves_no_gradients():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model, x, y, _ = made = mlp()
    model.insert(1, Counts())
    with pipeline(made, ["5"]) as pipe, pytest.raises(pp.PipelabError, match=r"forward changes '1\.calls'"):
        pipe.step(x, y)
    assert all(p.grad is None for p in model.parameters())


class Carries(nn.Module):
    """State that goes from micro-batch to micro-batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.mean = torch.zeros(6, dtype=torch.float64)

    def forward(self, x):
        x = self.first(x) + self.mean
        self.mean = x.detach().mean(0)
        return self.second(x)


def test_state_that_goes_from_microbatch_to_microbatch_is_refused():
    _, x, y, loss_fn = mlp()
    model = Carries().double()
    with pipeline((model, x, y, loss_fn), ["second"]) as pipe:
        with pytest.raises(pp.PipelabError, match=r"reads model\.mean.*several copies.*one chain"):
            pipe.step(x, y)
        pipe.forward(x)  # on one model there is one state
    assert all(p.grad is None for p in model.parameters())


def test_what_the_last_microbatch_kept_is_left_on_the_model():
    class Remembers(nn.Module):
        def forward(self, x):
            self.seen = x.mean(0)
            return x

    model, x, y, _ = made = mlp()
    model.insert(0, Remembers())
    with pipeline(made, ["5"]) as pipe:
        for _ in range(2):
            pipe.step(x, y)
            assert torch.equal(model[0].seen, x[6:].mean(0))
    assert not any(isinstance(value, nn.Module) for value in vars(model[0]).values())


class Keeps(nn.Sequential):
    def forward(self, x):
        self.penalty = x.square().mean()
        return super().forward(x)


def test_a_loss_that_reads_what_the_model_keeps_is_refused_and_one_that_reads_its_weights_is_right():
    model, x, y, _ = mlp()

    def with_weights(output, target):
        return F.mse_loss(output, target) + 0.1 * model[0].weight.square().sum()

    with pipeline((model, x, y, with_weights), ["4"]) as pipe:
        assert pp.check_gradients(pipe, x, y)
    model = Keeps(*model)

    def with_penalty(output, target):
        return F.mse_loss(output, target) + model.penalty

    with pipeline((model, x, y, with_penalty), ["4"]) as pipe:
        for _ in range(2):  # once it has run, and before it runs again
            with pytest.raises(pp.PipelabError, match=r"model\.penalty|'penalty'"):
                pipe.step(x, y)
    assert all(p.grad is None for p in model.parameters())


def test_forward_runs_on_the_users_model_alone():
    model, x, _, _ = made = gpt()
    calls = []
    with pipeline(made, ["blocks.1", "blocks.2", "norm"], num_microbatches=5) as pipe:
        model.head.register_forward_hook(lambda module, *_: calls.append(module is model.head))
        for batch in (x, x[:3]):
            assert torch.allclose(pipe.forward(batch), model(batch), rtol=1e-12)
    assert calls and all(calls)


def test_chains_may_lie_on_ranks_of_their_own():
    model, x, y, loss_fn = mlp()
    placement = pp.Placement((2, 3, 0, 1), chains=2, tied={2: 0, 3: 1})
    orders = [["2F1", "2B1"], ["3F1", "3B1"], ["0F0", "0B0"], ["1F0", "1B0"]]
    schedule = pp.Schedule(orders, placement, name="replicas")
    with pp.Pipeline(model, pp.Split(["4"]), schedule, loss_fn=loss_fn, devices=["cpu"] * 4) as pipe:
        assert pp.check_gradients(pipe, x, y)
        assert torch.allclose(pipe.forward(x), model(x), rtol=1e-12)


def test_the_trace_holds_the_stages_of_both_chains():
    made = mlp()
    with pipeline(made, ["4"], clock="virtual") as pipe:
        trace = pipe.step(*made[1:3]).trace
    assert set(trace.to_frame()["stage"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("clock", ["threads", "virtual"])
@pytest.mark.parametrize("what", ["forward", "backward", "interrupt"])
@pytest.mark.parametrize("where", [0, 6])
def test_what_goes_wrong_in_the_second_chain_leaves_everything_clean(clock, what, where):
    model, x, y, _ = made = mlp()
    error = RuntimeError("boom")

    def fail(gradient):
        raise error

    def on_the_twin(module, _, output):
        if module is model[where]:
            return
        if what == "interrupt":
            pipe.interrupt()
        elif what == "forward":
            raise error
        else:
            output.register_hook(fail)

    with pipeline(made, ["4"], clock=clock) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        twin, before = pipe._chains.cut_models[1].model, threading.active_count()
        handle = model[where].register_forward_hook(on_the_twin)
        with pytest.raises(KeyboardInterrupt if what == "interrupt" else RuntimeError) as caught:
            pipe.step(x, y)
        if what != "interrupt":
            stage, kind = 2 if where == 0 else 3, "F" if what == "forward" else "B"
            assert caught.value is error and f"raised in action {stage}{kind}2" in error.__notes__[0]
        assert all(p.grad is None for each in (model, twin) for p in each.parameters())
        assert len(twin[where]._forward_hooks) == 1 and not twin[where]._forward_pre_hooks
        assert threading.active_count() == before
        handle.remove()
        assert pp.check_gradients(pipe, x, y)


def test_many_steps_keep_the_same_tensors():
    model, x, y, _ = made = mlp()
    counts = []
    with pipeline(made, ["4"]) as pipe:
        for _ in range(12):
            model.zero_grad()
            pipe.step(x, y)
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[-1] <= counts[3] + 2


def test_a_token_mean_is_right_with_loss_weight():
    model, x, y, _ = gpt()
    y[:4, 1:] = -100

    def loss_fn(logits, target):
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    with pipeline((model, x, y, loss_fn), ["blocks.2"], num_microbatches=2) as pipe:
        assert pp.check_gradients(pipe, x, y, loss_weight=(y != -100).sum(1))


def test_the_chain_of_a_microbatch_is_the_placements():
    with pipeline(mlp(), ["4"], num_microbatches=5) as pipe:
        assert pipe._chains.of_microbatch == [0, 0, 0, 1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", NAMES)
def test_chains_that_end_on_different_devices_keep_the_law(model_name, name):
    for devices in (["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]):
        (model, x, y, loss_fn), cuts = made_for(model_name)
        schedule = schedule_for(name, 2, 5)
        with pp.Pipeline(model, pp.Split(cuts[1:2]), schedule, loss_fn=loss_fn, devices=devices) as pipe:
            for _ in range(2):
                check = pp.check_gradients(pipe, x, y)
                assert check, f"{devices}: {check}"
