"""Terms, assumptions and closed forms as values: defaults, definitions, messages."""

from __future__ import annotations

import math

import pytest

from pipelab.core.closed_form import Assumption, ClosedForm, Terms
from pipelab.errors import PipelabError

GPIPE = ClosedForm.where(
    Assumption("m >= p", lambda t: t.m >= t.p),
    Assumption("c <= F and W > 0", lambda t: t.c <= t.F and t.W > 0),
    idle=lambda t: (t.p - 1) * (t.F + t.B + 2 * t.c),
    peak=lambda t, r: t.m - r,
)


def test_what_is_left_out_of_the_terms_follows_from_the_rest():
    assert Terms.of(2, 3) == Terms(p=2, m=3, v=1, F=1.0, I=1.0, W=1.0, B=2.0, overlap=3.0, c=0.0)
    assert Terms.of(2, 3, B=3.0) == Terms(2, 3, 1, 1.0, 1.5, 1.5, 3.0, 4.0, 0.0)
    assert Terms.of(2, 3, 2, 4.0, I=1.0, W=0.5) == Terms(2, 3, 2, 4.0, 1.0, 0.5, 1.5, 5.5, 0.0)
    assert Terms.of(2, 3, B=2.5, I=1.0, W=1.0, overlap=2.75, c=0.5) == Terms(
        2, 3, 1, 1.0, 1.0, 1.0, 2.5, 2.75, 0.5
    )


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-4, 8, 1)])
def test_sizes_below_1_are_refused(sizes):
    with pytest.raises(PipelabError, match=rf"p={sizes[0]}, m={sizes[1]}, v={sizes[2]}; all are at least 1"):
        GPIPE.makespan(*sizes)


def test_sizes_that_are_no_integers_are_type_errors():
    with pytest.raises(TypeError, match=r"m must be an integer, not 2\.5"):
        GPIPE.makespan(2, 2.5)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["F", "B", "c", "overlap"])
def test_seconds_are_finite_and_not_negative(name, seconds):
    with pytest.raises(PipelabError, match=f"{name} is .*; it must be finite and not negative"):
        Terms.of(2, 3, **{"I": 1.0, "W": 1.0, name: seconds})


def test_seconds_are_numbers():
    with pytest.raises(TypeError, match="c must be a number of seconds, not '1'"):
        Terms.of(2, 3, c="1")


@pytest.mark.parametrize("given", [{"I": 1.0}, {"W": 1.0}, {"B": 3.0, "I": 1.0}])
def test_one_of_I_and_W_alone_is_refused(given):
    with pytest.raises(PipelabError, match="Give both I and W, or neither"):
        GPIPE.makespan(2, 3, **given)


def test_an_unknown_keyword_is_a_type_error_that_names_the_known_ones():
    with pytest.raises(TypeError, match=r"unexpected keyword 'overlp'; did you mean 'overlap'\?"):
        GPIPE.makespan(2, 3, overlp=1.0)


def test_the_bubbles_are_those_of_their_definitions():
    assert GPIPE.bubble_time(4, 8, 1, 1.0, 2.0) == 9
    assert GPIPE.busy(4, 8) == 24 and GPIPE.busy(4, 8, 3) == 72
    assert GPIPE.makespan(4, 8) == 33 and GPIPE.makespan(4, 8, c=0.5) == 36
    assert GPIPE.bubble_fraction(4, 8) == 3 / 11 and GPIPE.bubble_ratio(4, 8) == 3 / 8
    assert GPIPE.peak_in_flight(3, 8) == (8, 7, 6)


def test_costs_of_nothing_divide_by_nothing():
    free = {"F": 0.0, "I": 0.0, "W": 0.0}
    assert GPIPE.bubble_fraction(4, 8, **free) == GPIPE.bubble_ratio(4, 8, **free) == 0
    assert (
        GPIPE.bubble_ratio(4, 8, **free, c=1.0) == math.inf
        and GPIPE.bubble_fraction(4, 8, **free, c=1.0) == 1
    )


def test_the_first_broken_assumption_is_named_with_the_terms_it_is_about():
    assert GPIPE.assumptions == "equal stages; m >= p; c <= F and W > 0"
    assert GPIPE.holds(4, 4, c=1.0) == ""
    assert GPIPE.holds(4, 2, c=9.0) == "The formula assumes m >= p; here p=4, m=2. Simulate it."
    assert GPIPE.holds(4, 4, c=9.0) == (
        "The formula assumes c <= F and W > 0; here F=1, W=1, c=9. Simulate it."
    )


def test_a_broken_assumption_does_not_take_the_number_away():
    assert GPIPE.makespan(4, 2) == 2 * 3 + 9


def test_overlap_is_called_as_in_the_formulas():
    assert Terms.of(2, 3, overlap=1.5).about("F&B >= F where mod p") == "p=2, F=1, overlap=1.5"
