"""An exercise: a question, a judge that runs pipelab on the answer, and the mistakes that have hints."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

NOT_ANSWERED = "not answered yet"
LONGEST_ECHO = 60  # characters of an answer that a hint repeats


@dataclass(frozen=True)
class Verdict:
    """What `check` says of an answer. True when it is right.

    Attributes:
        message: "not answered yet", what is right about the answer, or the hint for it.
        right: Whether the answer is right.
        answered: Whether there was an answer at all.
    """

    message: str
    right: bool = False
    answered: bool = True

    def __bool__(self) -> bool:
        return self.right

    def __str__(self) -> str:
        if not self.answered:
            return self.message
        return f"{'Right' if self.right else 'Not yet'}. {self.message}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows where there is no HTML: the text, not the constructor."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        colour = "#009E73" if self.right else "#D55E00" if self.answered else "#767676"
        style = f"border-left: 4px solid {colour}; padding: 0.3em 0.8em"
        return f"<div style='{style}'>{_marked_up(str(self))}</div>"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and the hint that answers it.

    Attributes:
        answer: Makes the wrong answer, by running pipelab where a number is wanted.
        hint: What to think about, or the part of it that stays the same where the judge fills in numbers.
    """

    answer: Callable[[], Any]
    hint: str


@dataclass(frozen=True)
class Exercise:
    """A question that checks its own answers. It shows itself in a notebook.

    Attributes:
        name: The notebook's number, a point, and the place in it: "02.1".
        question: Plain text; paragraphs are separated by blank lines, code stands in backticks.
        judge: Says what an answer is worth. It may raise: `check` turns that into a hint.
        solution: Makes a right answer; the tests run it.
        mistakes: Wrong answers with hints of their own; the tests run them too.
    """

    name: str
    question: str
    judge: Callable[[Any], Verdict] = field(repr=False)
    solution: Callable[[], Any] = field(repr=False)
    mistakes: tuple[Mistake, ...] = field(default=(), repr=False)

    def check(self, answer: object = None) -> Verdict:
        """Right, the hint for that wrong answer, or "not answered yet" for None. It never raises.

        So a notebook with unsolved exercises runs from top to bottom.
        """
        if answer is None:
            return Verdict(NOT_ANSWERED, answered=False)
        try:
            return self.judge(answer)
        except Exception as error:  # an answer may be any object, and its methods may do anything
            return Verdict(f"This could not be checked: {said_by(error)}")

    def __str__(self) -> str:
        return f"Exercise {self.name}\n\n{self.question}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As for a verdict."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return f"<div><strong>Exercise {escape(self.name)}</strong>{_marked_up(self.question)}</div>"


def number_judge(
    truth: Callable[[], float],
    right: str,
    mistakes: tuple[Mistake, ...],
    otherwise: str,
    tolerance: float = 0.01,
) -> Callable[[Any], Verdict]:
    """A judge for one number: right within a relative `tolerance`, else the mistake's hint, else `otherwise`."""

    def judge(answer: Any) -> Verdict:
        value = as_number(answer)
        if isinstance(value, Verdict):
            return value
        if math.isclose(value, truth(), rel_tol=tolerance):
            return Verdict(right, right=True)
        for mistake in mistakes:
            if math.isclose(value, mistake.answer(), rel_tol=tolerance):
                return Verdict(mistake.hint)
        return Verdict(f"{short(answer)} is not it. {otherwise}")

    return judge


def as_number(answer: Any) -> float | Verdict:
    """The answer as a finite float, or the verdict that says why it is none."""
    if isinstance(answer, bool | str | bytes) or not isinstance(answer, numbers.Real):
        return Verdict(f"A number is wanted here, and this is {_a(type(answer).__name__)}: {short(answer)}.")
    try:
        value = float(answer)
    except OverflowError:
        return Verdict("That number is too large for any quantity in this exercise.")
    if not math.isfinite(value):
        return Verdict(f"A finite number is wanted here, and this is {value}.")
    return value


def short(answer: object) -> str:
    """The answer as text for a hint, cut where it is long; its own `__repr__` may fail."""
    try:
        text = repr(answer)
    except Exception:
        text = f"a {type(answer).__name__} that cannot be printed"
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."


def said_by(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return text or type(error).__name__


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def _marked_up(text: str) -> str:
    """Paragraphs at blank lines, code between backticks, a block where four spaces lead; all else escaped."""
    return "".join(_block(block) for block in text.split("\n\n"))


def _block(block: str) -> str:
    if block.startswith("    "):
        return f"<pre>{escape(block)}</pre>"
    pieces = escape(block).split("`")
    inline = "".join(f"<code>{piece}</code>" if odd % 2 else piece for odd, piece in enumerate(pieces))
    return f"<p style='margin: 0.4em 0'>{inline}</p>"
