"""What a micro-batch's thread runs: the model, and in training the loss behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError
from pipelab.runtime.inputs import Batch
from pipelab.runtime.outputs import detach

LossFn = Callable[..., Tensor]
StageNow = Callable[[], int]
Call = Callable[[StageNow], "Result"]


@dataclass
class Result:
    """What one micro-batch's forward leaves.

    Attributes:
        root: where its backward begins; None without gradients, and once the backward has run.
        loss: its own loss, neither weighed nor scaled, detached; None without a loss.
        outputs: what the model returned, detached; None if it was not to be kept.
    """

    root: Tensor | None
    loss: Tensor | None
    outputs: Any


def loss_call(
    model: nn.Module,
    loss_fn: LossFn | None,
    batch: Batch,
    index: int,
    weight: float,
    devices: Sequence[torch.device],
    scale: Callable[[Tensor], Tensor] | None = None,
    keep_outputs: bool = False,
) -> Call:
    """Model, loss, weight and scale for one micro-batch.

    The loss is weighed before the backward, so that `.grad` never has to be rescaled.

    Args:
        model, loss_fn: as for `Pipeline`.
        batch: the whole batch.
        index: which micro-batch of it.
        weight: what its loss counts for.
        devices: the device of each stage; the target goes where the loss is computed.
        scale: applied to the weighed loss.
        keep_outputs: whether the result holds the model's output.
    """

    def call(stage_now: StageNow) -> Result:
        args, kwargs = batch.arguments(index, devices[0])
        output = model(*args, **kwargs)
        if loss_fn is None:
            loss = own_loss(output)
        else:
            target = batch.targets(index, devices[stage_now()])
            loss = loss_fn(output) if target is None else loss_fn(output, target)
            loss = scalar_loss(loss, "loss_fn must return the loss of a micro-batch as one number;")
        weighed = loss * weight
        root = weighed if scale is None else scale(weighed)
        return Result(root, loss.detach(), detach(output) if keep_outputs else None)

    return call


def forward_call(model: nn.Module, batch: Batch, index: int, device: torch.device) -> Call:
    """The model alone for one micro-batch, whose inputs go to `device`."""

    def call(stage_now: StageNow) -> Result:
        args, kwargs = batch.arguments(index, device)
        return Result(None, None, detach(model(*args, **kwargs)))

    return call


def own_loss(output: Any) -> Tensor:
    """The loss that a model computes itself: its output, or the output's `.loss`.

    Raises:
        PipelabError: there is no scalar loss in the output.
    """
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if loss is None and isinstance(output, dict):
        loss = output.get("loss")
    return scalar_loss(loss, "Without loss_fn the model's output must be the loss, or have it as `.loss`;")


def scalar_loss(loss: Any, sentence: str) -> Tensor:
    """`loss` if it is a tensor with one number.

    Raises:
        PipelabError: it is not; `sentence` says whose it is.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise PipelabError(f"{sentence} it is {given}, not one number.")
    return loss.reshape(())
