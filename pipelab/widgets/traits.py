"""The traits of the Lab that traitlets does not have."""

from __future__ import annotations

from collections.abc import Sequence

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
