"""Cutting a chain of layers into stages so that the slowest stage is as fast as possible.

The slowest stage sets the pace of a pipeline, so this is what a split should get right first. The partition
of a chain is small enough to solve exactly (dynamic programming over the cut points), and it is.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import as_index
from pipelab.core.profile import Profile
from pipelab.core.recurrence import FloatArray
from pipelab.core.split import Split
from pipelab.errors import PipelabError

__all__ = ["balance"]

_ROUNDING = 1e-12
"""Sums of seconds in another order differ by this much, relatively; such splits count as equally fast."""


def balance(profile: Profile, num_stages: int, batch_size: int | None = None) -> Split:
    """Cut a model into stages of at most the least possible time.

    Args:
        profile: seconds and bytes per layer.
        num_stages: how many stages; for a schedule this is `schedule.num_model_stages`.
        batch_size: samples per micro-batch; None takes `profile.batch_size`.

    Returns:
        Of all splits whose slowest stage (F + I + W) is as fast as can be, the one that sends the fewest
        bytes.

    Raises:
        PipelabError: more stages than layers, or less than one.
    """
    if not isinstance(profile, Profile):
        raise TypeError(
            f"balance() takes a Profile, not {type(profile).__name__}. Call pp.profile(model, x) first."
        )
    count = as_index("num_stages", num_stages)
    if not 1 <= count <= profile.num_layers:
        raise PipelabError(
            f"num_stages is {count}; this model can be cut into 1 to {profile.num_layers} stages."
        )
    size = profile.batch_size if batch_size is None else batch_size
    ends = np.concatenate([[0.0], np.cumsum(profile.seconds(size))])
    sent = np.array([0.0, *(line.at(size) for line in profile.output_bytes[:-1]), 0.0])
    limit = _least_slowest(ends, count) * (1 + _ROUNDING)
    return Split([profile.layers[start] for start in _cheapest_cuts(ends, sent, count, limit)])


def _stage_seconds(ends: FloatArray) -> FloatArray:
    """Shape (layers + 1, layers + 1): seconds of layers i to j - 1 as one stage; infinite where i >= j."""
    seconds = ends[None, :] - ends[:, None]
    seconds[np.tril_indices(len(ends))] = np.inf
    return np.asarray(seconds)


def _least_slowest(ends: FloatArray, num_stages: int) -> float:
    """The least time of the slowest stage over all splits.

    best[j] after k rounds is that of the first j layers in k stages.
    """
    stage = _stage_seconds(ends)
    best = np.full(len(ends), np.inf)
    best[0] = 0.0
    for _ in range(num_stages):
        best = np.maximum(best[:, None], stage).min(axis=0)
    return float(best[-1])


def _cheapest_cuts(ends: FloatArray, sent: FloatArray, num_stages: int, limit: float) -> list[int]:
    """Where stages 1, 2, ... begin, sending the fewest bytes with no stage slower than the limit."""
    allowed = np.where(_stage_seconds(ends) <= limit, 0.0, np.inf)
    least = np.full(len(ends), np.inf)
    least[0] = 0.0
    choices = []
    for _ in range(num_stages):
        total = least[:, None] + allowed
        choices.append(total.argmin(axis=0))
        least = total.min(axis=0) + sent
    cuts, end = [], len(ends) - 1
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    return cuts[-2::-1]
