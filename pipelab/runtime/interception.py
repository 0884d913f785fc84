"""How the running forward is watched: hooks on modules, a mode that sees operations. Both exist only during a step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from pipelab.errors import PipelabError, annotate
from pipelab.runtime.compiled import around, is_compiled_in_place, plain
from pipelab.runtime.flow import Handed

if TYPE_CHECKING:
    from pipelab.runtime.context import StepContext
    from pipelab.runtime.microbatch import MicroBatch

_running = threading.local()


class Cancelled(BaseException):
    """Unwinds a forward when its step is given up; the model's own `finally` blocks run."""


# Properties of a tensor that make another tensor; the other ones (shape, dtype, ...) carry no values.
_VIEW_PROPERTIES = {"T", "mT", "H", "mH", "real", "imag", "data"}
# Methods that only ask what a tensor looks like.
_QUESTIONS = {
    Tensor.size,
    Tensor.dim,
    Tensor.stride,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.__len__,
    Tensor.is_contiguous,
}


# Functions of torch's that a step has replaced, and what took their place: the mode sees torch's own and goes on there.
seen_by_mode: dict[Any, Any] = {}


def current() -> MicroBatch | None:
    """The micro-batch whose forward runs in this thread."""
    return getattr(_running, "microbatch", None)


def set_current(microbatch: MicroBatch | None) -> None:
    _running.microbatch = microbatch


class ForeignValues(TorchFunctionMode):
    """Sees every torch operation of one micro-batch and replaces values of other stages by received ones."""

    def __init__(self, microbatch: MicroBatch) -> None:
        super().__init__()
        self._microbatch = microbatch

    def switch_on(self) -> None:
        _push_mode(self)

    def switch_off(self) -> bool:
        """Takes the mode off if it is on top of the stack; says whether it was."""
        depth = torch._C._len_torch_function_stack()
        if depth and torch._C._get_function_stack_at(depth - 1) is self:
            _pop_mode()
            return True
        return False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch takes the mode off the stack while this runs.
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__" and func.__self__.__name__ not in _VIEW_PROPERTIES:
            return func(*args, **kwargs)
        microbatch = self._microbatch
        microbatch.note_checkpoint()
        if func not in _QUESTIONS and (
            microbatch.any_foreign(args) or (kwargs and microbatch.any_foreign(kwargs.values()))
        ):
            microbatch.note_noise()
            if func is torch.autograd.grad:
                _refuse_foreign_inputs(microbatch, *args, **kwargs)
            args, kwargs = microbatch.own_deep(args), microbatch.own_deep(kwargs)
        if func is torch.autograd.grad:
            return _gradients(microbatch, func, *args, **kwargs)
        return seen_by_mode.get(func, func)(*args, **kwargs)


def _refuse_foreign_inputs(microbatch: MicroBatch, outputs: Any, inputs: Any, *_: Any, **__: Any) -> None:
    """Refuses a derivative with respect to what another stage owns: this stage's graph ends at its copy.

    Raises:
        PipelabError: says which input it is.
    """
    for place, value in enumerate((inputs,) if isinstance(inputs, Tensor) else inputs):
        if isinstance(value, Tensor) and microbatch.is_foreign(value):
            kind = "parameter" if microbatch.context.parameters.knows(value) else "value"
            raise PipelabError(
                f"Stage {microbatch.stage} calls torch.autograd.grad for a {kind} of another stage (inputs[{place}], "
                f"of shape {tuple(value.shape)}), but its graph begins at the cut. Cut elsewhere, so that one stage "
                f"computes it from that {kind} on."
            )


def _gradients(microbatch: MicroBatch, func: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.autograd.grad, with a word on cuts where it does not find its inputs in the graph."""
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if microbatch.stage and "not have been used in the graph" in str(error):
            annotate(
                error,
                f"pipelab: this is stage {microbatch.stage}, where values of other stages arrive as copies: its graph "
                f"begins at the cut. Cut elsewhere if the way to the input crosses a cut.",
            )
        raise


@contextlib.contextmanager
def modes_put_back() -> Iterator[None]:
    """Whatever happens inside, afterwards the thread's stack of modes is as before.

    An error that is no `Exception` unwinds a forward without running the hooks that take the mode off.
    """
    depth = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > depth:
            _pop_mode()


@contextlib.contextmanager
def hooks(context: StepContext) -> Iterator[None]:
    """Watches the model for one step: parks at the cuts, hands foreign arguments over, turns the mode on and off."""
    flow, cuts = context.flow, context.cuts
    modules = list(context.model.modules()) if context.learning else flow.watched(set(cuts))
    enter, leave = _before(context), _after(context)
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain(context.run_plain(modules)))
        for module in modules:
            if is_compiled_in_place(module):
                stack.enter_context(around(module, enter, leave))
            else:
                hook = module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        if context.learning or flow.noisy:
            stack.enter_context(_visible_functions)
        yield


def cancel_at_next_call() -> RemovableHandle:
    """Until the handle is removed, a cancelled forward ends at its next call of any module."""

    def stop(module: nn.Module, args: Any) -> None:
        microbatch = current()
        if microbatch is not None and microbatch.cancelled:
            raise Cancelled

    return nn.modules.module.register_module_forward_pre_hook(stop)


def _before(context: StepContext) -> Any:
    flow, cuts, learning = context.flow, context.cuts, context.learning

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        microbatch = current()
        if microbatch is None or microbatch.context is not context:
            return None  # the module is called outside this step (by a checkpoint's second forward, say)
        was_on = microbatch.mode_off()
        stage = cuts.get(module, 0)
        if stage and stage not in microbatch.passed:
            microbatch.passed.append(stage)
        if stage > microbatch.stage:
            microbatch.park(stage)
        if learning:
            flow.called_in.setdefault(module, set()).add(microbatch.stage)
            if microbatch.in_checkpoint():
                flow.checkpointed.add(module)
                flow.checkpoints = True
            caller = microbatch.frames[-1][0] if microbatch.frames else None
            flow.callees.setdefault(caller, set()).add(module)
        microbatch.frames.append((module, was_on))
        changed = False
        if learning or module in flow.sites:
            mine = tuple(map(microbatch.own_argument, args))
            mine_by_name = {name: microbatch.own_argument(value) for name, value in kwargs.items()}
            changed = any(a is not b for a, b in zip(mine, args, strict=True)) or any(
                mine_by_name[name] is not kwargs[name] for name in kwargs
            )
        if changed:
            flow.sites.add(module)
        if context.rehearsal:
            microbatch.handed.append(Handed(module, (mine, mine_by_name)))
        if learning or module in flow.noisy:
            microbatch.mode_on()
        return (mine, mine_by_name) if changed else None

    return enter


def _after(context: StepContext) -> Any:
    flow = context.flow

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        microbatch = current()
        if microbatch is None or microbatch.context is not context:
            return
        microbatch.mode_off()
        was_on = False
        while microbatch.frames:  # more than one when the model caught an exception of a module
            entered, was_on = microbatch.frames.pop()
            if context.rehearsal:
                microbatch.handed.pop().compare(flow)
            if entered is module:
                break
        if was_on:
            microbatch.mode_on()

    return leave


class _VisibleFunctions:
    """Makes custom autograd Functions visible to the mode: torch passes them by.

    `Function.apply` is one for the process, and pipelines may run at the same time: the first to come replaces it,
    the last to go puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._original: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                original = self._original = torch.autograd.Function.__dict__["apply"]

                def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
                    microbatch = current()
                    if microbatch is not None and microbatch.mode_off():
                        if microbatch.any_foreign(args):
                            microbatch.note_noise()
                            args = microbatch.own_deep(args)
                        microbatch.mode_on()
                    if microbatch is None or not issubclass(cls, CheckpointFunction):
                        return original.__func__(cls, *args, **kwargs)
                    microbatch.reentrant += 1
                    try:
                        microbatch.note_checkpoint()
                        return original.__func__(cls, *args, **kwargs)
                    finally:
                        microbatch.reentrant -= 1

                torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                torch.autograd.Function.apply = self._original  # type: ignore[method-assign]


_visible_functions = _VisibleFunctions()
