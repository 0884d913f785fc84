"""What cannot be trained with updates in flight is refused by name, before or as soon as it shows."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.runtime.models import Awkward
from tests.runtime.test_train import SGD, batches_for, model_with, pipeline, same


def test_step_refuses_an_asynchronous_schedule_and_forward_runs_it():
    model = model_with()
    x, y = batches_for(1)[0]
    with pipeline(model) as pipe:
        with pytest.raises(
            pp.PipelabError, match=r"'pipedream' is asynchronous.*pp\.train\(pipe, batches, optimizer="
        ):
            pipe.step(x, y)
        assert torch.allclose(pipe.forward(x), model(x))


def test_a_synchronous_schedule_is_refused_with_its_loop():
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    with (
        pipeline(model_with(), schedule) as pipe,
        pytest.raises(
            pp.PipelabError, match=r"'1f1b' is synchronous.*pipe\.step\(x, y\); optimizer\.step\(\)"
        ),
    ):
        pp.train(pipe, batches_for(2), optimizer=SGD)


def test_updates_in_two_chains_are_refused():
    rows = ["0F0 3F1 3B1 0B0 0U0 3U1", "1F0 2F1 2B1 1B0 1U0 2U1"]
    schedule = pp.Schedule([row.split() for row in rows], pp.Placement.bidirectional(2), name="both ways")
    with (
        pipeline(model_with(), schedule) as pipe,
        pytest.raises(pp.PipelabError, match="while 2 chains work on"),
    ):
        pp.train(pipe, batches_for(1), optimizer=SGD)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (
            batches_for(2),
            pp.PipelabError,
            r"has 3 mini-batches, but there are 2 batches.*islice\(batches, 3\)",
        ),
        (batches_for(4), pp.PipelabError, "has 3 mini-batches, but there are 4 batches"),
        (iter(batches_for(2)), pp.PipelabError, "but there are 2 batches"),
        (torch.zeros(3, 2), TypeError, r"pairs \(inputs, target\).*not Tensor"),
        ([torch.zeros(2, 6)] * 3, pp.PipelabError, r"Batch 0 is Tensor; each must be a pair"),
        (
            [(torch.zeros(2, 6),)] * 3,
            pp.PipelabError,
            r"Batch 0 is tuple of 1; .* without a target \(inputs, None\)",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches, error, message):
    model = model_with()
    before = copy.deepcopy(model)
    with pipeline(model) as pipe, pytest.raises(error, match=message):
        pp.train(pipe, batches, optimizer=SGD)
    assert same(model, before)


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (None, TypeError, "optimizer must be a function .* not NoneType"),
        (lambda params: None, TypeError, r"optimizer of stage 0 is NoneType, not a torch\.optim"),
        ([], pp.PipelabError, "There are 0 optimizers for 2 stages"),
        (
            lambda params: SGD([nn.Parameter(torch.ones(1))]),
            pp.PipelabError,
            "must hold the parameters of this stage",
        ),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer, error, message):
    with pipeline(model_with()) as pipe, pytest.raises(error, match=message):
        pp.train(pipe, batches_for(3), optimizer=optimizer)


def test_one_optimizer_for_two_stages_is_refused():
    model = model_with()
    whole = SGD(model.parameters())
    with (
        pipeline(model) as pipe,
        pytest.raises(pp.PipelabError, match="no other stage may have the same one"),
    ):
        pp.train(pipe, batches_for(3), optimizer=lambda params: whole)


def test_without_gradients_it_is_refused():
    with (
        pipeline(model_with()) as pipe,
        torch.no_grad(),
        pytest.raises(pp.PipelabError, match="switched off"),
    ):
        pp.train(pipe, batches_for(3), optimizer=SGD)


def test_a_parameter_that_several_stages_train_is_refused_by_name():
    torch.manual_seed(0)
    model, x = Awkward().double(), torch.randn(4, 6).double()
    before = copy.deepcopy(model)
    model.scale.grad = torch.ones(6, dtype=torch.float64)
    with pipeline(model, cuts=["parts.2"]) as pipe:
        with pytest.raises(pp.PipelabError, match=r"The stages 0 and 1 use the parameter 'scale'.*freeze it"):
            pp.train(pipe, [(x, x)] * 3, optimizer=SGD)
        assert model.scale.grad.sum() == 6  # what was there is there
        for parameter in (model.scale, *model.shared.parameters()):
            parameter.requires_grad_(False)
        pp.train(pipe, [(x, x)] * 3, optimizer=SGD)
    assert torch.equal(model.scale, before.scale) and not same(model, before)


class Late(nn.Module):
    """Uses a weight of the first stage in the second one when asked to; seen where its own code has a value of both."""

    def __init__(self, seen):
        super().__init__()
        self.first, self.second, self.seen = nn.Linear(6, 6), nn.Linear(6, 6), seen

    def forward(self, x, late):
        h = self.first(x)
        x = self.second(h) + h if self.seen else self.second(h)
        return x @ self.first.weight if late else x


def test_a_branch_that_uses_another_stages_weights_later_is_refused_where_it_is_seen():
    x = torch.randn(4, 6)
    batches = [((x, False), x), ((x, True), x), ((x, False), x)]
    message = r"Stage 1 uses 'first\.weight', a parameter of stage 0"
    with pipeline(Late(seen=True), cuts=["second"]) as pipe, pytest.raises(pp.PipelabError, match=message):
        pp.train(pipe, batches, optimizer=SGD)


def test_a_branch_that_uses_another_stages_weights_unseen_is_exact_at_the_version_of_their_stage():
    torch.manual_seed(0)
    model, x = Late(seen=False).double(), torch.randn(4, 6).double()
    plain = copy.deepcopy(model)
    batches = [((x, late), x) for late in (False, True, False, False)]
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=4)
    with pipeline(model, schedule, cuts=["second"]) as pipe:
        pp.train(pipe, batches, optimizer=SGD)
        assert pipe.leaks
    history = [copy.deepcopy(plain)]
    for n, ((_, late), _) in enumerate(batches):
        stale = Late(seen=False).double()
        stale.first.load_state_dict(history[max(0, n - 1)].first.state_dict())
        stale.second.load_state_dict(history[n].second.state_dict())
        F.mse_loss(stale(x, late), x).backward()
        with torch.no_grad():
            for mine, theirs in zip(plain.parameters(), stale.parameters(), strict=True):
                mine -= 0.1 * theirs.grad
        history.append(copy.deepcopy(plain))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-13)


class Early(Late):
    """Uses a weight of the second stage in the first one when asked to."""

    def forward(self, x, early):
        return self.second(self.first(x @ self.second.weight if early else x))


@pytest.mark.parametrize("when", [1, 3])
def test_a_branch_that_uses_a_later_stages_weights_is_refused_when_their_gradient_comes_too_late(when):
    x = torch.randn(4, 6)
    batches = [((x, n == when), x) for n in range(4)]
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=4)
    message = "Another stage uses a parameter of stage 1"
    with (
        pipeline(Early(seen=False), schedule, cuts=["second"]) as pipe,
        pytest.raises(pp.PipelabError, match=message),
    ):
        pp.train(pipe, batches, optimizer=SGD)


def test_a_forward_that_goes_past_the_copy_is_refused():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.function = lambda x: self.linear(x)

        def forward(self, x):
            return self.function(x)

    model = model_with(Around())
    with pipeline(model) as pipe, pytest.raises(pp.PipelabError, match="went past the copy of the model"):
        pp.train(pipe, batches_for(3), optimizer=SGD)


def test_state_that_goes_from_minibatch_to_minibatch_is_refused():
    class Carries(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.zeros(6, dtype=torch.float64)

        def forward(self, x):
            x = x + self.mean
            self.mean = x.detach().mean(0)
            return x

    with (
        pipeline(model_with(Carries())) as pipe,
        pytest.raises(pp.PipelabError, match=r"reads 3\.mean.*copies"),
    ):
        pp.train(pipe, batches_for(3), optimizer=SGD)


def test_a_loss_that_reads_what_the_model_keeps_is_refused():
    class Keeps(nn.Sequential):
        def forward(self, x):
            self.penalty = x.square().mean()
            return super().forward(x)

    model = Keeps(*model_with())

    def loss_fn(output, target):
        return F.mse_loss(output, target) + model.penalty

    message = r"refers to the model, whose forward keeps values on itself \(model\.penalty\)"
    with pipeline(model, loss_fn=loss_fn) as pipe, pytest.raises(pp.PipelabError, match=message):
        pp.train(pipe, batches_for(3), optimizer=SGD)


def test_a_loss_with_parameters_of_its_own_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return F.mse_loss(output * self.scale, target)

    with (
        pipeline(model_with(), loss_fn=Scaled()) as pipe,
        pytest.raises(pp.PipelabError, match="but no stage"),
    ):
        pp.train(pipe, batches_for(3), optimizer=SGD)


class Replaces(nn.Module):
    """Puts another tensor in the place of its buffer, for batches of some sizes."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.register_buffer("last", torch.zeros(6, dtype=torch.float64))

    def forward(self, x):
        if len(x) in self.sizes:
            self.last = x.detach().mean(0)
        return x


def test_a_buffer_that_the_forward_replaces_is_refused_before_anything_is_updated():
    model = model_with(Replaces([4]))
    before = copy.deepcopy(model)
    with (
        pipeline(model) as pipe,
        pytest.raises(pp.PipelabError, match=r"in the place of the buffer '3\.last'"),
    ):
        pp.train(pipe, batches_for(3), optimizer=SGD)
    assert same(model, before)


def test_a_buffer_that_a_later_forward_replaces_is_refused_at_the_end():
    batches = [*batches_for(2), *batches_for(1, size=6)]
    with (
        pipeline(model_with(Replaces([6]))) as pipe,
        pytest.raises(pp.PipelabError, match=r"changes '3\.last'"),
    ):
        pp.train(pipe, batches, optimizer=SGD)


def test_weights_that_a_forward_changes_are_refused():
    model = nn.Sequential(nn.Embedding(5, 6, max_norm=0.1), nn.Linear(6, 6))
    ids, y = torch.tensor([1, 2]), torch.zeros(2, 6)
    with (
        pipeline(model, cuts=["1"]) as pipe,
        pytest.raises(pp.PipelabError, match=r"changes '0\.weight'") as caught,
    ):
        pp.train(pipe, [(ids, y)] * 3, optimizer=SGD)
    assert any("made [0, " in note for note in caught.value.__notes__)  # at once, not at the end
