"""What torch and Python keep for each thread, handed from the caller of a step to the threads of its forwards."""

from __future__ import annotations

import contextlib
import contextvars
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pipelab.errors import PipelabError

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class ThreadState:
    """The state of the calling thread: grad mode, inference mode, autocast, default device, hooks on saved tensors.

    Attributes:
        grad: whether gradients are recorded.
        variables: the context variables.

    Raises:
        PipelabError: something is active that cannot be handed on.
    """

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.variables = contextvars.copy_context()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind)) for kind in _AUTOCAST if torch.is_autocast_enabled(kind)
        ]
        functions, dispatches = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
        devices = [mode.device for mode in functions if isinstance(mode, DeviceContext)]
        self._device: torch.device | None = devices[-1] if devices else None
        self._saved_hooks = _top_hooks()
        others = [mode for mode in (*functions, *dispatches) if not isinstance(mode, DeviceContext)]
        if others:
            raise PipelabError(
                f"{type(others[-1]).__name__} is active around the step. A step runs the model in threads of its own, "
                f"which this mode does not see. Enter it inside the model's forward, or run the model by itself."
            )
        if torch._C._are_functorch_transforms_active():
            raise PipelabError(
                "A transform of torch.func (vmap, grad, ...) is active around the step. A step runs the model in "
                "threads of its own, which it does not reach. Use the transform inside the model's forward."
            )

    def enter(self, stack: contextlib.ExitStack) -> None:
        """Makes it the state of the running thread, until the stack unwinds."""
        if self._inference:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.set_grad_enabled(self.grad))
        for kind, dtype in self._autocast:
            # No cache: a weight that was cast in one stage must not turn up in another stage's graph.
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        if self._device is not None:
            stack.enter_context(self._device)
        if self._saved_hooks is not None:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*self._saved_hooks))

    def enter_backward(self, stack: contextlib.ExitStack) -> None:
        """What of it a backward needs: a function of the user's may make tensors there."""
        if self._device is not None:
            stack.enter_context(self._device)

    def in_checkpoint(self) -> bool:
        """Whether the running code is inside torch.utils.checkpoint, or else has hooks on saved tensors of its own."""
        top = _top_hooks()
        return top is not None and (self._saved_hooks is None or top[0] is not self._saved_hooks[0])


def _top_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)
