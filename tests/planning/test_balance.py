"""The exact partition, against trying every split."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.profile import Affine, Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError
from pipelab.planning.balance import balance


def make(seconds, sent=None, per_sample=0.0):
    count = len(seconds)
    nothing = (Affine(0, 0),) * count
    return Profile(
        layers=tuple(f"l{n}" for n in range(count)),
        forward=tuple(Affine(x, per_sample * n) for n, x in enumerate(seconds)),
        input_grad=nothing,
        weight_grad=nothing,
        parameter_bytes=(0,) * count,
        activation_bytes=nothing,
        output_bytes=tuple(Affine(x) for x in sent or [0] * count),
        batch_size=1,
        measured_sizes=(1,),
        device="cpu",
    )


def judge(profile, split):
    """Slowest stage, then bytes sent."""
    seconds = profile.seconds()
    stages = profile.stages(split)
    sent = sum(profile.output_bytes[stage.stop - 1].at(1) for stage in stages[:-1])
    return max(round(float(seconds[stage].sum()), 9) for stage in stages), sent


@given(st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_no_split_is_better(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 8)
    values = rng.choice([[0, 1, 2], [0.1, 0.2, 0.3], [rng.random() for _ in range(5)]])
    profile = make([rng.choice(values) for _ in range(count)], [rng.choice([1, 2, 5]) for _ in range(count)])
    num_stages = rng.randint(1, count)
    every = (Split([f"l{n}" for n in cuts]) for cuts in combinations(range(1, count), num_stages - 1))
    found = balance(profile, num_stages)
    assert found.num_stages == num_stages
    assert judge(profile, found) == min(judge(profile, split) for split in every)


def test_equally_fast_splits_send_the_fewest_bytes():
    assert balance(make([1, 0, 0, 1], [9, 3, 5, 0]), 2) == Split(["l2"])


def test_one_stage_and_a_stage_for_every_layer():
    profile = make([1, 2, 3])
    assert balance(profile, 1) == Split([]) and balance(profile, 3) == Split(["l1", "l2"])


def test_the_size_of_the_micro_batch_matters():
    profile = make([4, 1, 1, 1], per_sample=1.0)
    assert balance(profile, 2, batch_size=1) == Split(["l2"]) and balance(
        profile, 2, batch_size=100
    ) == Split(["l3"])


def test_layers_that_take_no_time_are_still_one_a_stage():
    assert balance(make([0, 0, 0]), 3).num_stages == 3


@pytest.mark.parametrize("count", [0, 4, -1])
def test_more_stages_than_layers_are_refused(count):
    with pytest.raises(
        PipelabError, match=f"num_stages is {count}; this model can be cut into 1 to 3 stages"
    ):
        balance(make([1, 2, 3]), count)


@pytest.mark.timeout(20)
def test_a_thousand_layers_are_cut():
    profile = make([1.0] * 1000)
    seconds = [len(range(*stage.indices(1000))) for stage in profile.stages(balance(profile, 64))]
    assert max(seconds) == 16
