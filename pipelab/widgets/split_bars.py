"""What the split editor shows, as numbers and short texts: the layers, the stages, the slowest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelab.core.costs import Costs
from pipelab.core.profile import Profile
from pipelab.core.quantities import as_bytes, as_seconds, counted
from pipelab.core.split import Split
from pipelab.plots.palette import BACKWARD, FORWARD, MEMORY, WEIGHT

TIME_LEGEND = (("F forward", FORWARD), ("I input gradient", BACKWARD), ("W weight gradient", WEIGHT))
BYTES_LEGEND = (("weights and gradients", MEMORY), ("activations of one micro-batch", MEMORY))
MEMORY_SAYS = "weights, gradients and the activations of one micro-batch"

_LEVEL = 1.0005
"""A slowest stage so little slower than the mean is not worth a mark."""


def layer_columns(profile: Profile, batch_size: int) -> bytes:
    """Five columns of float32, one number a layer: seconds of F, I and W, bytes of weights with gradients, activations.

    Args:
        profile: as `plots.stages.drawn_profile` gives it.
        batch_size: samples in a micro-batch.
    """
    columns = [
        [line.at(batch_size) for line in lines]
        for lines in (profile.forward, profile.input_grad, profile.weight_grad)
    ]
    columns.append([2.0 * size for size in profile.parameter_bytes])
    columns.append([line.at(batch_size) for line in profile.activation_bytes])
    return np.array(columns, dtype="<f4").tobytes()


@dataclass(frozen=True)
class StageBars:
    """What each stage of a split takes.

    Attributes:
        cuts: for each border the layer that the next stage begins with.
        seconds: shape (stages,): F and B of one micro-batch.
        memory: shape (stages,): bytes.
        limit: bytes; None for no limit.
        memory_says: what the bytes are of.
    """

    cuts: tuple[int, ...]
    seconds: NDArray[np.float64]
    memory: NDArray[np.float64]
    limit: float | None = None
    memory_says: str = MEMORY_SAYS

    @property
    def slowest(self) -> int:
        """The stage that sets the pace; -1 where all are as fast."""
        worst = int(np.argmax(self.seconds))
        return worst if self.seconds[worst] > _LEVEL * self.seconds.mean() else -1

    @property
    def over(self) -> list[int]:
        """The stages that need more than the limit."""
        return [] if self.limit is None else np.flatnonzero(self.memory > self.limit).tolist()

    @property
    def headline(self) -> str:
        """The sentence above the bars."""
        stages, slowest = counted(len(self.seconds), "stage"), self.slowest
        if slowest < 0:
            pace = as_seconds(float(self.seconds.max()))
            return f"{stages}: {'all take' if len(self.seconds) > 1 else 'it takes'} {pace} a micro-batch"
        pace = as_seconds(float(self.seconds[slowest]))
        ratio = self.seconds[slowest] / self.seconds.mean()
        return f"{stages}: the slowest is stage {slowest}, {pace} a micro-batch, {ratio:.2f} × the mean"

    @property
    def memory_sentence(self) -> str:
        """What is said of memory; the limit only where there is one."""
        most = int(np.argmax(self.memory))
        said = f"Most memory: stage {most}, {as_bytes(self.memory[most])} ({self.memory_says})."
        if self.limit is None:
            return said
        over = self.over
        if not over:
            return f"{said} All stages are within {as_bytes(self.limit)}."
        named = ", ".join(map(str, over[:8])) + (", …" if len(over) > 8 else "")
        return f"{said} Over the limit of {as_bytes(self.limit)}: stage{'s' * (len(over) > 1)} {named}."

    def to_page(self) -> dict[str, Any]:
        """All of this as plain values for the front end."""
        return {
            "cuts": list(self.cuts),
            "seconds": list(map(as_seconds, self.seconds.tolist())),
            "memory": list(map(as_bytes, self.memory.tolist())),
            "slowest": self.slowest,
            "over": self.over,
            "headline": self.headline,
            "memory_sentence": self.memory_sentence,
        }


def stage_bars(
    profile: Profile,
    split: Split,
    batch_size: int,
    *,
    limit: float | None = None,
    given: Sequence[float] | None = None,
    given_says: str = "",
) -> StageBars:
    """Sum up the layers of each stage.

    Args:
        profile: as `plots.stages.drawn_profile` gives it.
        split: where the stages begin.
        batch_size: samples in a micro-batch.
        limit: bytes, or None.
        given: bytes per stage that are known better elsewhere, such as a peak of a whole schedule.
        given_says: what they are of.
    """
    costs = profile.costs(split, batch_size=batch_size)
    seconds = np.array(costs.forward) + np.array(costs.input_grad) + np.array(costs.weight_grad)
    return StageBars(
        cuts=tuple(part.start for part in profile.stages(split)[1:]),
        seconds=seconds,
        memory=_held(costs) if given is None else np.array(given, dtype=float),
        limit=limit,
        memory_says=MEMORY_SAYS if given is None else given_says,
    )


def _held(costs: Costs) -> NDArray[np.float64]:
    """Weights, as large gradients, and what one micro-batch keeps."""
    held = costs.bytes
    assert held is not None  # those of a profile know their bytes
    return 2.0 * np.array(held.parameters, dtype=float) + np.array(held.activations)
