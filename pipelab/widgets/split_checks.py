"""What the split editor takes, and what it says of anything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelab.core.actions import as_index
from pipelab.core.costs import as_amounts
from pipelab.core.profile import Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError


def check_profile(profile: object) -> None:
    """Refuse something else than a profile."""
    if not isinstance(profile, Profile):
        raise TypeError(
            f"A SplitEditor shows a Profile, not {type(profile).__name__}. Call pp.profile(model, x) first."
        )


def as_split(split: object, profile: Profile) -> Split:
    """A split, or the names of one; whether the profile has them is another question."""
    if isinstance(split, Split):
        return split
    if isinstance(split, str) or not isinstance(split, Iterable):
        raise TypeError(
            f"split must be a Split such as Split([{profile.layers[-1]!r}]), or a list of names, not "
            f"{type(split).__name__}."
        )
    return Split(split)


def as_size(size: int) -> int:
    """Samples in a micro-batch."""
    count = as_index("batch_size", size)
    if count < 1:
        raise PipelabError(f"batch_size is {count}; it must be at least 1.")
    return count


def as_by(by: object) -> str:
    """What the width of a bar is."""
    if by not in ("time", "bytes"):
        raise PipelabError(f"by is {by!r}; bars are as wide as their 'time' or their 'bytes'.")
    return str(by)


def as_bytes_per_stage(values: Sequence[float], split: Split) -> tuple[float, ...]:
    """One number of bytes a stage."""
    found = as_amounts("bytes_per_stage", values, "bytes")
    if len(found) != split.num_stages:
        raise PipelabError(f"bytes_per_stage has {len(found)} entries for {split.num_stages} stages.")
    return found
