"""Runs that leave no trace: gradients, buffers and random state are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Inside, the model starts without gradients; afterwards `.grad`, buffers and random state are as before.

    Args:
        model: parameters keep their values only if the code inside does not change them.

    Example:
        >>> import torch
        >>> from pipelab.runtime.preserve import preserved
        >>> model = torch.nn.Linear(2, 1)
        >>> with preserved(model):
        ...     model(torch.ones(3, 2)).sum().backward()
        >>> model.weight.grad is None
        True
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    owners = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    cpu_state = torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for owner, before in owners:  # a buffer may have been replaced, not only written to
            owner.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        torch.set_rng_state(cpu_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)


class WrittenGradients:
    """Notices which gradients a step wrote to, so that after a failure none is half a result.

    Args:
        model: whose parameters are watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before: list[tuple[Tensor, Tensor | None, int]] = [
            (parameter, parameter.grad, parameter.grad._version if parameter.grad is not None else 0)
            for parameter in model.parameters()
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
