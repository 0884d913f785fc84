"""What to know about a model in a pipeline though nothing is wrong: warned of once, and listed."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.runtime.models import gpt, mlp, resnet


def pipeline(model, cuts, loss_fn, num_microbatches=4, devices=None):
    schedule = pp.schedule("1f1b", num_ranks=len(cuts) + 1, num_microbatches=num_microbatches)
    devices = devices or pp.virtual(schedule.num_ranks)
    return pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices)


@pytest.fixture
def heard():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def test_a_gpt_and_an_mlp_are_warned_of_nothing(heard):
    for make, cuts in ((gpt, ["blocks.2"]), (mlp, ["4"])):
        model, x, y, loss_fn = make()
        with pipeline(model, cuts, loss_fn) as pipe:
            pipe.step(x, y)
            assert pipe.warnings == ()
    assert not [w for w in heard if issubclass(w.category, pp.PipelabWarning)]


def test_batchnorm_in_training_is_named_when_the_pipeline_is_made(heard):
    model, x, y, loss_fn = resnet()
    with pipeline(model, ["blocks.2"], loss_fn) as pipe:
        (sentence,) = pipe.warnings
        assert (
            "blocks.0.norm1" in sentence
            and "each of the 4 micro-batches" in sentence
            and "4 times" in sentence
        )
        pipe.step(x, y)
        pipe.step(x, y)
    (warning,) = heard
    assert warning.category is pp.PipelabWarning and str(warning.message) == sentence
    assert warning.filename == __file__  # where the pipeline was made, not inside pipelab


def test_batchnorm_in_eval_or_in_one_micro_batch_is_no_matter():
    model, _, _, loss_fn = resnet()
    with pipeline(model, ["blocks.2"], loss_fn, num_microbatches=1) as pipe:
        assert pipe.warnings == ()
    with pipeline(model.eval(), ["blocks.2"], loss_fn) as pipe:
        assert pipe.warnings == ()


def test_a_tied_parameter_is_named_with_its_stages_and_what_it_costs(heard):
    model, x, y, loss_fn = gpt(tied=True)
    with pipeline(model, ["blocks.1", "blocks.3"], loss_fn) as pipe:
        (at_first,) = pipe.warnings  # its names tell
        assert at_first.startswith("token_embedding.weight (also head.weight) is used by stages 0 and 2.")
        assert "stage 2 keeps a gradient of its own, 1.5 KiB" in at_first
        pipe.step(x, y)
        assert pipe.warnings == (at_first,)
    assert len([w for w in heard if w.category is pp.PipelabWarning]) == 1


class Hidden(nn.Module):
    """One name, two stages: only a run shows it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.b(self.a(x))
        return F.linear(x, self.a.weight)


def test_a_parameter_that_two_stages_turn_out_to_use_is_named_after_the_first_step(heard):
    x = torch.ones(4, 4)
    with pipeline(Hidden(), ["b"], F.mse_loss) as pipe:
        assert pipe.warnings == ()
        for _ in range(3):
            pipe.step(x, x)
        assert pipe.warnings[0].startswith("a.weight is used by stages 0 and 1.")
    (warning,) = [w for w in heard if w.category is pp.PipelabWarning]
    assert warning.filename == __file__


class Misleading(nn.Module):
    """A name that is registered behind the cut and never used."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.never = nn.Linear(4, 4, bias=False)
        self.never.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_what_names_suggest_and_a_step_refutes_is_taken_back():
    x = torch.ones(4, 4)
    with pytest.warns(pp.PipelabWarning, match="never.weight"):
        pipe = pipeline(Misleading(), ["b"], F.mse_loss)
    with pipe:
        pipe.step(x, x)
        assert pipe.warnings == ()


def test_what_is_frozen_and_read_in_place_costs_nothing():
    model, x, y, loss_fn = gpt(tied=True)
    model.head.weight.requires_grad_(False)
    with pipeline(model, ["blocks.2"], loss_fn) as pipe:
        pipe.step(x, y)
        assert pipe.warnings == ()


def test_parameters_of_the_same_stages_share_a_sentence():
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = nn.Sequential(shared, nn.Linear(4, 4), nn.Sequential(nn.GELU(), shared))
    with pytest.warns(pp.PipelabWarning) as heard:
        pipe = pipeline(model, ["1", "2"], F.mse_loss)
    pipe.close()
    (warning,) = heard
    assert str(warning.message).startswith(
        "0.0.weight (also 2.1.0.weight), 0.0.bias (also 2.1.0.bias), 0.1.weight (also 2.1.1.weight) and 1 more are "
        "used by stages 0 and 2. They live in stage 0; stage 2 keeps"
    )


@pytest.mark.gpu
def test_on_two_devices_a_tied_parameter_costs_a_copy_too():
    model, x, y, loss_fn = gpt(tied=True)
    with pytest.warns(pp.PipelabWarning, match="gets a copy once a step and returns its gradient once"):
        pipe = pipeline(model, ["blocks.2"], loss_fn, devices=["cuda:0", "cpu"])
    with pipe:
        pipe.step(x, y)
