"""A small model in which a fault can be placed anywhere, and what must hold once it has gone off."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelab as pp
from pipelab.errors import PipelabError
from pipelab.runtime import step_guard
from pipelab.runtime.runnable import check_schedule, check_step

MICROBATCHES = 4
WIDTH = 4


def runnable_schedules(num_microbatches: int = MICROBATCHES) -> dict[str, pp.Schedule]:
    """Every schedule that `Pipeline.step` takes, on as few ranks as give it a stage in the middle."""
    found = {}
    for name in pp.SCHEDULES:
        for num_ranks in (2, 3, 4):
            with contextlib.suppress(PipelabError):
                made = pp.schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
                check_schedule(made)
                check_step(made)
                if made.has_backward and made.num_model_stages > 2:
                    found[name] = made
                    break
    return found


# -- what goes off ----------------------------------------------------------------------------------------------------


class Odd(Exception):
    """Cannot be made again from its `args`, and carries a value of its own."""

    def __init__(self, first: int, *, second: str) -> None:
        super().__init__()
        self.first, self.second = first, second


class Bare(BaseException):
    """Passes by every `except Exception`."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("no text")

    __repr__ = __str__


class Noteless(Exception):
    """Takes no notes."""

    __notes__ = None


ERRORS: dict[str, Callable[[], BaseException]] = {
    "RuntimeError": lambda: RuntimeError("boom"),
    "odd": lambda: Odd(1, second="two"),
    "StopIteration": lambda: StopIteration(3),
    "SystemExit": lambda: SystemExit(2),
    "MemoryError": MemoryError,
    "OutOfMemory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "KeyboardInterrupt": KeyboardInterrupt,
    "bare": lambda: Bare("boom"),
    "unprintable": Unprintable,
    "GeneratorExit": GeneratorExit,
    "noteless": lambda: Noteless("boom"),
    "StopAsyncIteration": StopAsyncIteration,
}


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    """Raises what is made there and then: an error that somebody held would hold all tensors of its step."""

    def act() -> None:
        raise make()

    return act


ANYWHERE = "anywhere"


@dataclass
class Bomb:
    """Goes off once, at one place, stage and micro-batch; a copy of the model that holds it holds the same one.

    Attributes:
        place: what must be reached; "" nothing, `ANYWHERE` any place.
        stage, microbatch: of the model; None: any.
        act: what happens then.
        passes: how often the place is passed before it goes off.
        memory: (what, stage, micro-batch, weak reference) of the memory of what each forward's backward needs, up to W,
            and of what it sent on.
    """

    place: str = ""
    stage: int | None = None
    microbatch: int | None = None
    act: Callable[[], Any] = lambda: None
    passes: int = 0
    memory: list[tuple[str, int, int, weakref.ref[np.ndarray]]] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def __deepcopy__(self, memo: Any) -> Bomb:
        return self

    def arm(
        self, place: str, stage: int | None, microbatch: int | None, act: Callable[[], Any], passes: int = 0
    ) -> None:
        self.place, self.stage, self.microbatch, self.act = place, stage, microbatch, act
        self.passes = passes
        self.memory.clear()

    def reach(self, place: str, stage: int | None = None, microbatch: int | None = None) -> None:
        for mine, other in ((self.stage, stage), (self.microbatch, microbatch)):
            if mine is not None and other is not None and mine != other:
                return
        with self._lock:
            now = self.place in (place, ANYWHERE)
            self.passes -= now
            now = now and self.passes < 0
            if now:
                self.place = ""
        if now:
            self.act()


# -- where it can go off ----------------------------------------------------------------------------------------------


class Fragile(torch.autograd.Function):
    """The identity, whose backward may raise. It gives a copy in memory that `keep` is told of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: Callable[[], None], keep: Callable[[np.ndarray], None]) -> Tensor:
        ctx.reach = reach
        memory = np.empty(tuple(x.shape))  # lives as long as any tensor on it
        keep(memory)
        return torch.from_numpy(memory).copy_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.reach()
        return gradient, None, None


class Part(nn.Module):
    """One stage. `ids` says which micro-batch this is."""

    def __init__(self, stage: int, bomb: Bomb) -> None:
        super().__init__()
        self.stage, self.bomb = stage, bomb
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        bomb, stage, microbatch = self.bomb, self.stage, int(ids[0])
        bomb.reach("forward", stage, microbatch)

        def keep(what: str) -> Callable[[np.ndarray], None]:
            return lambda memory: bomb.memory.append((what, stage, microbatch, weakref.ref(memory)))

        x = Fragile.apply(x, lambda: bomb.reach("function", stage, microbatch), keep("needed"))
        y = self.linear(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: bomb.reach("backward", stage, microbatch))
        return Fragile.apply(y.tanh(), lambda: None, keep("sent"))


class Chain(nn.Module):
    def __init__(self, num_stages: int, bomb: Bomb) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part(stage, bomb) for stage in range(num_stages))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, ids)
        return x


class Travelling(Tensor):
    """A tensor of data that can fail while it is brought to a device; there it is an ordinary one."""

    bomb: Bomb
    place: str

    @classmethod
    def of(cls, tensor: Tensor, place: str, bomb: Bomb) -> Travelling:
        made = tensor.as_subclass(cls)
        made.place, made.bomb = place, bomb
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args[0] if args else None
        made = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(given, cls) or not isinstance(made, cls) or not hasattr(given, "bomb"):
            return made
        made.place, made.bomb = given.place, given.bomb
        if func is Tensor.to:
            given.bomb.reach(given.place, None, int(given.as_subclass(Tensor)[0, 0]))
            return made.as_subclass(Tensor)
        return made


class Laboratory:
    """A pipeline whose model holds a bomb, with what a healthy step gives."""

    def __init__(self, schedule: pp.Schedule, devices: Any, **options: Any) -> None:
        torch.manual_seed(0)
        self.bomb = bomb = Bomb()
        self.stages = schedule.num_model_stages
        self.model = Chain(self.stages, bomb).double()
        for part in self.model.parts:
            part.register_forward_pre_hook(lambda m, args: bomb.reach("pre-hook", m.stage, int(args[1][0])))
            part.register_forward_hook(lambda m, args, out: bomb.reach("hook", m.stage, int(args[1][0])))
            if part.stage:  # torch warns where no input wants a gradient
                part.register_full_backward_hook(lambda m, *_: bomb.reach("module backward hook", m.stage))
        size, m = 2 * schedule.num_microbatches, schedule.num_microbatches
        ids = torch.arange(m).repeat_interleave(2)
        x, y = torch.randn(size, WIDTH).double(), torch.randn(size, WIDTH).double()
        x[:, 0], y[:, 0] = ids, ids
        self.plain = (x, ids), y
        self.inputs = (Travelling.of(x, "input", bomb), ids)
        self.target = Travelling.of(y, "target", bomb)
        names = [f"parts.{stage}" for stage in range(1, self.stages)]
        self.pipe = pp.Pipeline(
            self.model, pp.Split(names), schedule, loss_fn=self.loss, devices=devices, **options
        )
        self.expected = self._expected()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.bomb.reach("loss", None, int(target[0, 0]))
        return F.mse_loss(output, target)

    def scale(self, loss: Tensor) -> Tensor:
        self.bomb.reach("scale")
        return loss * 1

    def progress(self, done: int, total: int) -> None:
        self.bomb.reach("progress")

    def loss_weight(self, target: Tensor) -> Tensor:
        microbatch = int(target.as_subclass(Tensor)[0, 0])
        self.bomb.reach("loss_weight", None, microbatch)
        return torch.ones(len(target))

    def step(self, **options: Any) -> pp.Step:
        return self.pipe.step(
            self.inputs,
            self.target,
            scale=self.scale,
            loss_weight=self.loss_weight,
            progress=self.progress,
            **options,
        )

    def failing_step(self, **options: Any) -> BaseException:
        """Runs a step that must fail, and returns its error."""
        try:
            self.step(**options)
        except BaseException as error:
            return error
        raise AssertionError("the fault did not go off")

    def _expected(self) -> list[Tensor]:
        (x, ids), y = self.plain
        loss = F.mse_loss(self.model(x, ids), y)
        return [loss.detach(), *torch.autograd.grad(loss, list(self.model.parameters()))]

    # -- what must hold ----------------------------------------------------------------------------------------------

    def alive(self, what: str) -> set[tuple[int, int]]:
        """The pairs (stage, micro-batch) of which that is in memory."""
        return {(stage, i) for kind, stage, i, ref in self.bomb.memory if kind == what and ref() is not None}

    def assert_at_rest(self) -> None:
        """Nothing runs, nothing of the failed step is left, and torch is as it was."""
        assert all(parameter.grad is None for parameter in self.model.parameters())
        for what in ("needed", "sent"):
            assert not self.alive(what), (
                f"of (stage, micro-batch) {self.alive(what)} what was {what} is in memory"
            )
        assert_torch_untouched()
        assert not step_guard._running
        for part in self.model.parts:
            assert len(part._forward_pre_hooks) == len(part._forward_hooks) == 1
        pool = self.pipe._pool
        until(lambda: len(pool._idle) == len(pool), "a thread is still at work")

    def assert_next_step_right(self) -> None:
        self.model.zero_grad()
        step = self.step()
        found = [step.loss, *(parameter.grad for parameter in self.model.parameters())]
        for ours, theirs in zip(found, self.expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert not self.pipe.leaks
        self.model.zero_grad()


_APPLY = torch.autograd.Function.__dict__["apply"]
_REPLACEABLE = (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.addmm)


def assert_torch_untouched() -> None:
    assert torch.autograd.Function.__dict__["apply"] is _APPLY
    assert (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.addmm) == _REPLACEABLE
    assert not nn.modules.module._global_forward_pre_hooks
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch._C._len_torch_function_stack() == 0


def until(condition: Callable[[], bool], otherwise: str, seconds: float = 5.0) -> None:
    """Waits for what another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.0005)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Inside, only reference counts free anything."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
