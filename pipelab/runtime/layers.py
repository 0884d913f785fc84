"""Where a model can be cut: the modules of its main chain, in the order in which its forward calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pipelab.errors import PipelabError
from pipelab.runtime.inputs import Args
from pipelab.runtime.preserve import preserved

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers(model: nn.Module, inputs: Any) -> tuple[str, ...]:
    """The layers of a model: names of modules at which a stage can begin, in the order of their first call.

    A layer runs from its module's first call to the next layer's. Layers are the children of the model; Sequential,
    ModuleList and ModuleDict are opened, and so is every module on the way to a large chain of them. The model's
    forward runs once, without gradients; random state and buffers are put back.

    Args:
        model: any module.
        inputs: as for `Pipeline.step`; one sample is enough.

    Returns:
        Names, the first of which is where the model begins and no place to cut.

    Raises:
        PipelabError: the forward calls no module at all.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> pp.layers(model, torch.ones(2, 4))
        ('0', '1', '2')
    """
    args = Args.of(inputs)
    names = {module: name for name, module in reversed(list(candidates(model)))}
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.setdefault(name, None))  # type: ignore[misc]
        for module, name in names.items()
    ]
    try:
        with preserved(model), torch.no_grad():
            args.passed_to(model)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise PipelabError(
            f"{type(model).__name__}'s forward calls none of its modules, so there is nowhere to cut it."
        )
    return tuple(order)


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may be layers, in the order of registration."""
    spine = _ancestors_of_large_chains(model)

    def open_up(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if (isinstance(child, _CONTAINERS) and len(child)) or path in spine:
                yield from open_up(f"{path}.", child)
            else:
                yield path, child

    yield from open_up("", model)


def _ancestors_of_large_chains(model: nn.Module) -> set[str]:
    """Names of the modules that hold a large chain, from the model down to it.

    A chain is a ModuleList, Sequential or ModuleDict; it is large if it holds more than half as many modules as the
    largest. An encoder and a decoder are both opened; the small Sequential inside a block is not.
    """
    sizes = {
        name: sum(1 for _ in module.modules())
        for name, module in model.named_modules()
        if name and isinstance(module, _CONTAINERS) and len(module) > 1
    }
    opened = set()
    for name, size in sizes.items():
        if 2 * size > max(sizes.values()):
            parts = name.split(".")
            opened |= {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return opened
