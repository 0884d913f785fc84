"""Cut points."""

from __future__ import annotations

import pytest

from pipelab.core.split import Split
from pipelab.errors import PipelabError


def test_a_stage_begins_at_each_cut_and_at_the_start():
    assert Split(["blocks.3", "head"]).num_stages == 3
    assert Split([]).num_stages == Split().num_stages == 1


def test_splits_are_values():
    split = Split(["blocks.3"])
    assert repr(split) == "Split(['blocks.3'])" and eval(repr(split)) == split
    assert split == Split(("blocks.3",)) and hash(split) == hash(Split(["blocks.3"])) and split != Split()
    assert Split.from_dict(split.to_dict()) == split
    assert (
        str(split) == "2 stages, beginning at the start, blocks.3"
        and str(Split()) == "1 stage, beginning at the start"
    )


@pytest.mark.parametrize(
    ("cuts", "error", "message"),
    [
        (["a", "b", "a"], PipelabError, "The cut 'a' is there twice"),
        (["a", " "], PipelabError, "empty name"),
        ("blocks.3", TypeError, r"for one cut write Split\(\['blocks.3'\]\)"),
        ([3], TypeError, "A cut is the name of a module, not int"),
    ],
)
def test_impossible_cuts_are_refused(cuts, error, message):
    with pytest.raises(error, match=message):
        Split(cuts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "split.cuts is missing"),
        ({"cuts": "a"}, "split.cuts must be a list"),
        ({"cuts": [1]}, r"split.cuts\[0\]"),
    ],
)
def test_wrong_fields_are_named(data, message):
    with pytest.raises(PipelabError, match=message):
        Split.from_dict(data)


def test_a_great_many_cuts_are_checked_quickly():
    assert Split(map(str, range(100_000))).num_stages == 100_001
