"""The data of a step: how it is given, checked, and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pipelab.errors import PipelabError

LossWeight = Tensor | Callable[[Any], Any] | None


class Args:
    """Positional and keyword arguments for the model's forward, where a tuple or a dict alone do not do.

    Example:
        >>> import torch, pipelab as pp
        >>> inputs = pp.Args(torch.zeros(4, 3), mask=torch.ones(4, 3))
        >>> inputs
        Args(<tensor 4 x 3>, mask=<tensor 4 x 3>)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        shown = [_brief(value) for value in self.args]
        shown += [f"{name}={_brief(value)}" for name, value in self.kwargs.items()]
        return f"Args({', '.join(shown)})"

    @classmethod
    def of(cls, inputs: Any) -> Args:
        """Args from what a person passes: a tensor, a tuple (positional), a dict (keyword), or Args.

        Raises:
            TypeError: for anything else.
        """
        if isinstance(inputs, Args):
            return inputs
        if isinstance(inputs, Tensor):
            return cls(inputs)
        if isinstance(inputs, tuple):
            return cls(*inputs)
        if isinstance(inputs, Mapping):
            return cls(**inputs)
        raise TypeError(
            f"inputs must be a tensor, a tuple (positional arguments of the model's forward), a dict (keyword "
            f"arguments) or pp.Args(...), not {type(inputs).__name__}."
        )


@dataclass(frozen=True)
class Batch:
    """A whole batch with its cut into micro-batches.

    Attributes:
        inputs: arguments for the model's forward; every tensor in them has the batch as its first dimension.
        target: what the loss compares with: a tensor, or a tuple, list or dict of them, or None.
        sizes: samples in each micro-batch. They differ by one at most, the larger ones first.
    """

    inputs: Args
    target: Any
    sizes: tuple[int, ...]

    @classmethod
    def cut(cls, inputs: Any, target: Any, num_microbatches: int) -> Batch:
        """Checks a batch and cuts it; nothing has run yet.

        Raises:
            PipelabError: the batch is empty or smaller than the number of micro-batches, tensors disagree about
                its size, or an input carries a graph of its own.
        """
        args = Args.of(inputs)
        size = batch_size(args, target)
        if num_microbatches > size:
            raise PipelabError(
                f"{num_microbatches} micro-batches need at least {num_microbatches} samples, but the batch has {size}. "
                f"Use a schedule with num_microbatches <= {size}, or a larger batch."
            )
        for leaf in _tensors((args.args, args.kwargs)):
            if leaf.grad_fn is not None:
                raise PipelabError(
                    "An input is the result of a computation that records gradients; micro-batches would share its "
                    "graph. Pass input.detach(), or make that computation part of the model."
                )
        base, larger = divmod(size, num_microbatches)
        return cls(args, target, tuple(base + (i < larger) for i in range(num_microbatches)))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def arguments(self, microbatch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The forward's arguments for one micro-batch, on `device`."""
        return self._slice((self.inputs.args, self.inputs.kwargs), microbatch, device)

    def targets(self, microbatch: int, device: torch.device) -> Any:
        """The target of one micro-batch, on `device`."""
        return self._slice(self.target, microbatch, device)

    def weights(self, reduction: str, loss_weight: LossWeight) -> tuple[float, ...]:
        """What each micro-batch's loss counts for in the loss of the whole batch.

        A mean over the batch is the mean of the micro-batches' means, weighted by their samples; a sum is a sum.
        A loss that averages over something else (tokens, valid labels) needs `loss_weight`.

        Args:
            reduction: "mean" or "sum".
            loss_weight: per sample what it counts, a tensor of shape (batch,), or a function from a micro-batch's
                target to what that micro-batch counts.

        Raises:
            PipelabError: the weights have the wrong shape, are negative, or sum to zero.
        """
        if loss_weight is None:
            return (
                tuple(n / self.size for n in self.sizes) if reduction == "mean" else (1.0,) * len(self.sizes)
            )
        if isinstance(loss_weight, Tensor):
            if tuple(loss_weight.shape) != (self.size,):
                raise PipelabError(
                    f"loss_weight has the shape {tuple(loss_weight.shape)}; it needs one number a sample: "
                    f"({self.size},)."
                )
            parts = [float(part.sum()) for part in loss_weight.double().split(list(self.sizes))]
        else:
            cpu = torch.device("cpu")
            parts = [float(loss_weight(self.targets(i, cpu))) for i in range(len(self.sizes))]
        total = sum(parts)
        if not all(part >= 0 for part in parts) or not 0 < total < float("inf"):
            raise PipelabError(
                f"loss_weight gives the micro-batches {parts}: they must be at least 0, and more than 0 in sum."
            )
        return tuple(part / total for part in parts)

    def _slice(self, tree: Any, microbatch: int, device: torch.device) -> Any:
        start = sum(self.sizes[:microbatch])
        end = start + self.sizes[microbatch]

        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return (leaf[start:end] if leaf.dim() else leaf).to(device, non_blocking=True)

        return tree_map(cut, tree)


def batch_size(args: Args, target: Any) -> int:
    """The number of samples: the first dimension of every tensor.

    Raises:
        PipelabError: there is no tensor, none has a dimension, they disagree, or the batch is empty.
    """
    sizes = {leaf.shape[0] for leaf in _tensors((args.args, args.kwargs, target)) if leaf.dim()}
    if not sizes:
        raise PipelabError(f"No tensor with a batch dimension in the inputs: {args!r}.")
    if len(sizes) > 1:
        shapes = [tuple(leaf.shape) for leaf in _tensors((args.args, args.kwargs, target))]
        raise PipelabError(
            f"Inputs and target disagree about the size of the batch: their shapes are {shapes}. The first dimension "
            f"of every tensor must be the batch."
        )
    size = sizes.pop()
    if size == 0:
        raise PipelabError("The batch is empty: its first dimension is 0.")
    return size


def enlarge(inputs: Any, target: Any, size: int) -> tuple[Args, Any]:
    """A batch of `size` samples made from the given ones, repeated in turn where there are too few."""
    args = Args.of(inputs)
    have = batch_size(args, target)
    index = torch.arange(size) % have

    def take(leaf: Any) -> Any:
        return leaf[index.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    positional, keyword, goal = tree_map(take, (args.args, args.kwargs, target))
    return Args(*positional, **keyword), goal


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<tensor {' x '.join(map(str, value.shape)) or 'scalar'}>"
    return repr(value)
