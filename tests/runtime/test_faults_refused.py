"""What cannot run is refused with a sentence that says what to change, before any layer runs or anything is moved."""

import os
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import pipelab as pp
from tests.runtime.models import gpt, mlp

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
DEVICES = {"threads": ["cpu", "cpu"], "virtual": pp.virtual(2)}


def make(model=None, split=("4",), schedule=SCHEDULE, **options):
    model = mlp()[0] if model is None else model
    return pp.Pipeline(
        model, pp.Split(split), schedule, **{"loss_fn": torch.nn.functional.mse_loss} | options
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": ("4", "6")}, r"3 stages.*wants 2"),
        ({"split": ("9",)}, r"begins at '9', but Sequential has no module of that name"),
        ({"devices": ["cpu"]}, r"2 ranks"),
        ({"devices": pp.virtual(3)}, r"2 ranks"),
        ({"devices": ["cpu", "cuda:77"]}, r"no device 'cuda:77'.*Use 'cpu', or pp.virtual"),
        ({"devices": ["cpu", "gpu"]}, r"no device 'gpu'"),
        ({"devices": ["cpu", "meta"]}, r"does not run on 'meta'"),
        ({"devices": "cpu"}, r"devices is 'cpu'"),
        ({"reduction": "nothing"}, r"reduction is 'nothing'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(pp.PipelabError, match=sentence):
        make(**options)


def test_wrong_calls_are_type_errors():
    with pytest.raises(TypeError, match="split must be a Split"):
        pp.Pipeline(mlp()[0], ["4"], SCHEDULE)
    with pytest.raises(TypeError, match="schedule is missing"):
        pp.Pipeline(mlp()[0], pp.Split(["4"]))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        pp.Pipeline(lambda x: x, pp.Split(["4"]), SCHEDULE)
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        make(loss_fn=3)
    plan = pp.Plan(pp.Split(["4"]), SCHEDULE)
    with pytest.raises(TypeError, match="brings its own schedule"):
        pp.Pipeline(mlp()[0], plan, SCHEDULE)


def test_a_misspelt_cut_names_the_nearest_modules():
    with pytest.raises(pp.PipelabError, match=r"nearest are 'blocks\.2'"):
        pp.Pipeline(gpt()[0], pp.Split(["block.2"]), SCHEDULE)


def test_a_cut_at_a_container_names_a_module_in_it():
    with pytest.raises(
        pp.PipelabError, match=r"ModuleList, which holds modules and is never called.*'blocks\.0'"
    ):
        pp.Pipeline(gpt()[0], pp.Split(["blocks"]), SCHEDULE)


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(pp.PipelabError, match="meta device"):
        make(model, ("1",))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.last(self.first(x))


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_a_cut_at_a_module_that_is_never_called_is_refused_and_leaves_no_gradient(devices):
    model, x, y = Unused().double(), *mlp()[1:3]
    with (
        make(model, ("unused",), devices=devices) as pipe,
        pytest.raises(pp.PipelabError, match=r"begins at 'unused', but the model's forward never calls"),
    ):
        pipe.step(x, y)
    assert all(p.grad is None for p in model.parameters())


def test_cuts_out_of_order_are_refused_with_the_right_order():
    _, x, y, _ = mlp()
    schedule = pp.schedule("1f1b", num_ranks=3, num_microbatches=4)
    with (
        make(split=("4", "2"), schedule=schedule, devices=["cpu"] * 3) as pipe,
        pytest.raises(pp.PipelabError, match=r"Split\(\['2', '4'\]\)"),
    ):
        pipe.step(x, y)


def test_more_microbatches_than_samples_are_refused_before_anything_ran():
    model, x, y, _ = mlp()
    with make(model, devices=["cpu", "cpu"]) as pipe, pytest.raises(pp.PipelabError, match="the batch has 3"):
        pipe.step(x[:3], y[:3])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (pp.schedule("seq-1f1b", num_ranks=2, num_microbatches=4), r"'seq-1f1b' cuts each micro-batch into"),
        (
            pp.Schedule([["0F0", "0B0"], ["1F1", "1B1"]], pp.Placement.ensemble(2, 1), name="mine"),
            r"'mine' runs 2 chains",
        ),
    ],
)
def test_schedules_that_the_engine_does_not_run_are_refused_by_name(schedule, sentence):
    with pytest.raises(pp.PipelabError, match=sentence):
        make(schedule=schedule)


def test_training_with_a_schedule_without_backward_points_to_forward():
    _, x, y, _ = mlp()
    forward_only = pp.schedule("forward-only", num_ranks=2, num_microbatches=4)
    with make(schedule=forward_only, devices=["cpu", "cpu"]) as pipe:
        with pytest.raises(pp.PipelabError, match=r"pipe\.forward"):
            pipe.step(x, y)
        assert pipe.forward(x).shape == y.shape


def test_a_step_without_gradients_points_to_forward():
    _, x, y, _ = mlp()
    with (
        make(devices=["cpu", "cpu"]) as pipe,
        torch.no_grad(),
        pytest.raises(pp.PipelabError, match=r"pipe\.forward"),
    ):
        pipe.step(x, y)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(6, 6).double())),
            r"'0.weight' was replaced",
        ),
        (lambda m: m.append(nn.Linear(6, 6)), r"added"),
        (lambda m: setattr(m[0], "bias", None), r"'0.bias' has gone"),
        (lambda m: m.__setitem__(4, m[4].__class__(6, 6)), r"replaced"),
    ],
)
def test_a_model_changed_after_it_was_cut_is_noticed(change, sentence):
    model, x, y, _ = mlp()
    with make(model, devices=["cpu", "cpu"]) as pipe:
        pipe.step(x, y)
        change(model)
        with pytest.raises(pp.PipelabError, match=sentence):
            pipe.step(x, y)


def test_a_closed_pipeline_says_so():
    _, x, y, _ = mlp()
    pipe = make(devices=["cpu", "cpu"])
    pipe.close()
    pipe.close()
    with pytest.raises(pp.PipelabError, match="closed"):
        pipe.step(x, y)
    assert "closed" in repr(pipe)


# -- huge, empty, and changed since -----------------------------------------------------------------------------------

HUGE = 10**12


def limited(function, *args, **options):
    """Whether it is refused at once, before memory is taken, and names a limit."""
    import resource  # there is none on Windows

    resource.setrlimit(resource.RLIMIT_DATA, (taken() + 200 * 2**20, resource.RLIM_INFINITY))
    begin = time.monotonic()
    try:
        with pytest.raises(pp.PipelabError, match=r"limit is|from 1 to|do not have"):
            function(*args, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return time.monotonic() - begin < 2


def taken():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and rlimit")
def test_huge_values_are_refused_at_once_and_name_the_limit():
    model, x, y, loss_fn = mlp()
    for name in pp.SCHEDULES:
        assert limited(pp.schedule, name, num_ranks=2, num_microbatches=HUGE)
    assert limited(pp.schedule, "1f1b", num_ranks=HUGE, num_microbatches=4)
    assert limited(pp.schedule, "interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=HUGE)
    assert limited(pp.schedule, "seq-1f1b", num_ranks=2, num_microbatches=4, num_slices=HUGE)
    assert limited(pp.schedule, "pipedream-2bw", num_ranks=2, num_microbatches=4, num_minibatches=HUGE)
    assert limited(pp.virtual, HUGE)
    assert limited(pp.virtual, 2, threads=HUGE)
    for option in ("repeats", "threads", "ranks"):
        assert limited(pp.profile, model, x, y, loss_fn=loss_fn, **{option: HUGE})
    assert limited(pp.layers, model, x, repeats=HUGE)
    with make(model, devices=["cpu", "cpu"], batch_dim=HUGE) as pipe:
        assert limited(pipe.step, x, y)


class Noticing(nn.Identity):
    """Notices that it was called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (lambda x, y: (x[:0], y[:0]), {}, "The batch is empty"),
        (lambda x, y: (x[:3], y[:3]), {}, "num_microbatches <= 3"),
        (lambda x, y: (x, y[:7]), {}, "disagree about the size"),
        (lambda x, y: (x.to("meta"), y), {}, "meta device"),
        (lambda x, y: (x, y.to("meta")), {}, "meta device"),
        (lambda x, y: (x * torch.ones((), requires_grad=True), y), {}, "records gradients"),
        (lambda x, y: (x.numpy(), y), {}, "inputs must be a tensor"),
        (lambda x, y: (x, y.numpy()), {}, r"torch\.from_numpy"),
        (lambda x, y: (x, y), {"loss_weight": torch.zeros(8)}, "more than 0 in sum"),
        (lambda x, y: (x, y), {"loss_weight": torch.full((8,), float("nan"))}, "finite"),
        (lambda x, y: (x, y), {"loss_weight": torch.ones(3)}, r"shape \(3,\)"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_a_layer_runs_or_a_gradient_is_touched(
    given, options, sentence, devices
):
    model, x, y, _ = mlp()
    model.insert(0, Noticing())
    with make(model, devices=devices) as pipe:
        pipe.step(x, y)
        before, calls = [p.grad for p in model.parameters()], model[0].calls
        with pytest.raises((pp.PipelabError, TypeError), match=sentence):
            pipe.step(*given(x, y), **options)
        assert model[0].calls == calls
        assert all(p.grad is gradient for p, gradient in zip(model.parameters(), before, strict=True))
        model.zero_grad()
        assert pp.check_gradients(pipe, x, y)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.to("meta"), r"'0.weight' was replaced|was moved from cpu to meta"),
        (
            lambda m: parametrize.register_parametrization(m[4], "weight", nn.Identity()),
            "'4.weight' has gone",
        ),
        (lambda m: parametrizations.weight_norm(m[0]), "'0.weight' has gone"),
        (lambda m: prune.l1_unstructured(m[0], "weight", 0.5), "'0.weight' has gone"),
        (lambda m: setattr(m[4], "weight", m[0].weight), "'4.weight' has gone"),
        (lambda m: m.insert(1, nn.Tanh()), "has gone"),
        (lambda m: m[0].register_buffer("seen", torch.zeros(3)), "'0.seen' was added"),
    ],
)
@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "chimera"])
def test_a_model_that_was_changed_is_refused_with_the_remedy(name, change, sentence):
    model, x, y, _ = mlp()
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=4)
    with make(model, schedule=schedule, devices=["cpu", "cpu"]) as pipe:
        pipe.step(x, y)
        change(model)
        with pytest.raises(pp.PipelabError, match=f"(?s){sentence}.*Make a new Pipeline"):
            pipe.step(x, y)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].requires_grad_(False),
        lambda m: m[4:].requires_grad_(False),
        lambda m: m.requires_grad_(False),
        lambda m: setattr(m[0].weight, "data", torch.randn(6, 6).double()),
        lambda m: m.__setitem__(3, nn.Tanh()),
        lambda m: setattr(m[1], "forward", lambda x: x * 2),
    ],
    ids=[
        "a layer frozen",
        "a stage frozen",
        "all frozen",
        "other values",
        "another activation",
        "another forward",
    ],
)
@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "chimera"])
def test_what_may_be_changed_between_steps_is_followed(name, change):
    model, x, y, _ = mlp()
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=4)
    with make(model, schedule=schedule, devices=["cpu", "cpu"]) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        change(model)
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y)
