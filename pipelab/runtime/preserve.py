"""Runs that leave no trace: gradients, what modules keep, and random state are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.runtime.held import MODULES_OWN, Contents, same_values, state_tensors
from pipelab.runtime.interrupt import Interrupts

_STRUCTURE = ("_parameters", "_modules")


@contextlib.contextmanager
def preserved(
    *modules: nn.Module, inputs: Iterable[Tensor] = (), gradient_hooks: bool = False
) -> Iterator[None]:
    """Inside, the modules start without gradients; afterwards `.grad`, buffers and random state are as before.

    So are each module's hooks and its attributes: counters, tensors, and what its lists, dicts and sets hold. Hooks on
    the gradients of parameters do nothing inside: one may be an optimizer, whose momentum nobody could put back.

    Args:
        modules: parameters keep their values only if the code inside does not change them.
        inputs: tensors whose `.grad` is put back as well.
        gradient_hooks: whether hooks on gradients run all the same; parameters with such hooks are put back then.

    Example:
        >>> import torch
        >>> from pipelab.runtime.preserve import preserved
        >>> model = torch.nn.Linear(2, 1)
        >>> with preserved(model):
        ...     model(torch.ones(3, 2)).sum().backward()
        >>> model.weight.grad is None
        True
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    owners = [module for root in modules for module in root.modules()]
    gradients = [(tensor, tensor.grad) for tensor in (*parameters, *inputs)]
    before = [(vars(owner), dict(vars(owner)), _registered(owner)) for owner in owners]
    hooked = [p for p in parameters if gradient_hooks and getattr(p, "_post_accumulate_grad_hooks", None)]
    contents = [Contents(owner) for owner in owners]
    changing = [*hooked, *(tensor for owner in owners for tensor in state_tensors(owner))]
    state: dict[int, tuple[Tensor, int | None]] = {id(t): (t, t._version) for t in changing}
    # torch's batch_norm leaves no mark in the version of the statistics that it writes.
    state |= {id(buffer): (buffer, None) for module in modules for buffer in module.buffers()}
    values = [(tensor, version, tensor.detach().clone()) for tensor, version in state.values()]
    cpu_state = torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        for tensor, _ in gradients:
            tensor.grad = None
        with _silenced([] if gradient_hooks else [tensor for tensor, _ in gradients]):
            yield
    finally:
        with Interrupts(lambda: None):  # a second one must not end this half way
            for tensor, gradient in gradients:
                tensor.grad = gradient
            for attributes, then, registered in before:
                _put_back(attributes, then)
                for name, entries in registered.items():
                    attributes[name].clear()
                    attributes[name].update(entries)
            for held in contents:
                held.put_back()
            with torch.no_grad():
                for tensor, version, value in values:
                    if version is None or tensor._version != version or not same_values(tensor, value):
                        tensor.copy_(value)
            torch.set_rng_state(cpu_state)
            if gpu_states:
                torch.cuda.set_rng_state_all(gpu_states)


@contextlib.contextmanager
def _silenced(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the hooks on these tensors' gradients do nothing. They are there, since a backward is divided by that."""
    found: dict[int, dict[int, Any]] = {}
    for tensor in tensors:
        for hooks in (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)):
            if hooks:
                found[id(hooks)] = hooks
    before = [(hooks, dict(hooks)) for hooks in found.values()]
    for hooks, own in before:
        hooks.update(dict.fromkeys(own, _do_nothing))
    try:
        yield
    finally:
        for hooks, own in before:
            hooks.update((key, hook) for key, hook in own.items() if key in hooks)


def _do_nothing(*_: Any) -> None:
    """In place of a hook."""


def _registered(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """Its buffers and hooks: a forward may replace or add some, as transformers' models do when they first run."""
    return {
        name: dict(entries)
        for name, entries in vars(module).items()
        if name in MODULES_OWN and name not in _STRUCTURE and isinstance(entries, dict)
    }


def _put_back(attributes: dict[str, Any], then: dict[str, Any]) -> None:
    for name in attributes.keys() - then.keys():
        del attributes[name]
    for name, value in then.items():
        if name not in _STRUCTURE and attributes.get(name) is not value:
            attributes[name] = value


class WrittenGradients:
    """Notices which gradients a step wrote to, so that after a failure none is half a result.

    Args:
        modules: whose parameters are watched from now on.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._before: list[tuple[Tensor, Tensor | None, int]] = []
        self.watch(parameter for module in modules for parameter in module.parameters())

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Watches the gradients of these too."""
        self._before += [
            (tensor, tensor.grad, tensor.grad._version if tensor.grad is not None else 0)
            for tensor in tensors
        ]

    def clear(self) -> int:
        """Sets every gradient that was written to since then to None; returns how many."""
        cleared = 0
        for parameter, gradient, version in self._before:
            if parameter.grad is not None and (
                parameter.grad is not gradient or gradient._version != version
            ):
                parameter.grad = None
                cleared += 1
        return cleared
