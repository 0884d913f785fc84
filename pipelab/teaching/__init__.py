"""Exercises of the notebooks.

`exercise("02.1")` shows its question, and `.check(answer)` says right, or a hint, or "not answered yet".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipelab.errors import one_of
from pipelab.teaching import (
    balance_the_stages,
    bubble,
    memory,
    microbatch_size,
    predict_and_measure,
    schedule_zoo,
    tour,
)
from pipelab.teaching.exercise import Exercise, Mistake, Verdict

__all__ = ["EXERCISES", "Exercise", "Mistake", "Verdict", "exercise"]

EXERCISES: Mapping[str, Exercise] = MappingProxyType(
    {
        each.name: each
        for notebook in (
            tour,
            bubble,
            predict_and_measure,
            microbatch_size,
            balance_the_stages,
            memory,
            schedule_zoo,
        )
        for each in notebook.EXERCISES
    }
)


def exercise(name: str) -> Exercise:
    """The exercise of that name: the notebook's number, a point, and its place there.

    Example:
        >>> print(exercise("02.2").check(None))
        not answered yet

    Raises:
        PipelabError: There is no exercise of that name.
    """
    one_of("exercise", name, tuple(EXERCISES))
    return EXERCISES[name]
