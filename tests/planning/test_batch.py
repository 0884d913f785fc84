from __future__ import annotations

import pytest

import pipelab as pp
from pipelab.core.profile import Affine, Profile
from pipelab.planning.batch import Batch


def profile_of(layers: int = 6) -> Profile:
    cost = [Affine(1e-3, 2e-3 * (1 + number % 3)) for number in range(layers)]
    held = [Affine(0.0, 100.0)] * layers
    names = [f"blocks.{number}" for number in range(layers)]
    return Profile(names, cost, cost, cost, [1000] * layers, held, held, 8, (4, 8), "cpu")


@pytest.mark.parametrize("number", range(1, 13))
def test_all_micro_batches_together_hold_the_samples_of_the_batch(number):
    """Per-sample costs add up to those of the whole batch, even or not; the fixed part is paid m times."""
    profile, split = profile_of(), pp.Split(["blocks.3"])
    costs = Batch(12, number).costs(profile, split)
    fixed, per_sample = 3e-3, 12e-3
    assert number * costs.forward[0] == pytest.approx(number * fixed + 12 * per_sample)
    assert number * costs.bytes.activations[0] == pytest.approx(12 * (300 + 100))  # what is sent is kept, too


def test_links_are_those_given_also_where_micro_batches_are_uneven():
    links = pp.Links(latency=0.5)
    assert Batch(12, 5).costs(profile_of(), pp.Split(["blocks.3"]), links).links == links


def test_an_uneven_batch_says_so():
    assert Batch(12, 4).notes == ()
    (note,) = Batch(12, 5).notes
    assert "2 or 3 samples each" in note and "2.40" in note


def test_the_split_is_balanced_for_micro_batches_of_this_size():
    profile = profile_of()
    assert Batch(12, 4).balance(profile, 3) == pp.balance(profile, 3, batch_size=3)
    assert Batch(12, 12).balance(profile, 3) == pp.balance(profile, 3, batch_size=1)


@pytest.mark.parametrize(
    ("size", "number", "said"),
    [(8, 9, "more than the 8 samples"), (0, 1, "at least one sample"), (4, 0, "num_microbatches is 0")],
)
def test_impossible_batches_are_refused(size, number, said):
    with pytest.raises(pp.PipelabError, match=said):
        Batch(size, number)


def test_a_number_of_the_wrong_type_is_named():
    with pytest.raises((TypeError, pp.PipelabError), match="num_microbatches"):
        Batch(8, 2.5)
