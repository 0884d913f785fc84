"""Errors that help: the value, what is allowed, the nearest."""

from __future__ import annotations

import pytest

from pipelab.errors import PipelabError, nearest, one_of, reject_unknown


def test_a_pipelab_error_is_a_value_error():
    assert issubclass(PipelabError, ValueError)


def test_an_allowed_value_passes():
    one_of("clock", "wall", ("wall", "virtual"))


def test_a_wrong_value_is_named_with_the_nearest_and_with_all():
    with pytest.raises(PipelabError, match=r"clock is 'wal'; did you mean 'wall'\?") as caught:
        one_of("clock", "wal", ("virtual", "wall"))
    assert "Allowed: 'virtual', 'wall'." in str(caught.value)


def test_without_a_near_value_no_guess_is_made():
    with pytest.raises(PipelabError, match=r"clock is 'zzz'\.\nAllowed"):
        one_of("clock", "zzz", ("wall",))


def test_no_unknown_keyword_is_no_error():
    reject_unknown("plot", [], ["ax"])


def test_an_unknown_keyword_is_a_type_error_that_names_the_nearest():
    with pytest.raises(
        TypeError, match=r"plot\(\) got an unexpected keyword 'colour'; did you mean 'color'\?"
    ):
        reject_unknown("plot", ["colour"], ["ax", "color"])


def test_an_unknown_keyword_of_a_function_without_any():
    with pytest.raises(TypeError, match="it takes none"):
        reject_unknown("plot", ["x"], [])


def test_a_very_long_word_is_answered_at_once():
    assert nearest("x" * 10_000_000, ["gpipe", "1f1b"]) == []
