"""Tensors that modules hold as attributes, and in lists, dicts and objects there."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError
from pipelab.runtime.trees import map_tensors, tensors, unwrapped

NOTHING = object()
"""Stands for a value where None may be one."""

MODULES_OWN = frozenset(vars(nn.Module()))
"""What every module has: training, _parameters, _forward_hooks, ..."""

_FILLED = (dict, OrderedDict, defaultdict, Counter, list, set, deque)

NUMBERS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)

_DEPTH, _ITEMS = 3, 1000  # how deep containers are looked into, and at how many of their items


class Containers:
    """Notices containers on modules that a forward fills in place, where micro-batches in flight would mix.

    Args:
        model: whose modules are minded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[nn.Module, str] = {}
        self._containers: list[tuple[nn.Module, str]] = []
        self._inside: dict[str, dict[int, Tensor]] = {}

    def look(self, learning: bool) -> None:
        """Notes what lists, dicts and objects on the modules hold before a step.

        Args:
            learning: whether to look for such attributes on all modules; else those known are enough.
        """
        if learning:
            self._names = {module: name or "model" for name, module in self._model.named_modules()}
            self._containers = [
                (module, attribute)
                for module in self._names
                for attribute, value in vars(module).items()
                if attribute not in MODULES_OWN and _may_be_filled(value)
            ]
        self._inside = self._held()

    def check(self) -> None:
        """Refuses containers that a forward fills in place across a cut: the micro-batches in flight would mix.

        Raises:
            PipelabError: names the attributes.
        """
        filled = [
            name
            for name, held in self._held().items()
            if any(key not in self._inside.get(name, {}) for key in held)
        ]
        if filled:
            raise PipelabError(
                f"The model fills a container on itself across a cut: {', '.join(filled[:3])}. The micro-batches in "
                f"flight would mix in it. Bind a new one at the start of the forward (`self.x = []`), pass the values "
                f"on as arguments, or use a schedule with one micro-batch in flight."
            )

    def _held(self) -> dict[str, dict[int, Tensor]]:
        """By name, the tensors in containers, and the attributes that got a graph by being changed in place."""
        found: dict[str, dict[int, Tensor]] = {}
        seen: set[int] = set()
        for module, attribute in self._containers:
            held: list[Tensor] = []
            _look(vars(module).get(attribute), _DEPTH, seen, held)
            if isinstance(vars(module).get(attribute), Tensor):
                held = [tensor for tensor in held if tensor.grad_fn is not None]
            if held:
                found[f"{self._names[module]}.{attribute}"] = {id(tensor): tensor for tensor in held}
        return found

    def clear(self) -> None:
        """Lets go of what was noted."""
        self._inside = {}


def _may_be_filled(value: Any) -> bool:
    """Not so for numbers, functions, classes, and tuples of them."""
    if isinstance(value, (nn.Module, type, *NUMBERS)) or inspect.isroutine(value):
        return False
    return any(map(_may_be_filled, value)) if isinstance(value, tuple) else True


def without_graph(value: Any) -> Any:
    """The value with every tensor detached; `NOTHING` if tensors with a graph are where they cannot be reached."""
    if not has_graph(value):
        return value
    made = map_tensors(
        lambda tensor: tensor.detach() if tensor.grad_fn is not None else tensor, value, unwrapped
    )
    return NOTHING if has_graph(made) else made


def has_graph(value: Any) -> bool:
    if isinstance(value, NUMBERS):
        return False
    if isinstance(value, Tensor):
        return value.grad_fn is not None
    found = tensors(value)
    _look(value, _DEPTH, set(), found)
    return any(tensor.grad_fn is not None for tensor in found)


def tensors_inside(value: Any) -> list[Tensor]:
    """The tensors in containers and objects, a few levels deep."""
    found: list[Tensor] = []
    _look(value, _DEPTH, set(), found)
    return found


def _look(value: Any, depth: int, seen: set[int], found: list[Tensor]) -> None:
    """Adds the tensors in a container or object; each container is looked into once."""
    if isinstance(value, Tensor):
        found.append(value)
        return
    if depth == 0 or isinstance(value, (nn.Module, type, *NUMBERS)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inside: Any = reversed(list(value.values()))
    elif isinstance(value, (list, tuple, deque)):
        inside = reversed(list(value))
    elif isinstance(value, (set, frozenset)):
        inside = list(value)
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    for item in itertools.islice(inside, _ITEMS):  # what is added is at the end
        _look(item, depth - 1, seen, found)


def state_tensors(module: nn.Module) -> list[Tensor]:
    """Its own buffers and the plain tensors among its attributes and in containers there: what may change in place."""
    kept = [value for name, value in vars(module).items() if name not in MODULES_OWN]
    found = [
        buffer for buffer in module._buffers.values() if buffer is not None and not buffer.is_inference()
    ]
    for value in kept:
        inside = value if type(value) in (list, tuple, deque) else (value,)
        for item in value.values() if type(value) in _FILLED and isinstance(value, dict) else inside:
            if isinstance(item, Tensor) and not item.requires_grad and not item.is_inference():
                found.append(item)
    return found


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, bit by bit where they are none (NaN).

    torch's batch_norm leaves no mark in the version of the statistics that it writes: only their values tell. Sparse
    tensors, which it does not write, are taken to be the same.
    """
    if one.layout is not torch.strided:
        return True
    other = other.to(one.device)
    if torch.equal(one, other):
        return True
    return torch.equal(*(tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other)))


class Contents:
    """What the plain containers on a module hold, and the containers in those, to be compared and put back.

    Args:
        module: its own attributes alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self._then: dict[int, tuple[Any, Any]] = {}
        for name, value in vars(module).items():
            if name not in MODULES_OWN and type(value) in _FILLED:
                self._note(value)
                for item in value.values() if isinstance(value, dict) else value:
                    if type(item) in _FILLED:
                        self._note(item)

    def _note(self, container: Any) -> None:
        self._then[id(container)] = (container, _items(container))

    @property
    def changed(self) -> bool:
        """Whether any of them holds other things now."""
        return any(not _same(_items(container), then) for container, then in self._then.values())

    def put_back(self) -> None:
        """The same containers hold what they held."""
        for container, then in self._then.values():
            if _same(_items(container), then):
                continue
            container.clear()
            if isinstance(container, list | deque):
                container.extend(then)
            else:
                container.update(dict(then) if isinstance(container, dict) else then)


def _items(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same(now: list[Any], then: list[Any]) -> bool:
    """Whether these are the same objects in the same order; pairs of a dict are new each time."""
    if len(now) != len(then):
        return False
    return all(
        a is b or (type(a) is type(b) is tuple and len(a) == len(b) and all(map(operator.is_, a, b)))
        for a, b in zip(now, then, strict=True)
    )
