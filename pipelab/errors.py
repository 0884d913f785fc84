"""The one exception type of pipelab, its one warning, and the two checks that every layer shares.

Everything that pipelab refuses on purpose is a `PipelabError`; a call that could never be right (a missing or
an unknown argument) is a `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

__all__ = [
    "MANY",
    "PipelabError",
    "PipelabWarning",
    "annotate",
    "from_one_to",
    "nearest",
    "one_of",
    "reject_unknown",
]


MANY = 2**10
"""More threads, repeats or ranks to measure than this can only be a mistake."""


class PipelabError(ValueError):
    """A value that pipelab refuses: the message says what was given, what is allowed and what to do.

    It derives from `ValueError`, so code that catches `ValueError` keeps working.

    Example:
        >>> import pipelab as pp
        >>> try:
        ...     pp.schedule("gpip", num_ranks=2, num_microbatches=4)
        ... except pp.PipelabError as error:
        ...     print(str(error).splitlines()[0])
        schedule is 'gpip'; did you mean 'gpipe'?
    """


class PipelabWarning(UserWarning):
    """What a person should know though nothing is wrong, such as BatchNorm in a pipeline; `pipe.warnings` lists them.

    Example:
        >>> import warnings, pipelab as pp
        >>> warnings.simplefilter("ignore", pp.PipelabWarning)  # to see none of them
    """


def annotate(error: BaseException, note: str) -> None:
    """Add a note to an error of the user's code; one that takes no notes keeps its type all the same."""
    with contextlib.suppress(Exception):
        error.add_note(note)


def one_of(what: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among the allowed ones, and name the nearest.

    Args:
        what: the name of the argument or field, as the user wrote it.
        value: what was given.
        allowed: every value that would have been accepted.

    Raises:
        PipelabError: names the value, the nearest allowed value and all of them.
    """
    choices = list(allowed)
    if value in choices:
        return
    names = [str(choice) for choice in choices]
    longer = [name for name in names if value and name.startswith(f"{value}-")]
    guess = longer or nearest(str(value), names)[:1]
    hint = f"; did you mean {' or '.join(map(repr, guess))}?" if guess else "."
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
    raise PipelabError(f"{what} is {shown}{hint}\nAllowed: {', '.join(repr(c) for c in choices)}.")


def from_one_to(most: int, **given: int) -> None:
    """Refuse numbers below 1 and ones so large that they can only be a mistake.

    Args:
        most: the largest number allowed.
        given: numbers by the names that the user knows.

    Raises:
        PipelabError: names the first of them and the limits.
    """
    for name, value in given.items():
        if not 1 <= value <= most:
            raise PipelabError(f"{name} is {value}; it must be from 1 to {most:,}.")


def reject_unknown(function_name: str, unknown_keywords: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse keywords that a function does not take, and name the nearest valid ones.

    Args:
        function_name: the function as the user called it.
        unknown_keywords: the keywords left over; nothing happens when there are none.
        valid: the keywords that the function takes.

    Raises:
        TypeError: names the first unknown keyword and the nearest valid ones.
    """
    unknown, choices = list(unknown_keywords), list(valid)
    if not unknown:
        return
    near = nearest(unknown[0], choices) or choices
    hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else "; it takes none."
    raise TypeError(f"{function_name}() got an unexpected keyword {unknown[0]!r}{hint}")


def nearest(word: str, choices: Iterable[str]) -> list[str]:
    """The choices that look most like a word, nearest first; at most three, perhaps none."""
    import difflib  # only on the way to an error: keeps `import pipelab` light

    return difflib.get_close_matches(word[:200], list(choices), n=3, cutoff=0.5)
