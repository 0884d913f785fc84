"""The micro-batches' outputs: without their graphs, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pipelab.runtime.batch_dims import has_dim


def detach(output: Any) -> Any:
    """The same structure without the graph. Objects that cannot be looked into are left out (None)."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: detach(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
            return dataclasses.replace(value, **fields)
        return value if isinstance(value, (int, float, str, bytes)) or value is None else None

    return tree_map(leaf, output)


def join(parts: list[Any], sizes: tuple[int, ...], dims: Sequence[int] = (0,)) -> Any:
    """One output from the micro-batches' outputs.

    Tensors are concatenated along the first of `dims` that is the micro-batch, scalars are stacked, and anything else
    becomes a list with one entry a micro-batch.
    """
    if len(parts) == 1:
        return parts[0]
    flat = [tree_flatten(part) for part in parts]
    spec = flat[0][1]
    if any(other != spec for _, other in flat[1:]):
        return parts  # the model's output has another structure for some micro-batches
    leaves = list(zip(*(leaves for leaves, _ in flat), strict=True))
    return tree_unflatten([_join_leaf(list(values), sizes, dims) for values in leaves], spec)


def sample_dim(values: list[Any], sizes: tuple[int, ...], dims: Sequence[int]) -> int | None:
    """The first of `dims` along which these are tensors with one entry a sample; None if there is none."""
    for dim in dims:
        if all(
            isinstance(value, Tensor) and has_dim(value, dim) and value.shape[dim] == size
            for value, size in zip(values, sizes, strict=True)
        ):
            return dim
    return None


def _join_leaf(values: list[Any], sizes: tuple[int, ...], dims: Sequence[int]) -> Any:
    dim = sample_dim(values, sizes, dims)
    if dim is not None and len({_other_sizes(value, dim) for value in values}) == 1:
        return torch.cat(_together(values), dim)
    if all(isinstance(value, Tensor) and value.dim() == 0 for value in values):
        return torch.stack(_together(values))
    if all(dataclasses.is_dataclass(value) for value in values) and len(set(map(type, values))) == 1:
        names = [f.name for f in dataclasses.fields(values[0]) if f.init]
        joined = {name: join([getattr(value, name) for value in values], sizes, dims) for name in names}
        return dataclasses.replace(values[0], **joined)
    if all(value is None for value in values):
        return None
    return values


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """All on the first one's device: chains may end on different ones."""
    return [tensor.to(tensors[0].device) for tensor in tensors]


def _other_sizes(tensor: Tensor, dim: int) -> tuple[int, ...]:
    """The shape without the batch: micro-batches padded to different lengths cannot be put together."""
    shape = list(tensor.shape)
    del shape[dim]
    return tuple(shape)
