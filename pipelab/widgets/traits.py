"""The traits of the Lab that traitlets does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import traitlets as T

from pipelab.errors import PipelabError, nearest


class Choice(T.Any):
    """Any value that the setting takes; None is handed to it too, and refused there."""

    allow_none = False


class Refused(PipelabError, T.TraitError):
    """A refusal that traitlets understands too, so that held changes are rolled back."""


def check_setting(owner: type, name: str, settings: Sequence[str]) -> None:
    """Refuse a misspelt setting, which would become a new attribute that does nothing.

    Args:
        owner: the class whose attribute is set; what it has already may be set.
        name: the attribute.
        settings: what a person may have meant.

    Raises:
        AttributeError: names the nearest setting.
    """
    if not name.startswith("_") and not hasattr(owner, name):
        near = nearest(name, settings)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(settings)}."
        raise AttributeError(f"A {owner.__name__} has no setting {name!r}; {hint}")


def check_limit(value: object) -> None:
    """Refuse a limit of memory that is none.

    Raises:
        PipelabError: neither None nor a positive number.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):  # type: ignore[operator]
        raise PipelabError(
            f"memory_limit is {value!r}; it must be a number of bytes above 0, or None for no limit."
        )
