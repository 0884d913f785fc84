"""What a micro-batch's thread runs: the model, and in training the loss behind it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError, annotate
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss_weights import Weight, reduced
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
        counts: whether its loss counts anything; otherwise its backward does nothing.
    """

    root: Tensor | None
    loss: Tensor | None
    outputs: Any
    counts: bool = True


def loss_call(
    model: nn.Module,
    loss_fn: LossFn | None,
    batch: Batch,
    index: int,
    weight: Weight,
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
        weight: how its loss enters the batch's.
        devices: the device of each stage; the target goes where the loss is computed.
        scale: applied to the weighed loss.
        keep_outputs: whether the result holds the model's output.
    """

    def call(stage_now: StageNow) -> Result:
        args, kwargs = batch.arguments(index, devices[0])
        output = model(*args, **kwargs)
        if loss_fn is None:
            given = own_loss(output)
            whose = "Without loss_fn the model's output must be the loss, or have it as `.loss`;"
            if given is None and (hasattr(output, "loss") or (isinstance(output, dict) and "loss" in output)):
                whose = "Without loss_fn the loss is the output's .loss, and it is None: were labels passed?"
        else:
            target = batch.targets(index, devices[stage_now()])
            given = _without_target(loss_fn, output) if target is None else loss_fn(output, target)
            whose = "loss_fn must return the loss of a micro-batch as one number;"
        loss = _one_number(given, whose, weight, batch, index)
        batch.check_unchanged()
        kept = detach(output) if keep_outputs else None
        number = loss.detach().clone()  # the memory of mse_loss's number is that of a whole tensor
        weighed = loss * weight.share
        root = weighed if scale is None else scale(weighed)
        return Result(root, number, kept, counts=weight.share != 0)

    return call


def forward_call(model: nn.Module, batch: Batch, index: int, device: torch.device) -> Call:
    """The model alone for one micro-batch, whose inputs go to `device`."""

    def call(stage_now: StageNow) -> Result:
        args, kwargs = batch.arguments(index, device)
        output = model(*args, **kwargs)
        batch.check_unchanged()
        return Result(None, None, detach(output))

    return call


def total_loss(results: Sequence[Result], weights: Sequence[Weight]) -> Tensor:
    """The loss of the whole batch, a detached scalar."""
    counted = [
        (r.loss, w.share) for r, w in zip(results, weights, strict=True) if r.loss is not None and w.share
    ]
    device = counted[0][0].device  # chains may end on different ones
    return torch.stack([(loss * share).to(device) for loss, share in counted]).sum()


def own_loss(output: Any) -> Any:
    """The loss that a model computes itself: its output, or the output's `.loss`."""
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    return output.get("loss") if loss is None and isinstance(output, dict) else loss


def _one_number(loss: Any, whose: str, weight: Weight, batch: Batch, index: int) -> Tensor:
    """The loss of a micro-batch as a scalar.

    Raises:
        PipelabError: it is something else; `whose` says where it comes from.
    """
    if weight.per_sample and isinstance(loss, Tensor):
        return reduced(loss, weight, batch, index)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    if isinstance(loss, Tensor):
        shape = tuple(loss.shape)
        raise PipelabError(
            f"{whose} it is a tensor of shape {shape}. For one loss a sample say reduction='none'."
        )
    raise PipelabError(whose if whose.endswith("?") else f"{whose} it is {type(loss).__name__}.")


def _without_target(loss_fn: LossFn, output: Any) -> Any:
    """The loss where there is no target. Python's error of a loss function that wants one does not say why: a note."""
    try:
        return loss_fn(output)
    except TypeError as error:
        annotate(
            error,
            "pipelab: pipe.step got no target, so loss_fn was called with the output alone; a target is passed as in "
            "pipe.step(x, y).",
        )
        raise


def loss_modules(loss_fn: Any) -> list[nn.Module]:
    """The modules that a loss function is, or uses by a name of its own code."""
    if isinstance(loss_fn, nn.Module):
        return [loss_fn]
    found: list[Any] = []
    if isinstance(loss_fn, functools.partial):
        found += [loss_fn.func, *loss_fn.args, *loss_fn.keywords.values()]
    function = getattr(loss_fn, "__func__", loss_fn)
    found.append(getattr(loss_fn, "__self__", None))
    if inspect.isfunction(function):
        with contextlib.suppress(ValueError):  # a name of its closure that has no value yet
            names = inspect.getclosurevars(function)
            found += [*names.nonlocals.values(), *names.globals.values()]
    return [value for value in found if isinstance(value, nn.Module)]
