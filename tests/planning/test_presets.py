"""Presets of a split, against trying every one."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from pipelab.core.profile import Affine, Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError
from pipelab.planning.balance import balance
from pipelab.planning.presets import equal_count, equal_parameters


def make(parameters, seconds=None, sent=None, backward=None):
    count = len(parameters)

    def line(values):
        return tuple(map(Affine, values or [1.0] * count))

    return Profile(
        [f"l{n}" for n in range(count)],
        line(seconds),
        line(seconds),
        line(seconds),
        parameters,
        line(None),
        line(sent),
        4,
        (2, 4),
        "cpu",
        backward=None if backward is None else line(backward),
    )


def sizes(profile, split):
    return [part.stop - part.start for part in profile.stages(split)]


@pytest.mark.parametrize("layers", range(1, 14))
def test_stages_of_equal_count_differ_by_one_layer_at_most_the_larger_first(layers):
    profile = make([1] * layers)
    for stages in range(1, layers + 1):
        found = sizes(profile, equal_count(profile, stages))
        assert len(found) == stages and found == sorted(found, reverse=True)
        assert max(found) - min(found) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_no_split_has_a_smaller_largest_stage_in_parameters(seed):
    rng = random.Random(seed)
    parameters = [rng.choice([0, 1, 2, 50, 1000]) for _ in range(rng.randint(1, 8))]
    profile, stages = make(parameters), rng.randint(1, len(parameters))

    def largest(split):
        return max(sum(parameters[part]) for part in profile.stages(split))

    every = combinations(profile.layers[1:], stages - 1)
    found = equal_parameters(profile, stages)
    assert found.num_stages == stages
    assert largest(found) == min(largest(Split(cuts)) for cuts in every)


def test_of_equal_parameters_the_split_that_sends_least_is_taken():
    assert equal_parameters(make([4, 0, 0, 4], sent=[9, 3, 5, 1]), 2) == Split(["l2"])


def test_presets_do_not_look_at_the_clock():
    heavy_head = make([1, 1, 1, 1], seconds=[1, 1, 1, 30], backward=[1, 1, 1, 60])
    assert equal_count(heavy_head, 2) == equal_parameters(heavy_head, 2) == Split(["l2"])
    assert balance(heavy_head, 2) == Split(["l3"])


@pytest.mark.parametrize("preset", [equal_count, equal_parameters])
@pytest.mark.parametrize("count", [0, 4, -1])
def test_more_stages_than_layers_are_refused(preset, count):
    with pytest.raises(PipelabError, match=f"num_stages is {count}; this model can be cut into 1 to 3"):
        preset(make([1, 2, 3]), count)


@pytest.mark.parametrize("preset", [equal_count, equal_parameters])
def test_something_else_than_a_profile_is_a_wrong_call(preset):
    with pytest.raises(TypeError, match=f"{preset.__name__}\\(\\) takes a Profile, not list"):
        preset([1, 2], 2)
