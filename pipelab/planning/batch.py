"""A batch of fixed size, cut into micro-batches: what a stage costs when only their number changes.

At a fixed batch twice as many micro-batches are half as large each, and an action of half the size mostly takes
more than half the time. Whoever lets m grow at fixed costs per micro-batch lets the batch grow with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipelab.core.actions import as_index
from pipelab.core.costs import Costs, Links
from pipelab.core.profile import Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError
from pipelab.planning.balance import balance

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """So many samples in so many micro-batches.

    Attributes:
        size: samples in the whole batch.
        num_microbatches: m; from 1 to `size`.

    Example:
        >>> Batch(10, 4).microbatch_size
        2.5

    Raises:
        PipelabError: an empty batch, or more micro-batches than samples.
    """

    size: int
    num_microbatches: int

    def __post_init__(self) -> None:
        for name, called in (("size", "batch_size"), ("num_microbatches", "num_microbatches")):
            object.__setattr__(self, name, as_index(called, getattr(self, name)))
        if self.size < 1:
            raise PipelabError(f"batch_size is {self.size}; a batch has at least one sample.")
        if self.num_microbatches < 1:
            raise PipelabError(f"num_microbatches is {self.num_microbatches}; it must be at least 1.")
        if self.num_microbatches > self.size:
            raise PipelabError(
                f"{self.num_microbatches} micro-batches are more than the {self.size} samples of the batch. "
                f"Use at most {self.size}, or a larger batch."
            )

    @property
    def microbatch_size(self) -> float:
        """Samples per micro-batch; the mean where they are uneven."""
        return self.size / self.num_microbatches

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said about costs of uneven micro-batches."""
        if self.size % self.num_microbatches == 0:
            return ()
        least = self.size // self.num_microbatches
        return (
            f"{self.size} samples in {self.num_microbatches} micro-batches are uneven: {least} or {least + 1} "
            f"samples each; costs are those of the mean, {self.microbatch_size:.2f}.",
        )

    def costs(self, profile: Profile, split: Split, links: Links | None = None) -> Costs:
        """What each stage costs for one micro-batch; the mean where they are uneven.

        Args:
            profile: costs of the layers.
            split: the cut points.
            links: between ranks; None for links that take no time.
        """
        size, larger = divmod(self.size, self.num_microbatches)  # so many have one sample more
        costs = profile.costs(split, batch_size=size, links=links)
        if not larger:
            return costs
        return _mean(
            costs, profile.costs(split, batch_size=size + 1, links=links), larger / self.num_microbatches
        )

    def balance(self, profile: Profile, num_stages: int) -> Split:
        """The cuts at which the slowest stage is fastest for micro-batches of about this size."""
        return balance(profile, num_stages, batch_size=max(1, round(self.microbatch_size)))


def _mean(some: Costs, others: Costs, share: float) -> Costs:
    """What a stage costs on average when a share of the micro-batches costs `others`."""

    def between(a: Iterable[float], b: Iterable[float]) -> tuple[float, ...]:
        return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))

    held = some.bytes
    if held is not None and others.bytes is not None:
        held = replace(
            held,
            activations=between(held.activations, others.bytes.activations),
            outputs=between(held.outputs, others.bytes.outputs),
            until_weight_grad=None
            if held.until_weight_grad is None or others.bytes.until_weight_grad is None
            else between(held.until_weight_grad, others.bytes.until_weight_grad),
        )
    seconds: dict[str, Any] = {
        name: between(getattr(some, name), getattr(others, name))
        for name in ("forward", "input_grad", "weight_grad", "backward")
        if getattr(some, name) is not None
    }
    return replace(some, **seconds, bytes=held, microbatch_size=None)
