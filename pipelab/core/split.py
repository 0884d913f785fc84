"""Where a model is cut into stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelab.core import strict_json
from pipelab.core.saving import Saved
from pipelab.errors import PipelabError

__all__ = ["Split"]


def first_doubled(names: Iterable[str]) -> str | None:
    """The first name that was there before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


@dataclass(frozen=True, repr=False)
class Split(Saved):
    """The cut points of a model: one stage begins at each named layer, and stage 0 at the model's start.

    Attributes:
        cuts: module names in the order in which the model calls them; none is one stage.

    Example:
        >>> split = Split(["blocks.3", "blocks.6"])
        >>> split.num_stages
        3
        >>> split
        Split(['blocks.3', 'blocks.6'])

    Raises:
        PipelabError: an empty name, or one that is there twice.
    """

    cuts: tuple[str, ...] = ()

    def __init__(self, cuts: Iterable[str] = ()) -> None:
        """Name the layers at which stages begin.

        Args:
            cuts: module names, as in `model.named_modules()`.
        """
        if isinstance(cuts, str):
            raise TypeError(f"cuts must be a sequence of names; for one cut write Split([{cuts!r}]).")
        names = tuple(cuts)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"A cut is the name of a module, not {type(name).__name__}.")
            if not name.strip():
                raise PipelabError("A cut has an empty name. Name the layer at which a stage begins.")
        doubled = first_doubled(names)
        if doubled is not None:
            raise PipelabError(f"The cut {doubled!r} is there twice. Each stage begins at its own layer.")
        object.__setattr__(self, "cuts", names)

    @property
    def num_stages(self) -> int:
        """How many stages there are: one more than cuts."""
        return len(self.cuts) + 1

    def __repr__(self) -> str:
        return f"Split({list(self.cuts)!r})"

    def __str__(self) -> str:
        starts = ", ".join(("the start", *self.cuts))
        return f"{self.num_stages} stage{'s' * (self.num_stages > 1)}, beginning at {starts}"

    def to_dict(self) -> dict[str, Any]:
        """The cuts as a plain list."""
        return {"cuts": list(self.cuts)}

    @classmethod
    def from_dict(cls, data: object, where: str = "split") -> Split:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        found = strict_json.fields(data, where, required=("cuts",))
        return cls(strict_json.texts(found["cuts"], f"{where}.cuts"))
