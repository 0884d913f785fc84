"""Finding where a model can be cut."""

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.runtime.layers import layers


def test_a_gpt_is_its_embeddings_its_blocks_its_norm_and_its_head():
    model = pp.zoo.gpt(layers=3, width=16, heads=2, vocab=8, context=4)
    names = layers(model, torch.zeros(1, 4, dtype=torch.long))
    assert names == (
        "token_embedding",
        "position_embedding",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "norm",
        "head",
    )


def test_a_unet_is_listed_in_the_order_of_its_calls():
    names = layers(pp.zoo.unet(depth=2, channels=2), torch.zeros(1, 1, 8, 8))
    assert names == ("down.0", "down.1", "bottom", "up.0", "up.1", "head")


def test_the_chain_is_found_inside_a_wrapper():
    wrapped = nn.Module()
    wrapped.inner = pp.zoo.gpt(layers=2, width=16, heads=2, vocab=8, context=4)
    wrapped.forward = wrapped.inner.forward
    names = layers(wrapped, torch.zeros(1, 4, dtype=torch.long))
    assert "inner.blocks.0" in names and "inner.head" in names


def test_a_module_that_is_never_called_is_no_layer():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    assert layers(Unused(), torch.zeros(1, 2)) == ("used",)


def test_the_order_is_that_of_the_calls_not_of_the_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x))

    assert layers(Backwards(), torch.zeros(1, 2)) == ("first", "last")


def test_a_model_without_modules_has_nowhere_to_be_cut():
    class Bare(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(pp.PipelabError, match="nowhere to cut"):
        layers(Bare(), torch.zeros(1, 2))


def test_looking_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    layers(model, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not model[0]._forward_pre_hooks
