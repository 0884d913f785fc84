"""Finding where a model can be cut."""

import time

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


def a_table():
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=3, width=16, heads=2, vocab=8, context=4, tied=True)
    return model, layers(model, torch.zeros(1, 4, dtype=torch.long))


def test_layers_are_a_sequence_of_names():
    model, found = a_table()
    assert found[2] == "blocks.0" and found[1:3] == ("position_embedding", "blocks.0") and len(found) == 7
    first, *others = found
    assert first == "token_embedding" and "norm" in others and found.index("norm") == 5
    assert found == tuple(found) and found == layers(model, torch.zeros(1, 4, dtype=torch.long))
    assert found != tuple(found)[1:] and hash(found) == hash(tuple(found))
    assert pp.Split(found[2:5:2]).cuts == ("blocks.0", "blocks.2")


def test_a_layer_says_its_type_its_parameters_and_its_output():
    model, found = a_table()
    n = found.index("blocks.1")
    assert found.types[n] == "Block"
    assert found.parameters[n] == sum(p.numel() for p in model.blocks[1].parameters())
    assert found.parameter_bytes[n] == 4 * found.parameters[n] and found.output_bytes[n] == 4 * 16 * 4
    assert all(seconds > 0 for seconds in found.forward)


def test_a_shared_parameter_counts_once_and_the_models_own_are_named():
    model, found = a_table()
    assert found.parameters[found.index("head")] == 0  # the token embedding's
    assert sum(found.parameters) + found.others == sum(p.numel() for p in model.parameters())
    model.extra = nn.Parameter(torch.ones(5))
    assert "5 more parameters belong to no layer" in str(layers(model, torch.zeros(1, 4, dtype=torch.long)))


def test_the_seconds_add_up_to_the_whole_forward():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    found = layers(nn.Sequential(nn.Identity(), Slow(), nn.Identity()), torch.ones(1, 2))
    assert found.forward[1] >= 0.02 and found.forward[0] + found.forward[2] < found.forward[1]


def test_layers_print_as_a_table_and_names_are_escaped():
    model = nn.Sequential()
    model.add_module("<b>", nn.Linear(2, 2))
    found = layers(model, torch.ones(1, 2))
    assert str(found).splitlines()[0].startswith("layer  type") and "pp.balance" in str(found)
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()
    assert list(found.to_frame()["layer"]) == ["<b>"] and "<Layers: 1 layer" in repr(found)


def test_a_layer_that_is_called_only_sometimes_takes_no_time_when_it_is_not():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.calls = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), 0

        def forward(self, x):
            object.__setattr__(self, "calls", self.calls + 1)
            x = self.a(x)
            return self.c(self.b(x) if self.calls == 1 else x)

    found = layers(Sometimes(), torch.ones(1, 2))
    assert found == ("a", "b", "c") and min(found.forward) >= 0


def test_no_timed_run_is_refused():
    with pytest.raises(pp.PipelabError, match="repeats is 0"):
        layers(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), repeats=0)
