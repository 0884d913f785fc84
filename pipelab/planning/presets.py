"""Splits that need no search by hand: as many layers everywhere, as many parameters everywhere.

Neither looks at the clock. They are what people start from, and beside `balance` they show what it costs to look away
from it.
"""

from __future__ import annotations

from dataclasses import replace

from pipelab.core.actions import as_index
from pipelab.core.profile import Affine, Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError
from pipelab.planning.balance import balance

__all__ = ["equal_count", "equal_parameters"]


def equal_count(profile: Profile, num_stages: int) -> Split:
    """Cut a model into stages of as many layers each; where that is uneven, the first stages have one more.

    Args:
        profile: of the layers.
        num_stages: how many stages.

    Raises:
        PipelabError: more stages than layers, or less than one.

    Example:
        >>> from pipelab.core.profile import Affine
        >>> line = (Affine(1.0),) * 5
        >>> equal_count(Profile(tuple("abcde"), line, line, line, (8,) * 5, line, line, 1, (1, 2), "cpu"), 2)
        Split(['d'])
    """
    if not isinstance(profile, Profile):
        raise TypeError(f"equal_count() takes a Profile, not {type(profile).__name__}.")
    count = as_index("num_stages", num_stages)
    if not 1 <= count <= profile.num_layers:
        raise PipelabError(
            f"num_stages is {count}; this model can be cut into 1 to {profile.num_layers} stages."
        )
    each, larger = divmod(profile.num_layers, count)
    return Split(profile.layers[stage * each + min(stage, larger)] for stage in range(1, count))


def equal_parameters(profile: Profile, num_stages: int) -> Split:
    """Cut a model so that the stage with the most parameters has as few as can be.

    It is `balance` with bytes of parameters in place of seconds: exact, and of equally good splits the one that sends
    the fewest bytes.

    Args:
        profile: of the layers.
        num_stages: how many stages.

    Raises:
        PipelabError: more stages than layers, or less than one.

    Example:
        >>> from pipelab.core.profile import Affine
        >>> line = (Affine(1.0),) * 4
        >>> heavy = (8, 1, 1, 1)
        >>> equal_parameters(Profile(tuple("abcd"), line, line, line, heavy, line, line, 1, (1, 2), "cpu"), 2)
        Split(['b'])
    """
    if not isinstance(profile, Profile):
        raise TypeError(f"equal_parameters() takes a Profile, not {type(profile).__name__}.")
    nothing = (Affine(0.0),) * profile.num_layers
    weighed = replace(
        profile,
        forward=tuple(Affine(float(size)) for size in profile.parameter_bytes),
        input_grad=nothing,
        weight_grad=nothing,
        backward=None,
    )
    return balance(weighed, num_stages)
