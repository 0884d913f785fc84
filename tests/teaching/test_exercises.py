"""Every exercise accepts its solution, meets each known mistake with its hint, and survives any answer."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

import pipelab as pp
from pipelab.teaching import EXERCISES
from pipelab.teaching.exercise import number_judge

KNOWN_MISTAKES = [
    pytest.param(exercise, mistake, id=f"{exercise.name}-{k}")
    for exercise in EXERCISES.values()
    for k, mistake in enumerate(exercise.mistakes)
]


class Hostile:
    """An object whose every method fails."""

    def _fail(self, *args: object) -> None:
        raise RuntimeError("no")

    __repr__ = __str__ = __float__ = __eq__ = __len__ = __iter__ = __getitem__ = _fail
    __hash__ = None


HOSTILE = {
    "text": "0.273",
    "markup": "<script>alert(1)</script>$x$",
    "not a number": float("nan"),
    "infinite": float("inf"),
    "negative": -1,
    "zero": 0,
    "huge float": 1e308,
    "huge integer": 10**400,
    "huge integer that fits a float": 10**12,
    "truth value": True,
    "complex": 1j,
    "endless": itertools.count(),
    "nested": [[[[]]]],
    "wide": [["0F0"] * 10**6] * 2,
    "deep cells": [["0F0" * 10**5], ["1F0"]],
    "wrong kinds": [[None, 3.5], [object()]],
    "array": np.ones(3),
    "hostile": Hostile(),
    "a class": Hostile,
    "a schedule of another shape": pp.schedule("gpipe", num_ranks=3, num_microbatches=2),
    "a schedule without backward": pp.schedule("forward-only", num_ranks=2, num_microbatches=4),
    "a split that does not fit": pp.Split(["no.such.layer"]),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_no_answer_is_neither_right_nor_wrong(name: str):
    verdict = pp.exercise(name).check(None)
    assert str(verdict) == "not answered yet"
    assert not verdict and not verdict.answered
    assert str(pp.exercise(name).check()) == str(verdict)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right(name: str):
    verdict = pp.exercise(name).check(pp.exercise(name).solution())
    assert verdict, verdict
    assert verdict.right and verdict.answered
    assert str(verdict).startswith("Right. ")


@pytest.mark.parametrize(("exercise", "mistake"), KNOWN_MISTAKES)
def test_a_known_mistake_gets_its_hint(exercise, mistake):
    verdict = exercise.check(mistake.answer())
    assert not verdict and verdict.answered
    assert mistake.hint in verdict.message


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
def test_no_two_mistakes_of_one_exercise_are_the_same_answer(exercise):
    answers = [repr(mistake.answer()) for mistake in exercise.mistakes]
    assert len(set(answers)) == len(answers) >= 3


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("what", HOSTILE)
def test_any_answer_gets_a_short_verdict_and_no_exception(name: str, what: str):
    verdict = pp.exercise(name).check(HOSTILE[what])
    assert not verdict and verdict.answered
    assert 20 < len(str(verdict)) < 2000
    assert "<script" not in verdict._repr_html_()


@pytest.mark.parametrize("number", [4, 4.0, np.float32(4), np.int64(4), Fraction(4)])
def test_a_number_of_any_type_is_a_number(number):
    assert pp.exercise("00.1").check(number)


def test_a_number_within_one_per_cent_is_right_and_one_beyond_is_not():
    judge = number_judge(lambda: 2.0, "yes", (), "look again")
    assert judge(2.019) and judge(1.981)
    assert not judge(2.03) and "look again" in judge(2.03).message


def test_an_order_that_cannot_run_is_answered_with_the_action_that_waits():
    verdict = pp.exercise("02.3").check([["0B0", "0F0"], ["1F0", "1B0"]])
    assert "0B0" in verdict.message and "0F0" in verdict.message


def test_another_order_that_meets_the_conditions_is_right_too():
    assert pp.exercise("02.3").check(pp.schedule("1f1b", num_ranks=2, num_microbatches=4))
    assert pp.exercise("00.3").check(["blocks.4"])


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
def test_an_exercise_shows_its_question_as_text_and_as_html(exercise):
    assert exercise.name in str(exercise) and exercise.question in str(exercise)
    html = exercise._repr_html_()
    assert html.count("<code>") == html.count("</code>") and "`" not in html
    assert "not answered" not in html


def test_an_unknown_exercise_is_refused_with_the_nearest():
    with pytest.raises(pp.PipelabError, match=r"02\.1"):
        pp.exercise("02.11")
