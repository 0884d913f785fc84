"""Training with updates in flight equals the papers' rules, written down in a few lines of sequential torch."""

import copy
import gc
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.runtime.randomness import seed_generators
from pipelab.runtime.updating import UpdatedStages
from tests.runtime.models import gpt, mlp

CUTS = {2: ["4"], 3: ["2", "4"]}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}
SGD = OPTIMIZERS["sgd"]


def batches_for(count, size=4):
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(size, 6, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(), draw()) for _ in range(count)]


def model_with(*extra):
    """A Sequential of four linear layers with more layers behind the second one, before the cut at "4"."""
    model, _, _, _ = mlp()
    layers = list(model)
    torch.manual_seed(1)
    return nn.Sequential(*layers[:3], *extra, *layers[3 + len(extra) :]).double() if extra else model


def devices_for(p, clock):
    return pp.virtual(p) if clock == "virtual" else ["cpu"] * p


def train(model, p, schedule, batches, optimizer=SGD, clock="threads", **options):
    split = pp.Split(CUTS[p])
    with pp.Pipeline(model, split, schedule, loss_fn=F.mse_loss, devices=devices_for(p, clock)) as pipe:
        run = pp.train(pipe, batches, optimizer=optimizer, **options)
    return run, pipe._cut.randomness.seed


def pipeline(model, schedule=None, loss_fn=F.mse_loss, cuts=("4",)):
    schedule = schedule or pp.schedule("pipedream", num_ranks=2, num_microbatches=3)
    return pp.Pipeline(model, pp.Split(list(cuts)), schedule, loss_fn=loss_fn, devices=["cpu"] * 2)


def the_papers_rule(model, p, batches, make, version_of, microbatches=1, seed=None):
    """One mini-batch after the other; `version_of(stage, n)` is the paper's. Returns losses and all versions."""
    bounds = [0, *map(int, CUTS[p]), len(model)]
    stages = [model[a:b] for a, b in itertools.pairwise(bounds)]
    optimizers = [make(list(stage.parameters())) for stage in stages]
    history = [[copy.deepcopy(list(stage.parameters()))] for stage in stages]
    losses = []
    for n, (x, y) in enumerate(batches):
        stale = []
        for s, stage in enumerate(stages):
            seen = history[s][version_of(s, n)]
            memo = {
                id(p): nn.Parameter(q.detach().clone()) for p, q in zip(stage.parameters(), seen, strict=True)
            }
            memo |= {id(buffer): buffer for buffer in stage.buffers()}
            stale.append(copy.deepcopy(stage, memo))
        total = 0.0
        for i, (part, goal) in enumerate(zip(x.chunk(microbatches), y.chunk(microbatches), strict=True)):
            for s, stage in enumerate(stale):
                if seed is not None:
                    seed_generators(seed, s, n * microbatches + i, torch.device("cpu"))
                part = stage(part)
            loss = F.mse_loss(part, goal)
            (loss / microbatches).backward()
            total += loss.item() / microbatches
        losses.append(total)
        for stage, old, optimizer, versions in zip(stages, stale, optimizers, history, strict=True):
            for parameter, twin in zip(stage.parameters(), old.parameters(), strict=True):
                parameter.grad = twin.grad
            optimizer.step()
            optimizer.zero_grad()
            versions.append(copy.deepcopy(list(stage.parameters())))
    return losses, history


def pipedream(p):
    """Weight stashing: stage s of p works on weights p - 1 - s updates old."""
    return lambda stage, n: max(0, n - (p - 1 - stage))


def two_buffered(stage, n):
    """2BW: the weights before the last update, on every stage."""
    return max(0, n - 1)


def same(model, plain):
    pairs = zip(model.state_dict().items(), plain.state_dict().values(), strict=True)
    return all(torch.equal(mine, theirs) for (_, mine), theirs in pairs)


@pytest.mark.parametrize("clock", ["threads", "virtual"])
@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [False, True])
def test_pipedream_is_the_papers_rule(clock, p, optimizer, dropout):
    model = model_with(*[nn.Dropout(0.3)] * dropout)
    plain, batches, make = copy.deepcopy(model), batches_for(7), OPTIMIZERS[optimizer]
    schedule = pp.schedule("pipedream", num_ranks=p, num_microbatches=7)
    run, seed = train(model, p, schedule, batches, make, clock)
    losses, _ = the_papers_rule(plain, p, batches, make, pipedream(p), seed=seed if dropout else None)
    assert run.losses.tolist() == losses and same(model, plain)
    assert np.array_equal(run.versions.of_stages, schedule.weight_versions().version)


@pytest.mark.parametrize("clock", ["threads", "virtual"])
def test_batchnorm_keeps_its_statistics_as_in_a_sequential_run(clock):
    model = model_with(nn.BatchNorm1d(6))
    plain, batches, make = copy.deepcopy(model), batches_for(7), OPTIMIZERS["momentum"]
    schedule = pp.schedule("pipedream", num_ranks=3, num_microbatches=7)
    train(model, 3, schedule, batches, make, clock)
    the_papers_rule(plain, 3, batches, make, pipedream(3))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clock", ["threads", "virtual"])
@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [False, True])
def test_two_buffered_weights_are_the_papers_rule(clock, p, optimizer, dropout):
    model = model_with(*[nn.Dropout(0.3)] * dropout)
    plain, batches, make = copy.deepcopy(model), batches_for(4, size=8), OPTIMIZERS[optimizer]
    schedule = pp.schedule("pipedream-2bw", num_ranks=p, num_microbatches=4, num_minibatches=4)
    run, seed = train(model, p, schedule, batches, make, clock)
    losses, _ = the_papers_rule(plain, p, batches, make, two_buffered, 4, seed=seed if dropout else None)
    torch.testing.assert_close(run.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=0)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert np.array_equal(run.versions.of_stages, schedule.weight_versions().version)


def test_one_version_on_every_stage_can_be_had_of_pipedream_and_the_newest_of_each_of_2bw():
    for name, options, consistent, per in (
        ("pipedream", {"num_microbatches": 6}, True, 1),
        ("pipedream-2bw", {"num_microbatches": 2, "num_minibatches": 6}, False, 2),
    ):
        model = model_with()
        plain, batches = copy.deepcopy(model), batches_for(6)
        schedule = pp.schedule(name, num_ranks=2, **options)
        version = schedule.weight_versions(consistent).version
        run, _ = train(model, 2, schedule, batches, consistent=consistent)
        the_papers_rule(plain, 2, batches, SGD, lambda s, n, v=version: int(v[s, n]), per)
        assert np.array_equal(run.versions.of_stages, version)
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_the_newest_weights_in_the_backward_would_be_caught(monkeypatch):
    model = model_with()
    plain, batches = copy.deepcopy(model), batches_for(6)
    honest = UpdatedStages.backward

    def hasty(self, stage, microbatch):
        own, held = self._weights[stage], self._copies[self._slots[microbatch]]
        held.version[stage] = own.stash.newest
        for twin, newest in zip(held.parameters[stage], own.parameters, strict=True):
            twin.data.copy_(newest)
        honest(self, stage, microbatch)

    monkeypatch.setattr(UpdatedStages, "backward", hasty)
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=6)
    run, _ = train(model, 2, schedule, batches)
    the_papers_rule(plain, 2, batches, SGD, pipedream(2))
    assert not same(model, plain)
    rows = run.versions.to_frame()
    seen = {kind: rows[rows["action"].str.startswith(f"0{kind}")]["version"].tolist() for kind in "FB"}
    assert seen["F"] != seen["B"]


def test_every_action_is_listed_with_what_it_saw():
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=4)
    run, _ = train(model_with(), 2, schedule, batches_for(4))
    rows = run.versions.to_frame()
    assert rows["action"].tolist() == [str(action) for order in schedule.orders for action in order]
    assert rows[rows["action"] == "0U2"]["version"].item() == 2
    planned = schedule.weight_versions().version
    for row in rows[~rows["action"].str.contains("U")].itertuples():
        assert row.version == planned[row.stage, row[3]]
    assert "batch 3" in str(run.versions) and "<table" in run.versions._repr_html_()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("pipedream", {"num_microbatches": 6}),
        ("pipedream-2bw", {"num_microbatches": 2, "num_minibatches": 6}),
    ],
)
def test_the_staleness_that_was_seen_is_the_planned_one(name, sizes):
    schedule = pp.schedule(name, num_ranks=2, **sizes)
    run, _ = train(model_with(), 2, schedule, batches_for(schedule.minibatches))
    planned, rows = schedule.weight_versions().staleness, run.versions.to_frame()
    updates = rows["action"].str.contains("U")
    assert (rows[updates]["staleness"] == 0).all()
    for row in rows[~updates].itertuples():
        assert row.staleness == planned[row.stage, row[3]]
    lines = str(run.versions).splitlines()
    assert lines[0].endswith("most stale")
    assert [int(line.split()[-1]) for line in lines[1:3]] == planned.max(axis=1).tolist()
    assert repr(run).startswith(
        f"<Training: {schedule.minibatches} mini-batches, loss "
    ) and "\n" not in repr(run)


def test_the_trace_shows_updates_and_the_summary_losses():
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=4)
    run, _ = train(model_with(), 2, schedule, batches_for(4))
    rows = run.trace.to_frame()
    assert (rows["kind"] == "U").sum() == 8 and run.trace.clock == "wall"
    assert str(run).startswith("4 mini-batches, loss ") and "<table" in run._repr_html_()


def test_split_backwards_train_too():
    model = model_with()
    plain, batches = copy.deepcopy(model), batches_for(2)
    orders = ["0F0 0F1 0I0 0W0 0U0 0I1 0W1 0U1", "1F0 1I0 1W0 1U0 1F1 1I1 1W1 1U1"]
    schedule = pp.Schedule([order.split() for order in orders], name="mine", minibatches=2)
    train(model, 2, schedule, batches)
    the_papers_rule(plain, 2, batches, SGD, pipedream(2))
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_a_transformer_trains_and_its_frozen_and_shared_parts_stay():
    model, x, y, loss_fn = gpt(tied=True)
    model.token_embedding.weight.requires_grad_(False)  # tied to the head: two stages, but no updates
    before, mine = model.token_embedding.weight.clone(), model.blocks[0].state_dict()
    mine = {name: value.clone() for name, value in mine.items()}
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=3)
    with pp.Pipeline(model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cpu"] * 2) as pipe:
        pp.train(pipe, [(x, y)] * 3, optimizer=SGD)
    assert torch.equal(model.token_embedding.weight, before)
    assert any(not torch.equal(value, mine[name]) for name, value in model.blocks[0].state_dict().items())


def test_recomputed_activations_are_those_of_the_version_that_the_forward_saw():
    found = []
    for recompute in ("none", "all"):
        model, x, y, loss_fn = gpt(dropout=0.3)
        torch.manual_seed(7)
        schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=4)
        with pp.Pipeline(
            model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cpu"] * 2, recompute=recompute
        ) as pipe:
            run = pp.train(pipe, [(x, y)] * 4, optimizer=SGD)
        found.append([run.losses, *model.parameters()])
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


def test_training_goes_on_with_the_optimizers_of_an_earlier_run():
    model = model_with()
    plain, batches, make = copy.deepcopy(model), batches_for(6), OPTIMIZERS["adam"]
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=3)
    stream = iter(batches)
    with pp.Pipeline(model, pp.Split(CUTS[2]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 2) as pipe:
        first = pp.train(pipe, stream, optimizer=make)
        second = pp.train(pipe, stream, optimizer=first.optimizers)
        assert next(stream, None) is None and second.optimizers == first.optimizers
    made = {}

    def again(params):
        made.setdefault(len(made), None)
        return next(kept)

    stages = [plain[:4], plain[4:]]
    optimizers = [make(list(stage.parameters())) for stage in stages]
    for part in (batches[:3], batches[3:]):
        kept = iter(optimizers)
        the_papers_rule(plain, 2, part, again, pipedream(2))
    assert same(model, plain)


@pytest.mark.parametrize("per_minibatch", [1, 2])
def test_what_the_last_forward_kept_is_left_on_the_model(per_minibatch):
    class Keeps(nn.Module):
        def forward(self, x):
            self.seen = [x.detach().mean(), 1]
            return x

    model, batches = nn.Sequential(Keeps(), *model_with()[1:]), batches_for(3)
    schedule = (
        pp.schedule("pipedream-2bw", num_ranks=2, num_microbatches=2, num_minibatches=3)
        if per_minibatch == 2
        else None
    )
    with pipeline(model, schedule) as pipe:
        pp.train(pipe, batches, optimizer=SGD)
    last = batches[-1][0].chunk(per_minibatch)[-1]
    assert torch.equal(model[0].seen[0], last.mean()) and not model[0].seen[0].requires_grad


def test_the_first_batch_is_looked_at_once_and_leaves_no_trace():
    calls = []
    model = model_with(nn.BatchNorm1d(6))
    model[0].register_forward_hook(lambda *_: calls.append(1))
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=3)
    with pp.Pipeline(model, pp.Split(CUTS[2]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 2) as pipe:
        pp.train(pipe, batches_for(3), optimizer=SGD)
        assert len(calls) == 4 and model[3].num_batches_tracked == 3
        pp.train(pipe, batches_for(3), optimizer=SGD)
        assert len(calls) == 7


def test_nothing_is_left_behind_without_the_garbage_collector():
    model, schedule = model_with(), pp.schedule("pipedream", num_ranks=3, num_microbatches=5)
    batches = batches_for(5)
    with pp.Pipeline(model, pp.Split(CUTS[3]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 3) as pipe:
        counts = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(4):
                pp.train(pipe, batches, optimizer=SGD)
                counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        finally:
            gc.enable()
        assert counts[1] == counts[2] == counts[3]
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inputs_receive_the_gradients_that_they_want():
    model = model_with()
    plain, batches = copy.deepcopy(model), batches_for(3)
    x = batches[0][0].requires_grad_()
    with pipeline(model) as pipe:
        pp.train(pipe, batches, optimizer=SGD)
    mine, x.grad = x.grad, None
    F.mse_loss(plain(x), batches[0][1]).backward()
    assert torch.equal(mine, x.grad)


def test_progress_counts_the_updates_too():
    seen = []
    with pipeline(model_with()) as pipe:
        pp.train(pipe, batches_for(3), optimizer=SGD, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (18, 18)


def test_a_loss_that_is_not_finite_is_shown_with_its_minibatch():
    batches = batches_for(3)
    batches[1][1][0, 0] = float("nan")
    with pipeline(model_with()) as pipe:
        assert "not finite, first in mini-batch 1" in str(pp.train(pipe, batches, optimizer=SGD))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pipedream", "pipedream-2bw"])
def test_updates_on_a_gpu_are_those_of_the_cpu(name):
    options = (
        {"num_minibatches": 4, "num_microbatches": 2} if name == "pipedream-2bw" else {"num_microbatches": 4}
    )
    schedule = pp.schedule(name, num_ranks=2, **options)
    found = []
    for devices in (["cpu", "cpu"], ["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]):
        model = model_with()
        with pp.Pipeline(model, pp.Split(CUTS[2]), schedule, loss_fn=F.mse_loss, devices=devices) as pipe:
            run = pp.train(pipe, batches_for(4), optimizer=OPTIMIZERS["adam"])
        found.append((run.losses, model.cpu().state_dict()))
    for losses, weights in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-9, atol=0)
        torch.testing.assert_close(weights, found[0][1], rtol=1e-7, atol=1e-9)
