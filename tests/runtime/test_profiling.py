"""A profile is what the layers cost, at any micro-batch size."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.runtime import profiling
from pipelab.runtime.machine_speed import reference_seconds
from pipelab.runtime.profiling import affine_fit
from tests.runtime.models import ZOO, gpt, mlp


@pytest.mark.parametrize("model_name", ZOO)
def test_every_model_is_profiled_and_left_as_it_was(model_name):
    model, x, y, loss_fn = ZOO[model_name][0]()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert profile.layers == pp.layers(model, x)
    assert profile.seconds().min() >= 0 and profile.seconds().sum() > 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_parameters_are_counted_once_with_the_layer_that_uses_them_first():
    model, x, y, loss_fn = gpt(tied=True)
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert sum(profile.parameter_bytes) == sum(p.numel() * p.element_size() for p in model.parameters())
    assert profile.parameter_bytes[profile.layers.index("head")] == 0
    assert profile.parameter_bytes[0] == model.token_embedding.weight.numel() * 8


def test_outputs_and_activations_are_proportional_to_the_batch_of_a_chain():
    model, x, y, loss_fn = mlp()
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    for layer in range(profile.num_layers - 1):
        assert profile.output_bytes[layer].at(8) == pytest.approx(8 * 6 * 8)
    assert profile.activation_bytes[1].at(5) == pytest.approx(5 * 6 * 8)  # GELU keeps its input


def test_linear_layers_leave_their_weights_gradients_to_w():
    model, x, y, loss_fn = gpt()
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert profile.weight_grad[profile.layers.index("blocks.1")].at(8) > 0
    assert len(profile.backward) == profile.num_layers


def test_the_speed_of_the_machine_is_taken_before_and_after(monkeypatch):
    times = iter([2.0, 2.5])
    monkeypatch.setattr(profiling, "reference_seconds", lambda device: next(times))
    model, x, y, loss_fn = mlp()
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert profile.reference == (2.0, 2.5) and profile.drift == 0.25
    assert profile.band[0] <= 1.0 and profile.band[1] >= 1.25
    assert profile.costs(pp.Split(["2"])).band == profile.band


def test_the_band_holds_nine_runs_of_ten_and_the_drift():
    def samples(*runs):
        column = np.array(runs)[:, None]
        return profiling._Samples(column, 0 * column, column, 0 * column, np.zeros((len(runs), 2)))

    even = samples(*[1.0] * 9, 3.0)
    assert profiling._band([even], np.median, 1.0) == (1.0, pytest.approx(1.2))
    assert profiling._band([samples(1.0)], np.median, 1.1) == (1.0, 1.1)
    assert profiling._band([samples(1.0)], np.median, 0.8) == (0.8, 1.0)


def test_a_border_is_what_the_layers_take_more_than_the_model_without_borders():
    forward, backward = np.array([[1.0, 2.0, 3.0]] * 3), np.array([[2.0, 2.0, 2.0]] * 3)
    uncut = np.array(
        [[5.0, 5.0], [5.5, 5.5], [9.0, 9.0]]
    )  # 1, 0.5 and -3 less than F; 1, 0.5 and -3 less than B
    samples = profiling._Samples(forward, backward, forward, backward, uncut)
    receives = np.array([False, True, True])
    assert profiling._border(samples, receives) == (0.25, 0.25)
    assert profiling._border(replace(samples, uncut=uncut + 9), receives) == (0.0, 0.0)
    assert profiling._border(replace(samples, uncut=0 * uncut), receives) == (
        2.0,
        2.0,
    )  # the shortest of the two
    assert profiling._border(samples, np.zeros(3, dtype=bool)) == (0.0, 0.0)


def test_a_stage_of_all_layers_costs_what_the_model_does_without_borders():
    names = ("a", "b", "c")
    forward, backward = np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 2.0, 2.0]])
    samples = profiling._Samples(forward, backward, backward, backward, np.array([[5.0, 4.0]]))
    held = pp.StageBytes((0,) * 3, (0,) * 3, (0,) * 3)
    bench = SimpleNamespace(bytes={4: held}, receiving={1, 2})
    profile = profiling._fit(names, {4: samples}, np.median, 4, "cpu", bench, (1.0, 1.0))
    assert profile.border == (0.5, 1.0) and profile.forward[0].at(4) == pytest.approx(1.0)
    whole, two = profile.costs(pp.Split()), profile.costs(pp.Split(["c"]))
    assert (whole.forward[0], whole.backward[0], whole.input_grad[0]) == pytest.approx((5, 4, 4))
    assert (sum(two.forward), sum(two.backward)) == pytest.approx((5.5, 5))
    assert sum(two.weight_grad) == pytest.approx(6)


def test_a_reference_is_a_positive_number_of_seconds_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    assert 0 < reference_seconds("cpu") < 1 and torch.get_num_threads() == threads


def test_copies_train_beside_a_measurement_for_several_ranks_and_end_with_it():
    model, x, y, loss_fn = mlp()
    before, main = threading.active_count(), threading.current_thread()
    seen = set()

    def loss(output, target):
        if not threading.current_thread().name.startswith("pipelab"):
            seen.add(threading.current_thread())
        return loss_fn(output, target)

    for p in model.parameters():
        p.grad = torch.ones_like(p)
    profile = pp.profile(model, x, y, loss_fn=loss, repeats=1, progress=False, ranks=3)
    assert len(seen - {main}) == 6  # two copies at each of three sizes
    assert threading.active_count() == before and profile.seconds().sum() > 0
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_an_error_of_a_copy_is_an_error_of_the_measurement():
    model, x, y, loss_fn = mlp()

    def loss(output, target):
        if not threading.current_thread().name.startswith("pipelab"):
            raise ArithmeticError("only here")
        return loss_fn(output, target)

    before = threading.active_count()
    with pytest.raises(ArithmeticError) as caught:
        pp.profile(model, x, y, loss_fn=loss, repeats=1, progress=False, ranks=2)
    assert "a copy of the model" in "".join(caught.value.__notes__) and threading.active_count() == before


def test_a_model_that_cannot_be_copied_is_measured_alone():
    class Whole(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("one only")

    model = nn.Sequential(Whole(4, 4), nn.Linear(4, 1))
    data = (torch.ones(4, 4), torch.zeros(4, 1))
    with pytest.raises(pp.PipelabError, match=r"cannot be copied \(RuntimeError: one only\).*ranks=1"):
        pp.profile(model, *data, loss_fn=F.mse_loss, repeats=1, progress=False, ranks=2)
    assert pp.profile(model, *data, loss_fn=F.mse_loss, repeats=1, progress=False).num_layers == 2


class Clock:
    """A clock that stands still but for what is asked of it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(profiling, "reference_seconds", lambda device: 1.0)


class Timed(nn.Module):
    """A layer whose forward and backward take a fixed time and one for each sample on such a clock."""

    def __init__(self, clock):
        super().__init__()
        self.linear = nn.Linear(4, 4)

        class Passing(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                clock.now += 4 + 2 * len(x)
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                clock.now += 8 + 4 * len(gradient)
                return gradient

        self.passing = Passing

    def forward(self, x):
        return self.passing.apply(self.linear(x))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("unseen", [3, 8])
def test_costs_at_a_size_never_measured_are_those_of_the_line(monkeypatch, unseen, ranks):
    clock = Clock(monkeypatch)
    model, x, y = nn.Sequential(Timed(clock), Timed(clock)), torch.ones(2, 4), torch.zeros(2, 4)
    monkeypatch.setattr(
        profiling.Neighbours, "begin", lambda *_: None
    )  # their time would pass on this clock too
    profile = pp.profile(model, x, y, loss_fn=F.mse_loss, repeats=2, progress=False, ranks=ranks)
    assert unseen not in profile.measured_sizes and profile.border == (0, 0) and profile.band == (1, 1)
    costs = profile.costs(pp.Split(["1"]), unseen)
    assert costs.forward == pytest.approx([4 + 2 * unseen] * 2)
    assert costs.backward == pytest.approx([8 + 4 * unseen] * 2)
    assert costs.input_grad == pytest.approx(costs.backward)  # what is not put off is in I
    assert costs.weight_grad == (0, 0)


def test_one_late_run_is_nothing_to_a_median_and_counts_in_the_mean_of_several_ranks(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(profiling.Neighbours, "begin", lambda *_: None)
    found = []
    for ranks in (1, 2):
        calls = []

        def late(output, target, calls=calls):
            calls.append(1)
            clock.now += 300 if len(calls) == 3 else 1  # the first timed run of the smallest size
            return F.mse_loss(output, target)

        model, x, y = nn.Sequential(Timed(clock), Timed(clock)), torch.ones(2, 4), torch.zeros(2, 4)
        profile = pp.profile(model, x, y, loss_fn=late, repeats=3, progress=False, ranks=ranks)
        found.append(profile.forward[1].at(1))
    assert found[0] == pytest.approx(7) and found[1] > 8


def test_a_model_may_bring_its_own_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.b(self.a(x)).mean()

    assert pp.profile(Own(), torch.ones(4, 4), repeats=1, progress=False).layers == ("a", "b")


def test_progress_goes_to_the_function_it_was_given():
    model, x, y, loss_fn = mlp()
    seen = []
    pp.profile(
        model, x, y, loss_fn=loss_fn, repeats=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(k, 24) for k in range(1, 25)]  # three sizes, each 2 to warm up and 3 kinds of runs twice


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"ranks": 0}, "ranks is 0; it must be from 1 to"),
        ({"device": "cuda:99"}, "no device 'cuda:99'"),
        ({"loss_fn": lambda o, t: o}, "one number"),
    ],
)
def test_what_cannot_be_profiled_is_refused(options, sentence):
    model, x, y, loss_fn = mlp()
    with pytest.raises(pp.PipelabError, match=sentence):
        pp.profile(model, x, y, **{"loss_fn": loss_fn, "progress": False} | options)


def test_a_fit_recovers_a_line_and_never_goes_below_zero():
    sizes = np.array([1.0, 2.0, 4.0])
    line = affine_fit(sizes, 3 + 2 * sizes)
    assert (line.fixed, line.per_sample) == (pytest.approx(3), pytest.approx(2))
    for values in (np.array([1.0, 3.0, 9.0]), np.array([5.0, 4.0, 3.0]), np.zeros(3)):
        line = affine_fit(sizes, values)
        assert line.fixed >= 0 and line.per_sample >= 0


def test_an_error_of_the_model_is_told_with_its_layer_and_the_size_that_ran():
    model, x, y, loss_fn = mlp()
    with pytest.raises(RuntimeError, match="shapes") as caught:
        pp.profile(model, x[:, :3], y, loss_fn=loss_fn, progress=False)
    assert any(
        "raised in layer '0', in a forward of the whole model" in note for note in caught.value.__notes__
    )

    def small(module, args):
        if len(args[0]) > 8:
            raise RuntimeError("too many")

    model[2].register_forward_pre_hook(small)
    with pytest.raises(RuntimeError, match="too many") as caught:
        pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert any("raised in layer '2', which ran with 16 samples" in note for note in caught.value.__notes__)
