"""Terms, assumptions and closed forms as values: defaults, definitions, messages."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from pipelab.core.closed_form import Assumption, ClosedForm, Terms, at_most
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


@pytest.mark.parametrize("given", ["1", True, Decimal(2), 1j, [1.0]])
@pytest.mark.parametrize("name", ["F", "B", "I", "W", "overlap", "c"])
def test_seconds_are_numbers(name, given):
    with pytest.raises(TypeError, match=rf"{name} must be a number of seconds, not {re.escape(repr(given))}"):
        GPIPE.makespan(2, 3, **({"I": 1.0, "W": 1.0} | {name: given}))


@pytest.mark.parametrize("name", ["F", "c"])
def test_seconds_that_have_a_number_as_default_are_not_none(name):
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not None"):
        GPIPE.makespan(2, 3, **{name: None})


def test_other_kinds_of_numbers_are_taken_and_too_large_ones_refused():
    assert GPIPE.makespan(4, 8, F=Fraction(1, 2), B=np.float32(2)) == 11 * 2.5
    with pytest.raises(PipelabError, match="F is too large; it must be finite"):
        GPIPE.makespan(4, 8, F=10**400)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2**16 + 1, 1, 1), r"p is too large; the limit is 65,536 \(2\*\*16\)"),
        ((1, 2**22 + 1, 1), r"m is too large; the limit is 4,194,304 \(2\*\*22\)"),
        ((1, 1, 10**400), r"v is too large; the limit is 65,536 \(2\*\*16\)"),
    ],
)
def test_sizes_above_those_of_schedules_are_refused_with_the_limit(sizes, message):
    with pytest.raises(PipelabError, match=message):
        GPIPE.makespan(*sizes)
    assert Terms.of(2**16, 2**22, 2**16).m == 2**22


def test_bounds_of_v_are_one_more_assumption_and_the_least_is_the_default():
    for bounds, words, inside, outside in (
        ((2, 2), "v = 2", (2,), (1, 3)),
        ((2, None), "v >= 2", (2, 9), (1,)),
        ((2, 4), "2 <= v <= 4", (2, 3, 4), (1, 5)),
    ):
        form = GPIPE.bounded(bounds)
        assert form.assumptions == f"{GPIPE.assumptions}; {words}"
        assert [form.holds(4, 8, v) for v in inside] == [""] * len(inside)
        assert all(f"assumes {words}; here v={v}." in form.holds(4, 8, v) for v in outside)
        assert form.makespan(4, 8) == GPIPE.makespan(4, 8, 2)
    assert GPIPE.bounded((1, None)) is GPIPE


def test_up_to_rounding_a_sum_of_decimals_is_at_most_itself():
    assert 0.1 + 0.2 > 0.3 and at_most(0.1 + 0.2, 0.3) and at_most(0.3, 0.1 + 0.2) and at_most(0, 1)
    assert not at_most(0.3001, 0.3) and not at_most(1e-300, 0)


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
