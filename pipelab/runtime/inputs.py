"""The data of a step: how it is given, checked, and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from pipelab.errors import PipelabError
from pipelab.runtime.batch_dims import FIRST, BatchDims, has_dim
from pipelab.runtime.trees import Replicated, map_tensors, marked_tensors, shown, tensors, unwrapped


class Args:
    """Positional and keyword arguments for the model's forward, where a tuple or a dict alone do not do.

    Example:
        >>> import torch, pipelab as pp
        >>> inputs = pp.Args(torch.zeros(4, 3), mask=torch.ones(4, 3))
        >>> inputs
        Args(<tensor 4 x 3>, mask=<tensor 4 x 3>)
        >>> inputs["mask"].shape, inputs[0].shape
        (torch.Size([4, 3]), torch.Size([4, 3]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __getitem__(self, key: int | str) -> Any:
        return self.kwargs[key] if isinstance(key, str) else self.args[key]

    def __repr__(self) -> str:
        positional = [shown(value) for value in self.args]
        named = [f"{name}={shown(value)}" for name, value in self.kwargs.items()]
        return f"Args({', '.join(positional + named)})"

    def passed_to(self, model: Any) -> Any:
        """The model's output for all of it at once."""
        args, kwargs = unwrapped((self.args, self.kwargs))
        return model(*args, **kwargs)

    @classmethod
    def of(cls, inputs: Any) -> Args:
        """Args from what a person passes: a tensor, a tuple (positional), a dict (keyword), or Args.

        Raises:
            TypeError: for anything else.
        """
        if isinstance(inputs, Args):
            return inputs
        if isinstance(inputs, (Tensor, Replicated)):
            return cls(inputs)
        if isinstance(inputs, tuple):
            return cls(*inputs)
        if isinstance(inputs, Mapping):
            if wrong := [key for key in inputs if not isinstance(key, str)]:
                raise TypeError(
                    f"A dict of inputs holds the forward's keyword arguments, but one key is {wrong[0]!r}. To pass the "
                    f"dict itself as one argument, write pp.Args(inputs)."
                )
            return cls(**inputs)
        raise TypeError(
            f"inputs must be a tensor, a tuple (positional arguments of the model's forward), a dict (keyword "
            f"arguments) or pp.Args(...), not {type(inputs).__name__}."
        )


@dataclass(frozen=True)
class Batch:
    """A whole batch with its cut into micro-batches.

    Attributes:
        inputs: arguments for the model's forward.
        target: what the loss compares with: a tensor, or a tuple, list or dict of them, or None.
        sizes: samples in each micro-batch. They differ by one at most, the larger ones first.
        dims: which dimension of the tensors is the batch.
    """

    inputs: Args
    target: Any
    sizes: tuple[int, ...]
    dims: BatchDims = FIRST
    _uncut: tuple[tuple[Tensor, int], ...] = field(default=(), repr=False)

    @classmethod
    def cut(cls, inputs: Any, target: Any, num_microbatches: int, dims: BatchDims = FIRST) -> Batch:
        """Checks a batch and cuts it; nothing has run yet.

        Raises:
            PipelabError: the batch is empty or smaller than the number of micro-batches, tensors disagree about
                its size or cannot be cut, or one carries a graph of its own.
        """
        args = Args.of(inputs)
        tree = (args.args, args.kwargs, target)
        size = batch_size(args, target, dims)
        if num_microbatches > size:
            raise PipelabError(
                f"{num_microbatches} micro-batches need at least {num_microbatches} samples, but the batch has {size}. "
                f"Use a schedule with num_microbatches <= {size}, or a larger batch."
            )
        if any(leaf.device.type == "meta" for leaf in [*tensors(tree), *marked_tensors(tree)]):
            raise PipelabError(
                "A tensor among inputs or target is on the meta device and has no values. Make it on a real device, "
                "such as torch.zeros_like(tensor, device='cpu')."
            )
        if num_microbatches > 1:
            _refuse_what_would_go_whole(tree, size)
        uncut = marked_tensors(tree) + [leaf for leaf in tensors(tree) if leaf.dim() == 0]
        _refuse_graphs([*tensors(tree), *uncut])
        base, larger = divmod(size, num_microbatches)
        sizes = tuple(base + (i < larger) for i in range(num_microbatches))
        return cls(args, target, sizes, dims, tuple((leaf, _version(leaf)) for leaf in uncut))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Which dimension of an output may be the batch, the first that fits.

        A negative one may count from the last also where the outputs have more or fewer dimensions than the inputs, as
        logits of token ids: then it is the one that the batch is in the inputs.
        """
        given = self.dims.outputs
        if given >= 0 or given != self.dims.inputs:
            return (given,)
        cut = (leaf.dim() for leaf in tensors((self.inputs.args, self.inputs.kwargs)) if leaf.dim() >= -given)
        return (given, *dict.fromkeys(given + dims for dims in cut))

    def wanting_gradients(self) -> list[Tensor]:
        """The inputs and targets whose gradient a step writes to."""
        tree = (self.inputs.args, self.inputs.kwargs, self.target)
        leaves = [*tensors(tree), *marked_tensors(tree)]
        return list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())

    def whole(self) -> Batch:
        """The same batch as one micro-batch."""
        return Batch(self.inputs, self.target, (self.size,), self.dims, self._uncut)

    def arguments(self, microbatch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The forward's arguments for one micro-batch, on `device`."""
        return self._part((self.inputs.args, self.inputs.kwargs), self.dims.inputs, microbatch, device)

    def targets(self, microbatch: int, device: torch.device | None) -> Any:
        """The target of one micro-batch, on `device`; None: where it lies."""
        return self._part(self.target, self.dims.target, microbatch, device)

    def what_weights_see(self, microbatch: int) -> Any:
        """The target of one micro-batch; its inputs, as Args, where the step has no target."""
        if self.target is not None:
            return self.targets(microbatch, None)
        args, kwargs = self._part((self.inputs.args, self.inputs.kwargs), self.dims.inputs, microbatch, None)
        return Args(*args, **kwargs)

    def slice(self, tensor: Tensor, dim: int, microbatch: int) -> Tensor:
        """The samples of one micro-batch: the batch's own memory.

        A model may change them in place while other micro-batches are in flight, so each has a version of its own.
        """
        part = tensor.narrow(dim, sum(self.sizes[:microbatch]), self.sizes[microbatch])
        return part if part.requires_grad else part.data

    def check_unchanged(self) -> None:
        """Refuses a model that writes to what all micro-batches share: the next would see it.

        Raises:
            PipelabError: says which value.
        """
        for leaf, version in self._uncut:
            if _version(leaf) != version:
                raise PipelabError(
                    f"The model changes in place what every micro-batch gets whole: {shown(leaf)}, a scalar or inside "
                    f"pp.replicate(...). The next micro-batch would see the change. Clone it before it is changed."
                )

    def _part(self, tree: Any, dim: int, microbatch: int, device: torch.device | None) -> Any:
        def cut(leaf: Tensor) -> Tensor:
            return _placed(self.slice(leaf, dim, microbatch), device) if leaf.dim() else whole(leaf)

        def whole(leaf: Tensor) -> Tensor:
            placed = _placed(leaf, device)
            # A leaf that wants a gradient gets a node in stage 0, from which other stages receive it: so only that
            # stage's backward writes to its `.grad`.
            return placed.view_as(placed) if placed is leaf and leaf.requires_grad else placed

        return map_tensors(cut, tree, lambda value: map_tensors(whole, value, unwrapped))


def batch_size(args: Args, target: Any, dims: BatchDims = FIRST) -> int:
    """The number of samples: what every tensor with a dimension has along the batch.

    Raises:
        PipelabError: there is no tensor, none has that dimension, they disagree, or the batch is empty.
    """
    of_inputs, of_target = tensors((args.args, args.kwargs)), tensors(target)
    for leaf in (*of_inputs, *of_target):
        if leaf.is_nested or leaf.layout != torch.strided:
            kind = "nested" if leaf.is_nested else f"of the layout {str(leaf.layout).removeprefix('torch.')}"
            raise PipelabError(
                f"A tensor among inputs or target is {kind} and cannot be cut into samples. Pass a dense tensor: pad "
                f"it, or call to_dense()."
            )
    cut = [(leaf, dims.inputs) for leaf in of_inputs] + [(leaf, dims.target) for leaf in of_target]
    cut = [(leaf, dim) for leaf, dim in cut if leaf.dim()]
    advice = (
        "What is the same for every sample (a mask, a positional table) is passed as pp.replicate(value); where the "
        "batch is another dimension, say so with batch_dim."
    )
    if not cut:
        raise PipelabError(f"No tensor with a batch dimension in the inputs: {args!r}. {advice}")
    if lacking := [tuple(leaf.shape) for leaf, dim in cut if not has_dim(leaf, dim)]:
        raise PipelabError(
            f"The batch is dimension {dims.inputs} of the inputs and {dims.target} of the target, which these tensors "
            f"do not have: their shapes are {lacking}. {advice} It may be a tuple (inputs, target, outputs)."
        )
    sizes = {leaf.shape[dim] for leaf, dim in cut}
    if len(sizes) > 1:
        raise PipelabError(
            f"Inputs and target disagree about the size of the batch: the shapes of the inputs are "
            f"{[tuple(leaf.shape) for leaf in of_inputs]}, of the target {[tuple(leaf.shape) for leaf in of_target]}. "
            f"The batch must be dimension {dims.inputs} of every input and {dims.target} of every target. {advice}"
        )
    size = sizes.pop()
    if size == 0:
        raise PipelabError(
            f"The batch is empty: it has 0 samples, the shapes are {[tuple(leaf.shape) for leaf, _ in cut]}. Leave it "
            f"out, or pass one sample at least."
        )
    return size


def enlarge(inputs: Any, target: Any, size: int, dims: BatchDims = FIRST) -> tuple[Args, Any]:
    """A batch of `size` samples made from the given ones, repeated in turn where there are too few."""
    args = Args.of(inputs)
    index = torch.arange(size) % batch_size(args, target, dims)

    def take(tree: Any, dim: int) -> Any:
        def samples(leaf: Tensor) -> Tensor:
            if leaf.dim() == 0:
                return leaf
            taken = leaf.detach().index_select(dim, index.to(leaf.device))
            return taken.requires_grad_(leaf.requires_grad)

        return map_tensors(samples, tree, Replicated)

    positional, keyword = take((args.args, args.kwargs), dims.inputs)
    return Args(*positional, **keyword), take(target, dims.target)


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    # To the CPU a copy that is not waited for would be read before it has arrived.
    return tensor if device is None else tensor.to(device, non_blocking=device.type == "cuda")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _refuse_graphs(leaves: list[Tensor]) -> None:
    if any(leaf.grad_fn is not None for leaf in leaves):
        raise PipelabError(
            "An input or a target is the result of a computation that records gradients; micro-batches would share its "
            "graph. Pass value.detach(), or make that computation part of the model."
        )


def _refuse_what_would_go_whole(tree: Any, size: int) -> None:
    """Refuses values that look like a batch of `size` samples but would go whole to every micro-batch."""
    remedy = "Pass tensors; or pp.replicate(value), if every micro-batch gets the whole of it."

    def one_value(value: Any) -> bool:
        return isinstance(value, PackedSequence) or _is_text(value)

    for leaf in tree_leaves(tree, is_leaf=one_value):
        kind = type(leaf).__name__
        if isinstance(leaf, np.ndarray) and leaf.ndim:
            raise PipelabError(
                f"An array of numpy, of shape {leaf.shape}, would not be cut. Pass torch.from_numpy(array)."
            )
        if isinstance(leaf, PackedSequence) or _hides_tensors(leaf):
            raise PipelabError(
                f"An input or target of type {kind} holds tensors that would not be cut. {remedy}"
            )
        if _is_text(leaf) and len(leaf) == size:
            raise PipelabError(f"A {kind} of {size} texts, as many as samples, would not be cut. {remedy}")


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, str) for item in value)
    )


def _hides_tensors(value: Any) -> bool:
    """Whether an object that `map_tensors` does not look into holds tensors with dimensions."""
    if isinstance(value, (Replicated, type, torch.nn.Module)) or tensors(value):
        return False
    held = value if isinstance(value, (list, tuple, set)) else getattr(value, "__dict__", {}).values()
    return any(isinstance(item, Tensor) and item.dim() > 0 for item in held)
