"""Twins: copies of the user's model that stand in for it while a pipeline runs.

A replica chain (Chimera, DualPipe) runs its micro-batches on a twin, and so does a mini-batch that works on an older
version of the weights (PipeDream). The user's model knows nothing of them: before each use a twin is brought up to
date, values, flags and hooks; afterwards its gradients go to the user's parameters, or are dropped.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pipelab.errors import PipelabError
from pipelab.runtime.held import NUMBERS, has_graph, same_values
from pipelab.runtime.kept import OTHERS_STATE
from pipelab.runtime.loss import loss_modules
from pipelab.runtime.parameters import add_gradient, has_gradient_hooks

_STRUCTURE = ("_parameters", "_buffers", "_modules")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class _Mark(NamedTuple):
    """A parameter or buffer of a twin as it was when it was brought up to date; of a buffer also the user's own."""

    name: str
    owner: dict[str, Any]
    key: str
    tensor: Tensor
    version: int
    buffer: Tensor | None


class Twin:
    """A copy of a model with parameters of its own.

    It is made once, by `copy.deepcopy`; plain tensors that modules keep as attributes are shared, and so are hooks.

    Args:
        model: the user's.
        device: where the copy of a parameter or buffer goes. None: nothing is copied. The parameters stand on the
            user's memory until they are handed other weights, and the buffers are the user's own, which is right where
            the micro-batches run through each stage in order.

    Attributes:
        model: the copy.
        parameters: pairs of the user's parameter and the twin's.
        twin_of: the twin's module for each of the user's.

    Raises:
        PipelabError: the model cannot be copied, with the reason.
    """

    def __init__(self, model: nn.Module, device: Callable[[Tensor], torch.device] | None) -> None:
        self._copies = device is not None
        self.model = _copied(model, device)
        self._structure = list(model.named_modules(remove_duplicate=False))
        self._modules = list(zip(model.modules(), self.model.modules(), strict=True))
        self.parameters: list[tuple[nn.Parameter, nn.Parameter]] = list(
            zip(model.parameters(), self.model.parameters(), strict=True)
        )
        self.twin_of = dict(self._modules)
        self._seen: list[dict[str, Any]] = [dict(vars(module)) for module, _ in self._modules]
        self._named = list(self.model.named_modules())
        self._marks: list[_Mark] = []
        self._before: list[dict[str, Any]] = []

    def stands_for(self, model: nn.Module) -> bool:
        """Whether the model still has the modules that were copied; otherwise a new twin is needed."""
        now = list(model.named_modules(remove_duplicate=False))
        return len(now) == len(self._structure) and all(
            a[0] == b[0] and a[1] is b[1] for a, b in zip(now, self._structure, strict=True)
        )

    def refresh(self) -> None:
        """Brings the twin up to date: what the user changed on the model since holds for it too.

        Raises:
            PipelabError: a parameter has hooks on its gradient, which would see a part of it.
        """
        followed: set[int] = set()
        for (module, twin), seen in zip(self._modules, self._seen, strict=True):
            self._refresh_attributes(vars(module), vars(twin), seen, followed)
            self._refresh_hooks(vars(module), vars(twin))
            self._refresh_buffers(module, twin)
        names = (name for name, _ in self._structure[0][1].named_parameters())
        for name, (parameter, twin_parameter) in zip(names, self.parameters, strict=True):
            check_gradient_hooks(name, parameter)
            if self._copies:
                _assign(twin_parameter, parameter)
            twin_parameter.requires_grad_(parameter.requires_grad)
        self._marks = [
            _Mark(
                f"{prefix}.{name}" if prefix else name,
                tensors,
                name,
                tensor,
                tensor._version,
                module._buffers.get(name),
            )
            for (prefix, twin), (module, _) in zip(self._named, self._modules, strict=True)
            for tensors in (twin._parameters, twin._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

        self._before = [dict(vars(twin)) for _, twin in self._modules]

    def hand_over(self) -> None:
        """What the twin's forwards have left on its modules, such as the last attention, is left on the user's.

        Only tensors, and what is made of them: an object may know the twin, and a counter has counted its part alone.
        """
        for (module, twin), before in zip(self._modules, self._before, strict=True):
            for name, value in vars(twin).items():
                ours = name in _STRUCTURE or name in _HOOKS or value is before.get(name, self)
                if not ours and _holds_tensors(value):
                    vars(module)[name] = value

    def check_unchanged(self) -> None:
        """Refuses a forward that changed weights or buffers: only the copy was changed, and the model would not learn.

        Raises:
            PipelabError: names the first of them.
        """
        for mark in self._marks:
            trained = isinstance(mark.tensor, nn.Parameter)
            in_place = self._copies or trained  # not of a buffer that is the user's own
            if mark.owner.get(mark.key) is not mark.tensor or (
                in_place
                and (
                    mark.tensor._version != mark.version
                    or (mark.buffer is not None and not same_values(mark.buffer, mark.tensor))
                )
            ):
                raise PipelabError(
                    f"The model's forward changes {mark.name!r}, but this schedule runs it on copies of the model, and "
                    f"the change would be lost. Use a schedule with one chain and one version of the weights, such as "
                    f"1f1b{'' if trained else ', or model.eval()'}."
                )

    def add_gradients(self) -> None:
        """Adds the twin's gradients to those of the user's parameters, in the parameters' order, and drops them."""
        for parameter, twin in self.parameters:
            if twin.grad is not None:
                add_gradient(parameter, twin.grad)
                twin.grad = None

    def drop_gradients(self) -> None:
        """Forgets the twin's gradients, which after a failure are half a result."""
        for _, twin in self.parameters:
            twin.grad = None

    def _refresh_attributes(
        self, mine: dict[str, Any], theirs: dict[str, Any], seen: dict[str, Any], followed: set[int]
    ) -> None:
        for name, value in mine.items():
            if name in _STRUCTURE or name in _HOOKS:
                continue
            if _is_plain(value):
                if type(value) in NUMBERS or theirs.get(name) != value:
                    theirs[name] = copy.deepcopy(value)
            elif seen.get(name) is not value:
                self._take_over(mine, theirs, seen, name)
            elif id(value) not in followed and _is_record(value) and theirs.get(name) is not value:
                followed.add(id(value))  # one configuration is an attribute of many modules
                self._refresh_plain(vars(value), vars(theirs[name]))
        for name in [name for name in theirs if name not in mine]:
            del theirs[name]

    def _refresh_plain(self, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        for name, value in mine.items():
            if _is_plain(value) and theirs.get(name) != value:
                theirs[name] = copy.deepcopy(value)

    def _take_over(
        self, mine: dict[str, Any], theirs: dict[str, Any], seen: dict[str, Any], name: str
    ) -> None:
        """An attribute was set since the twin was made: by the user, or by a forward, whose values are not wanted."""
        value = mine[name]
        if has_graph(value):
            theirs.pop(name, None)
            return
        seen[name] = value
        memo: dict[int, Any] = {id(module): twin for module, twin in self._modules}
        memo |= {id(parameter): twin for parameter, twin in self.parameters}
        try:
            theirs[name] = value if isinstance(value, Tensor) else copy.deepcopy(value, memo)
        except Exception:  # a lock, a file: there is one of these
            theirs[name] = value

    def _refresh_hooks(self, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        for name in _HOOKS:
            if theirs[name] or mine[name]:
                theirs[name].clear()
                theirs[name].update((key, _rebound(hook, self.twin_of)) for key, hook in mine[name].items())

    def _refresh_buffers(self, module: nn.Module, twin: nn.Module) -> None:
        for name, buffer in module._buffers.items():
            theirs = twin._buffers.get(name)
            if buffer is None or not self._copies:
                twin._buffers[name] = buffer
            elif theirs is None or theirs.shape != buffer.shape or theirs.dtype != buffer.dtype:
                device = buffer.device if theirs is None else theirs.device
                twin._buffers[name] = buffer.detach().to(device, copy=True)
            else:
                with torch.no_grad():
                    theirs.copy_(buffer)


def check_loss(loss_fn: Any, model: nn.Module, kept: Sequence[str]) -> None:
    """Refuses a loss function that may read what the model keeps on itself: it has the user's model, not the copy.

    Args:
        loss_fn: the user's.
        model: the user's.
        kept: the attributes that the model's forward sets.

    Raises:
        PipelabError: names some of them.
    """
    held = (
        [] if isinstance(loss_fn, nn.Module) or not hasattr(loss_fn, "__dict__") else vars(loss_fn).values()
    )
    found = [*loss_modules(loss_fn), *(value for value in held if isinstance(value, nn.Module))]
    inside = set(model.modules())
    if kept and any(part in inside for module in found for part in module.modules()):
        raise PipelabError(
            f"The loss function refers to the model, whose forward keeps values on itself ({', '.join(kept[:3])}), but "
            f"this schedule runs it on copies of the model, which keep their own. {OTHERS_STATE}"
        )


def check_gradient_hooks(name: str, parameter: Tensor) -> None:
    """Refuses hooks on the gradient of a parameter whose gradient comes in parts.

    Raises:
        PipelabError: names the parameter.
    """
    if has_gradient_hooks(parameter):
        raise PipelabError(
            f"The parameter {name!r} has hooks on its gradient, and this schedule runs on copies of the model: the "
            f"hooks would see a part of the gradient, or none. Remove them, or use a schedule with one chain, such as "
            f"1f1b."
        )


def _copied(model: nn.Module, device: Callable[[Tensor], torch.device] | None) -> nn.Module:
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise PipelabError(f"The parameter {name!r} has no shape yet. Run the model once: model(inputs).")
        if device is None:
            memo[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)  # its own version
        elif type(parameter) is nn.Parameter:  # made where it belongs, rather than copied and moved
            place = torch.empty_like(parameter, device=device(parameter), requires_grad=False)
            memo[id(parameter)] = nn.Parameter(place, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer if device is None else buffer.detach().to(device(buffer), copy=True)
    modules = set(model.modules())
    for module in modules:
        shared = [hook for name in _HOOKS for hook in vars(module).get(name, {}).values()]
        shared = [hook for hook in shared if getattr(hook, "__self__", None) not in modules]
        shared += [tensor for value in vars(module).values() for tensor in _plain_tensors(value)]
        for value in shared:
            memo.setdefault(id(value), value)
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise PipelabError(
            f"This schedule runs on copies of the model, but copy.deepcopy(model) fails for {type(model).__name__}: "
            f"{type(error).__name__}: {error}. Give the class what it needs to be copied (a __deepcopy__ of the part "
            f"that cannot), or use a schedule with one chain, such as 1f1b."
        ) from error
    mine, theirs = dict(model.named_parameters()), dict(copied.named_parameters())
    if theirs.keys() != mine.keys() or any(theirs[name] is mine[name] for name in mine):
        raise PipelabError(
            f"This schedule runs on copies of the model, but copy.deepcopy(model) gives no copy with parameters of its "
            f"own: {type(model).__name__} has a __deepcopy__ that does something else. Use a schedule with one chain, "
            f"such as 1f1b."
        )
    return copied


def _plain_tensors(value: Any) -> list[Tensor]:
    """Tensors without a graph in an attribute of a module, also in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is None and not isinstance(value, nn.Parameter) else []
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _plain_tensors(item)]
    if type(value) is dict:
        return [tensor for item in value.values() for tensor in _plain_tensors(item)]
    return []


def _is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, texts and the like alone."""
    if type(value) in (list, tuple, set):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return type(value) in NUMBERS


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor, or a list, tuple or dict of nothing but tensors and plain values."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if type(value) is dict:
        value = list(value.values())
    parts = value if type(value) in (list, tuple) else ()
    return any(map(_holds_tensors, parts)) and all(_holds_tensors(v) or _is_plain(v) for v in parts)


def _is_record(value: Any) -> bool:
    """Whether a value is an object with attributes of its own, such as a configuration."""
    return hasattr(value, "__dict__") and not isinstance(
        value, (Tensor, nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)
    )


def _assign(twin: Tensor, value: Tensor) -> None:
    if twin.shape != value.shape or twin.dtype != value.dtype:  # such as after model.double()
        twin.data = value.detach().to(twin.device, copy=True)
    else:
        with torch.no_grad():
            twin.copy_(value)


def _rebound(hook: Any, twin_of: dict[nn.Module, nn.Module]) -> Any:
    """A hook that is a method of a module of the model becomes the twin's."""
    owner = getattr(hook, "__self__", None)
    if isinstance(owner, nn.Module) and owner in twin_of:
        return types.MethodType(hook.__func__, twin_of[owner])
    return hook
