"""What each micro-batch's loss counts for in the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelab.errors import PipelabError, annotate
from pipelab.runtime.batch_dims import has_dim
from pipelab.runtime.inputs import Batch

REDUCTIONS = ("mean", "sum", "none")

LossWeight = Tensor | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Weight:
    """How one micro-batch's loss enters the batch's.

    Attributes:
        share: the factor of the micro-batch's loss. Where it is 0, as where no label is valid, the micro-batch has
            no backward: its mean over nothing is not a number, and its gradient would not be either.
        per_sample: whether what comes is a loss for each sample, of which the micro-batch's is the mean.
        elements: in that mean what each sample, or each of the losses, counts; None: all the same.
    """

    share: float = 1.0
    per_sample: bool = False
    elements: Tensor | None = None


def weigh(batch: Batch, reduction: str, loss_weight: LossWeight) -> list[Weight]:
    """One weight a micro-batch.

    A mean over the batch is the mean of the micro-batches' means, weighted by their samples; a sum is a sum.
    A loss that averages over something else (tokens, valid labels) needs `loss_weight`.

    Args:
        batch: the whole batch.
        reduction: what the loss function does over the samples: "mean", "sum" or "none".
        loss_weight: what each sample counts: a tensor of shape (batch,), or one with more numbers a sample and the
            batch where the target has it, such as a mask of valid tokens. Or a function that gives the same, or just
            one number, for a micro-batch: of its target, or of its inputs (as `pp.Args`) in a step without a target.

    Raises:
        PipelabError: the weights have the wrong shape, are negative or not finite, sum to zero, or go with a sum.
    """
    if loss_weight is None:
        shares = [1.0 if reduction == "sum" else n / batch.size for n in batch.sizes]
        return [Weight(share, reduction == "none") for share in shares]
    if reduction == "sum":
        raise PipelabError(
            "loss_weight says what counts in a mean, but with reduction='sum' every loss counts as it is. Leave "
            "loss_weight out; or use reduction='mean', if that is what the loss does."
        )
    parts = _parts(batch, loss_weight)
    if empty := [i for i, part in enumerate(parts) if not part.numel()]:
        raise PipelabError(
            f"loss_weight has no number for micro-batch {empty[0]}. Give one a sample; 0 for what does not count."
        )
    counts = torch.stack([part.double().sum() for part in parts]).tolist()
    least = float(torch.stack([part.double().min() for part in parts]).min())
    total = sum(counts)
    if not least >= 0 or not 0 < total < float("inf"):
        raise PipelabError(
            f"loss_weight gives the micro-batches {counts}, and the smallest weight is {least}: weights must be at "
            f"least 0, finite, and more than 0 in sum."
        )
    if reduction == "mean":
        return [Weight(count / total) for count in counts]
    return [_of_each(batch, i, part, counts[i] / total) for i, part in enumerate(parts)]


def _parts(batch: Batch, loss_weight: Tensor | Callable[[Any], Any]) -> list[Tensor]:
    """The weights of each micro-batch."""
    indices = range(len(batch.sizes))
    if isinstance(loss_weight, Tensor):
        dim = 0 if loss_weight.dim() == 1 else batch.dims.target
        if not has_dim(loss_weight, dim) or loss_weight.shape[dim] != batch.size:
            raise PipelabError(
                f"loss_weight has the shape {tuple(loss_weight.shape)}; it needs one number a sample, ({batch.size},), "
                f"or more with the batch of {batch.size} as dimension {batch.dims.target}."
            )
        return [batch.slice(loss_weight.detach(), dim, i) for i in indices]
    if not callable(loss_weight):
        raise TypeError(
            f"loss_weight must be a tensor, or a function of a micro-batch's target, not {type(loss_weight).__name__}."
        )
    return [_given(loss_weight, batch, i) for i in indices]


def _given(function: Callable[[Any], Any], batch: Batch, index: int) -> Tensor:
    """What the user's function says for one micro-batch."""
    try:
        return torch.as_tensor(function(batch.what_weights_see(index))).detach().cpu()
    except BaseException as error:
        annotate(error, f"pipelab: raised in loss_weight for micro-batch {index}; nothing has run.")
        raise


def _of_each(batch: Batch, index: int, part: Tensor, share: float) -> Weight:
    if part.numel() == 1 and batch.sizes[index] != 1:
        raise PipelabError(
            f"With reduction='none' loss_weight says what each sample counts, but its function gave one number for "
            f"micro-batch {index}, which has {batch.sizes[index]} samples."
        )
    return Weight(share, True, part)


def reduced(losses: Tensor, weight: Weight, batch: Batch, index: int) -> Tensor:
    """A micro-batch's loss from one loss a sample: their mean, weighted by `weight.elements`.

    Args:
        losses: shape (micro-batch,), or with more numbers a sample and the batch where the target has it.
        weight: of the micro-batch.
        batch, index: which one it is.

    Raises:
        PipelabError: `losses` has not one entry a sample, or not the shape of the weights.
    """
    size = batch.sizes[index]
    dim = 0 if losses.dim() <= 1 else batch.dims.target
    if not has_dim(losses, dim) or losses.shape[dim] != size:
        raise PipelabError(
            f"With reduction='none' the loss must have one entry for each of the {size} samples of a micro-batch as "
            f"dimension {dim}; it has the shape {tuple(losses.shape)}."
        )
    if weight.elements is None:
        return losses.mean()
    precision = torch.promote_types(losses.dtype, torch.float32)  # half precision cannot count tokens
    elements = weight.elements.to(losses.device, precision)
    if elements.dim() == 1 or elements.numel() == 1:
        losses = losses.movedim(dim, 0).reshape(size, -1).mean(1)
        elements = elements.reshape(-1)
    if elements.shape != losses.shape:
        raise PipelabError(
            f"loss_weight has the shape {tuple(weight.elements.shape)} for a micro-batch whose losses have the shape "
            f"{tuple(losses.shape)}: it needs that shape, or one number a sample, ({size},)."
        )
    return (losses * elements).sum() / elements.sum()
