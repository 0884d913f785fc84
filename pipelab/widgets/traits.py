"""What the widgets do with settings: what they take, and how they say that something cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import traitlets as T

from pipelab.errors import PipelabError, nearest
from pipelab.widgets.markup import error_text

SPAN = "a begin and a later end in seconds, or (0, 0) for all"
"""What a part of the time axis is, in words."""

_WANTED = {T.Bool: "True or False", T.Unicode: "a text", T.Float: "a number", T.Int: "a whole number"}


class Choice(T.Any):
    """Any value that the setting takes; None is handed to it too, and refused there."""

    allow_none = False


class Refused(PipelabError, T.TraitError):
    """A refusal that traitlets understands too, so that held changes are rolled back."""


class Explains(T.HasTraits):
    """A widget that says what is wrong with a setting: in place, and in what it raises.

    A class that mixes this in has a trait `message`. A trait may tell by its metadata `wants` what it takes.
    """

    message: Any
    keys: Any

    def _say(self, message: str) -> None:
        """Show a message; "" takes the last one away."""
        if message != self.message:
            self.set_trait("message", message)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A refusal is shown, and raised on in a form that traitlets understands; success takes the last one away."""
        try:
            yield
        except (PipelabError, TypeError) as error:
            self._say(str(error))
            if isinstance(error, PipelabError) and not isinstance(error, Refused):
                raise Refused(str(error)) from error
            raise
        self._say("")

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take in what the front end sends. What is refused is said there, and what holds is sent back."""
        try:
            super().set_state(sync_data)  # type: ignore[misc]
        except Exception as error:  # seen in the widget, not lost in a log
            self._say(error_text(error))
            self.send_state([name for name in sync_data if name in self.keys])  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        check_setting(type(self), name)
        try:
            super().__setattr__(name, value)
        except T.TraitError as error:
            trait = self.traits().get(name)
            if isinstance(error, PipelabError) or trait is None or not _is_ours(trait):
                raise
            with self._explained():
                raise Refused(_refusal(trait, value)) from None


def check_setting(owner: type[T.HasTraits], name: str, settings: Sequence[str] | None = None) -> None:
    """Refuse a misspelt setting, which would become a new attribute that does nothing.

    Args:
        owner: the class whose attribute is set; what it has already may be set.
        name: the attribute.
        settings: what a person may have meant; all traits that we gave it and that can be set, when left out.

    Raises:
        AttributeError: names the nearest setting.
    """
    if not name.startswith("_") and not hasattr(owner, name):
        if settings is None:
            traits = owner.class_traits().items()
            settings = [one for one, trait in traits if _is_ours(trait) and not trait.read_only]
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
            f"memory_limit is {value!r}; it must be a number of bytes above 0, such as 16 * 2**30, or None for no "
            f"limit."
        )


def as_span(value: tuple[float, float]) -> tuple[float, float]:
    """A part of the time axis.

    Raises:
        PipelabError: it has no length, or is not on the axis.
    """
    begin, end = value
    if not (begin == end == 0 or 0 <= begin < end < math.inf):
        raise PipelabError(f"span is ({begin:g}, {end:g}); give {SPAN}.")
    return float(begin), float(end)


def _is_ours(trait: T.TraitType[Any, Any]) -> bool:
    """Whether a trait is a setting of a class of ours, not of those that it is made from."""
    name = trait.name or "_"
    return not name.startswith("_") and str(trait.this_class.__module__).startswith("pipelab.")


def _refusal(trait: T.TraitType[Any, Any], value: object) -> str:
    """What is wrong with a value that a trait does not take."""
    if trait.read_only:
        return f"{trait.name} can be read, but not set."
    plain = [words for kind, words in _WANTED.items() if isinstance(trait, kind)]
    wanted = trait.metadata.get("wants") or (plain[0] if plain else trait.info())
    return f"{trait.name} is {value!r:.80}; give {wanted}."
