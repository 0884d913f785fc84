"""Weight gradients put off, one operation at a time, so that a backward splits in two without repeating work.

While a step runs, `F.linear`, the convolutions and `torch.addmm` go through an autograd Function whose backward
computes the input's gradient alone and keeps what the weight's needs; the action W computes it later.

    I   an ordinary backward     gy --> gx           keeps (x, gy) of each such operation
    W   no graph any more        grad += gy^T x      and lets go of them, one by one

What does not go through here (a layer norm, an LSTM, a weight with hooks) gets its weight gradient in I as ever, so
the sum of I and W is right for every model; how much of it W holds is counted.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.overrides import has_torch_function

from pipelab.errors import PipelabError
from pipelab.runtime.interception import current, seen_by_mode
from pipelab.runtime.operations import ADDMM, LINEAR, Operation, addmm, convolution_of, convolutions, linear
from pipelab.runtime.parameters import add_gradient, has_gradient_hooks


class WeightGradients:
    """The weight gradients of one stage and micro-batch that wait for their action W.

    Attributes:
        computed: the parameters whose gradients W has computed, by identity.
    """

    def __init__(self) -> None:
        self.computed: dict[int, Tensor] = {}
        self._task: int | None = None  # torch's number of the stage's own backward, while that runs
        self._waiting: deque[tuple[Operation, Tensor | None, Tensor | None, Tensor, int, Tensor]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def during(self, roots: Sequence[GradientEdge]) -> Iterator[None]:
        """Around the stage's own backward I, which begins at `roots`: what runs in it is put off.

        A backward that the model runs itself, in its forward or in a hook, is another one and gets its gradients at
        once. Which one runs is asked of torch, since a GPU's runs in a thread of torch's.
        """

        def begin(_: Any) -> None:
            if self._task is None:
                self._task = torch._C._current_graph_task_id()

        handles = [root.node.register_prehook(begin) for root in roots]
        try:
            yield
        finally:
            self._task = None
            for handle in handles:
                handle.remove()

    @property
    def is_running(self) -> bool:
        """Whether the backward that asks is the stage's own."""
        return self._task is not None and self._task == torch._C._current_graph_task_id()

    def put_off(
        self, operation: Operation, weight: Tensor | None, bias: Tensor | None, x: Tensor, gy: Tensor
    ) -> None:
        """Keeps what the gradients of `weight` and `bias` need; None is one that is not put off.

        `gy` is kept as the very object: torch makes a gradient that nobody else holds the `.grad` of another parameter,
        to be added to in place, and asks the object, not the memory behind it.
        """
        self._waiting.append((operation, weight, bias, x.detach(), x._version, gy))

    def compute(self) -> None:
        """The action W: adds every gradient that waits to `.grad`; what each needed dies at once.

        Raises:
            PipelabError: an input was changed in place since; torch would not notice, for its backward is over.
        """
        with torch.no_grad():
            while self._waiting:
                operation, weight, bias, x, version, gy = self._waiting.popleft()
                if weight is not None and x._version != version:
                    raise PipelabError(
                        f"The input of a layer, of shape {tuple(x.shape)}, was changed in place (by another "
                        f"micro-batch, if it is a buffer) before the weight's gradient was computed from it. Hand the "
                        f"layer a copy (x.clone()), or use a schedule that does not split the backward, such as 1f1b."
                    )
                of_weight = of_bias = None
                if weight is not None and not _add_at_once(operation, weight.grad, gy, x):
                    of_weight, of_bias = operation.weight_gradient(gy, x, weight, bias is not None)
                elif bias is not None:
                    of_bias = operation.bias_gradient(gy)
                for parameter, gradient in ((weight, of_weight), (bias, of_bias)):
                    if parameter is not None:
                        self.computed[id(parameter)] = parameter
                        if gradient is not None:
                            accumulate(parameter, gradient)

    def tensors(self) -> list[Tensor]:
        """What waits keeps: the inputs of the operations and the gradients of their outputs."""
        return [tensor for _, _, _, x, _, gy in self._waiting for tensor in (x, gy)]

    def clear(self) -> None:
        """Forgets what waits, after a step that failed."""
        self._waiting.clear()


def _add_at_once(operation: Operation, held: Tensor | None, gy: Tensor, x: Tensor) -> bool:
    """Adds a weight's gradient to the one it has without making it first, where that can be; says whether it did."""
    return (
        held is not None
        and held.layout is torch.strided
        and held.dtype == gy.dtype
        and operation.add_weight_gradient(held, gy, x)
    )


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Adds to `.grad` as torch's backward does: in its dtype, and a new one is laid out like the parameter."""
    gradient = gradient.to(parameter.grad_dtype or gradient.dtype)
    if parameter.grad is None and gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
    add_gradient(parameter, gradient)


class _Split(torch.autograd.Function):
    """An operation whose backward can leave the gradients of weight and bias to W."""

    @staticmethod
    def forward(
        ctx: Any, operation: Operation, store: WeightGradients, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        cast = weight if weight.dtype == x.dtype else weight.to(x.dtype)
        ctx.operation, ctx.store, ctx.weight, ctx.bias = operation, store, weight, bias  # leaves: no cycle
        ctx.save_for_backward(x, weight, None if cast is weight else cast)
        ctx.set_materialize_grads(False)
        y = operation.forward(x, cast, bias if bias is None else bias.to(x.dtype))
        # Changing a view that a Function returned in place is an error, and an activation may well do that.
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gy,) = gradients
        if gy is None:
            return (None,) * 5
        if torch.is_autocast_enabled(gy.device.type):  # in a backward that the model runs in its forward
            with torch.autocast(gy.device.type, enabled=False):
                return _gradients(ctx, gy)
        return _gradients(ctx, gy)


def _gradients(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    operation, store, weight, bias = ctx.operation, ctx.store, ctx.weight, ctx.bias
    x, saved, cast = ctx.saved_tensors
    _, _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    # With create_graph, gradients are functions of the weight itself.
    if cast is None or torch.is_grad_enabled():
        cast = saved.to(x.dtype)
    later = store.is_running
    put_off_weight = later and needs_weight and not has_gradient_hooks(weight)
    put_off_bias = later and needs_bias and bias.is_leaf and not has_gradient_hooks(bias)
    if put_off_weight or put_off_bias:
        store.put_off(operation, weight if put_off_weight else None, bias if put_off_bias else None, x, gy)
    return (
        None,
        None,
        operation.input_gradient(gy, x, cast) if needs_x else None,
        operation.weight_gradient(gy, x, cast)[0] if needs_weight and not put_off_weight else None,
        operation.bias_gradient(gy) if needs_bias and not put_off_bias else None,
    )


# -- the functions that take the place of torch's during a step -------------------------------------------------


_checkpoint = threading.local()


class InCheckpoint:
    """Around each of the two forwards of a checkpoint of pipelab's own: both keep the same tensors for W.

    Args:
        store: of the running stage and micro-batch; None puts nothing off.
    """

    def __init__(self, store: WeightGradients | None) -> None:
        self._store = store
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before.append(getattr(_checkpoint, "now", None))
        _checkpoint.now = (self._store, _saved_tensors_hook())

    def __exit__(self, *exception: object) -> None:
        _checkpoint.now = self._before.pop()


def _saved_tensors_hook() -> Any:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else hooks[0]


def _store() -> WeightGradients | None:
    """Where the running forward puts weight gradients off; None where it does not."""
    if not torch.is_grad_enabled():
        return None
    hook = _saved_tensors_hook()
    if hook is not None:
        # A checkpoint of the model's own: its second forward, in another thread, would save other tensors.
        store, of_ours = getattr(_checkpoint, "now", None) or (None, None)
        return store if hook is of_ours else None
    microbatch = current()
    if microbatch is None:
        return None
    return microbatch.context.weight_gradients.get((microbatch.stage, microbatch.index))


_PLAIN = (Tensor, nn.Parameter)


def _splittable(x: Any, weight: Any, bias: Any, out: int = 0) -> bool:
    """Whether the formulas hold: plain real tensors, and a weight that a gradient ends in.

    Args:
        x, weight, bias: of the operation.
        out: the dimension of the weight that the bias has too; one of another size is broadcast.
    """
    if has_torch_function((x, weight)):
        return False  # a mode gets to see torch's own function; that of `interception` comes back here without itself
    return (
        type(weight) in _PLAIN
        and weight.is_leaf
        and weight.requires_grad
        and weight.layout is torch.strided
        and weight.dim() > 1  # F.linear takes a vector too
        and type(x) in _PLAIN
        and x.layout is torch.strided
        and x.is_floating_point()
        and (bias is None or (type(bias) in _PLAIN and bias.shape == weight.shape[out : out + 1]))
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def _apply(
    operation: Operation, store: WeightGradients, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor | None:
    """Runs the operation; None if its dtypes are not of one kind and torch itself shall judge."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        if torch.float64 in (x.dtype, weight.dtype):
            return None
        with torch.autocast(device, enabled=False):
            y: Tensor = _Split.apply(operation, store, x.to(torch.get_autocast_dtype(device)), weight, bias)  # type: ignore[no-untyped-call]
        return y
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        return None
    y = _Split.apply(operation, store, x, weight, bias)  # type: ignore[no-untyped-call]
    return y


@wraps(linear)
def _split_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not torch.compiler.is_compiling():
        store = _store()
        if store is not None and _splittable(input, weight, bias):
            flat = input.contiguous() if input.dim() > 2 else input  # torch keeps such a copy too
            y = _apply(LINEAR, store, flat, weight, bias)
            if y is not None:
                return y
    return linear(input, weight, bias)


@wraps(addmm)
def _split_addmm(*args: Any, **options: Any) -> Tensor:
    if not torch.compiler.is_compiling() and len(args) == 3 and not options:
        store = _store()
        bias, x, weight = args
        if store is not None and bias is not None and _splittable(x, weight, bias, out=1):
            y = _apply(ADDMM, store, x, weight, bias)
            if y is not None:
                return y
    return addmm(*args, **options)


def _split_convolution(name: str) -> Callable[..., Tensor]:
    original, dimensions = convolutions[name], int(name[4])

    @wraps(original)
    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not torch.compiler.is_compiling():
            store = _store()
            if store is not None and _splittable(input, weight, bias) and input.dim() == dimensions + 2:
                operation = convolution_of(name, weight, stride, padding, dilation, groups)
                y = None if operation is None else _apply(operation, store, input, weight, bias)
                if y is not None:
                    return y
        return original(input, weight, bias, stride, padding, dilation, groups)

    return convolution


_REPLACED: list[tuple[Any, str, Any, Any]] = [
    (F, "linear", linear, _split_linear),
    (torch, "addmm", addmm, _split_addmm),
    *((F, name, original, _split_convolution(name)) for name, original in convolutions.items()),
]
for _, _, _original, _split in _REPLACED:
    _split._torchdynamo_inline = _original  # torch.compile in the middle of a step finds torch's own


class _SplitFunctions:
    """Puts the functions in the place of torch's while any pipeline needs them.

    There is one `F.linear` in the process: the first to come replaces it, the last to go puts it back. A function that
    somebody else has replaced already is left alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                for module, name, original, split in _REPLACED:
                    if getattr(module, name) is original:
                        setattr(module, name, split)
                        seen_by_mode[original] = split

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                seen_by_mode.clear()
                for module, name, original, split in _REPLACED:
                    if getattr(module, name) is split:
                        setattr(module, name, original)


split_functions = _SplitFunctions()
