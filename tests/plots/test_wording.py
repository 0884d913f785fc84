from __future__ import annotations

import pytest
from matplotlib import cbook

from pipelab.plots.wording import devices_text, elided, literal, time_unit


@pytest.mark.parametrize("name", ["$", "$x$", "a $b$ c $d$", r"\$", "$$", r"x\$y$"])
def test_no_name_is_read_as_mathematics(name):
    assert not cbook.is_math_text(literal(name))


def test_a_name_is_one_line_without_control_characters():
    assert literal("a\nb\tc\x1b[0m") == "a b c�[0m"


def test_a_long_name_keeps_its_ends():
    assert elided("abcdefghij", 5) == "ab…ij"
    assert len(literal("x" * 10**6)) == 60


@pytest.mark.parametrize(
    ("seconds", "name"), [(90, "s"), (1, "s"), (0.5, "ms"), (2e-5, "us"), (1e-12, "ns"), (0, "s")]
)
def test_times_get_a_fitting_unit(seconds, name):
    assert time_unit(seconds)[1] == name


def test_many_devices_are_named_in_few_words():
    assert devices_text(f"cuda:{n}" for n in range(16)) == "cuda:0, cuda:1, cuda:2, … cuda:15"
