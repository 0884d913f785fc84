"""The data of a run with several mini-batches: how it is given, checked, and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss import Call, Result, loss_call, total_loss
from pipelab.runtime.loss_weights import LossWeight, Weight, weigh
from pipelab.runtime.pipeline import Pipeline


class MiniBatches:
    """The mini-batches of a run, each cut into its micro-batches.

    Attributes:
        batches: of each mini-batch.
        weights: of each micro-batch of each mini-batch.
        per_minibatch: micro-batches in a mini-batch.
    """

    def __init__(self, batches: list[Batch], weights: list[list[Weight]]) -> None:
        self.batches, self.weights = batches, weights
        self.per_minibatch = len(weights[0])

    @classmethod
    def of(cls, pipe: Pipeline, batches: Iterable[Any], loss_weight: LossWeight) -> MiniBatches:
        """Checks the batches and cuts them; nothing has run yet.

        Raises:
            PipelabError: they are not as many as the schedule has, no pairs, or do not fit as in a step.
        """
        schedule = pipe.schedule
        pairs = _pairs(batches, schedule)
        m = schedule.num_microbatches // schedule.minibatches
        cut = [Batch.cut(inputs, target, m, pipe.batch_dims) for inputs, target in pairs]
        return cls(cut, [weigh(batch, pipe.reduction, loss_weight) for batch in cut])

    def wanting_gradients(self) -> list[Tensor]:
        """The inputs and targets whose gradient is written to."""
        return [tensor for batch in self.batches for tensor in batch.wanting_gradients()]

    def call(self, pipe: Pipeline, model: nn.Module, microbatch: int) -> Call:
        """Model and loss for one micro-batch, numbered through."""
        n, index = divmod(microbatch, self.per_minibatch)
        weight = self.weights[n][index]
        return loss_call(model, pipe.loss_fn, self.batches[n], index, weight, pipe._cut.devices)

    def losses(self, results: Sequence[Result]) -> Tensor:
        """The loss of each mini-batch, on the CPU."""
        m = self.per_minibatch
        parts = [results[n * m : (n + 1) * m] for n in range(len(self.batches))]
        pairs = zip(parts, self.weights, strict=True)
        return torch.stack([total_loss(part, weights).double().cpu() for part, weights in pairs])


def _pairs(batches: Iterable[Any], schedule: Schedule) -> list[tuple[Any, Any]]:
    needed = schedule.minibatches
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be pairs (inputs, target), one a mini-batch, not {type(batches).__name__}."
        )
    given = list(islice(batches, needed))
    count = len(batches) if isinstance(batches, Sized) else len(given)
    if count != needed:
        raise PipelabError(
            f"The schedule {schedule.name!r} has {needed} mini-batches, but there are {count} batches. Make the "
            f"schedule for {count}, or pass {needed}, such as itertools.islice(batches, {needed})."
        )
    for n, pair in enumerate(given):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise PipelabError(
                f"Batch {n} is {type(pair).__name__}{f' of {len(pair)}' if isinstance(pair, (tuple, list)) else ''}; "
                f"each must be a pair (inputs, target); without a target (inputs, None)."
            )
    return [(inputs, target) for inputs, target in given]
