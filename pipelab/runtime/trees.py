"""Tensors inside the values that people hand in: tuples, lists, dicts, dataclasses, and what is the same for all."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_unflatten


class Replicated:
    """A value that every micro-batch gets whole. Made by `pp.replicate`.

    Attributes:
        value: any value or tree of values.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"replicate({shown(self.value)})"


def replicate(value: Any) -> Replicated:
    """Marks an input or a target that is the same for every sample: a mask, a positional table.

    Tensors are cut along the batch; what is marked is handed whole to every micro-batch, and to the whole model.
    It may stand anywhere inside `inputs` and `target`.

    Args:
        value: a tensor, or a tuple, list, dict or dataclass of them, or anything else.

    Returns:
        The marked value. The model never sees the mark.

    Example:
        >>> import torch, pipelab as pp
        >>> inputs = pp.Args(torch.zeros(8, 4), mask=pp.replicate(torch.ones(4, 4)))
        >>> inputs
        Args(<tensor 8 x 4>, mask=replicate(<tensor 4 x 4>))
    """
    return Replicated(unwrapped(value))


def map_tensors(function: Callable[[Tensor], Any], tree: Any, marked: Callable[[Any], Any]) -> Any:
    """The same tree with `function` of each tensor.

    Looked into is what torch's pytree knows (tuples, lists, dicts, named tuples and what was registered there), and
    dataclasses and other kinds of dict. Objects stay as they are, packed sequences too.

    Args:
        function: of each tensor outside marked values.
        tree: any value.
        marked: of each value inside `replicate`; its result takes the mark's place.
    """

    def walk(value: Any) -> Any:
        return map_tensors(function, value, marked)

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, Replicated):
            return marked(value.value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            made = copy.copy(value)
            for name in (field.name for field in dataclasses.fields(value) if hasattr(value, field.name)):
                object.__setattr__(made, name, walk(getattr(value, name)))
            return made
        if isinstance(value, (dict, UserDict)):
            items = copy.copy(value)
            for key, item in value.items():
                items[key] = walk(item)
            return items
        return value

    leaves, structure = tree_flatten(tree, is_leaf=lambda value: isinstance(value, PackedSequence))
    # A list, not torch's tree_map, in which a StopIteration of `function` would pass for the end of the tree.
    return tree_unflatten([leaf(value) for value in leaves], structure)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree, without those that are the same for every sample."""
    found: list[Tensor] = []
    map_tensors(found.append, tree, lambda value: None)
    return found


def marked_tensors(tree: Any) -> list[Tensor]:
    """The tensors inside `replicate`."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: None, tree, lambda value: found.extend(tensors(value)))
    return found


def unwrapped(tree: Any) -> Any:
    """The tree as the model gets it: without marks."""
    return map_tensors(lambda tensor: tensor, tree, unwrapped)


def shown(value: Any) -> str:
    """A value on one line: shapes instead of numbers."""
    if isinstance(value, Tensor):
        return f"<tensor {' x '.join(map(str, value.shape)) or 'scalar'}>"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    if type(value) in (list, tuple):
        inside = ", ".join(map(shown, value))
        return f"[{inside}]" if type(value) is list else f"({inside}{',' * (len(value) == 1)})"
    return repr(value)
