"""Modules that went through torch.compile, which would trace our hooks, and inside whose code no stage can begin.

What a step watches of such a module lies around the compiled code, never in it. Where it would have to lie inside (a
stage begins there, or a value of another stage is used there), and while the flow of values is learnt, the module runs
as if it were not compiled.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_CALL = "_compiled_call_impl"  # of module.compile(); torch.compile(module) makes a module around it


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of the module runs compiled code."""
    return vars(module).get(_CALL) is not None or _is_wrapper(module)


def compiled_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if is_compiled(module)]


def must_be_plain(module: nn.Module, watched: set[nn.Module], noisy: set[nn.Module | None]) -> bool:
    """Whether compiled code of `module` would have to be watched inside.

    Args:
        module: a compiled one.
        watched: the modules that are watched in a step.
        noisy: those of them whose own code uses values of other stages.
    """
    below = list(module.modules())[1:]
    return module in noisy or any(part in watched for part in below)


@contextlib.contextmanager
def plain(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, these modules run as if they were not compiled."""
    before = [
        (vars(module), name, vars(module)[name]) for module in modules for name in _compiled_parts(module)
    ]
    try:
        for module in modules:
            if _is_wrapper(module):
                vars(module)["forward"] = module._orig_mod.__call__  # type: ignore[union-attr, operator]
            if vars(module).get(_CALL) is not None:
                vars(module)[_CALL] = None
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value


@contextlib.contextmanager
def around(module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> Iterator[None]:
    """Hooks around the compiled code of a module, where its own hooks would become part of it.

    Args:
        module: compiled in place.
        enter: a forward pre-hook with keyword arguments.
        leave: a forward hook; it is called after errors, too.
    """
    compiled = vars(module)[_CALL]

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = enter(module, args, kwargs) or (args, kwargs)
        try:
            return compiled(*args, **kwargs)
        finally:
            leave(module, args, None)

    vars(module)[_CALL] = call
    try:
        yield
    finally:
        vars(module)[_CALL] = compiled


def is_compiled_in_place(module: nn.Module) -> bool:
    return vars(module).get(_CALL) is not None


def _is_wrapper(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # which takes long to import
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def _compiled_parts(module: nn.Module) -> list[str]:
    return [
        name
        for name, is_there in ((_CALL, is_compiled_in_place(module)), ("forward", _is_wrapper(module)))
        if is_there
    ]
