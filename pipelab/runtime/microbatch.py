"""The suspended forward of one micro-batch.

The model's own `forward` runs in a thread of its own and parks where the next stage begins; the action F(stage,
micro-batch) wakes it until the next cut. A value of another stage is received as a detached copy, so the autograd
graph is cut exactly at the borders, whatever Python the model is written in.

Who owns a tensor is read off its autograd node: sequence numbers are per thread and only grow, and this thread serves
one micro-batch at a time, so a node numbered before the current stage began is another stage's.

             F(0,mb)          F(1,mb)          F(2,mb)
    rank 0   wake .. park
    rank 1                    wake .. park
    rank 2                                     wake .. loss, thread goes back to the pool
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pipelab.errors import PipelabError
from pipelab.runtime.flow import Handed
from pipelab.runtime.interception import Cancelled, ForeignValues, modes_put_back

if TYPE_CHECKING:
    from pipelab.runtime.context import StepContext
    from pipelab.runtime.loss import Call, Result

_next_number: Callable[[], int] = torch._C._autograd._get_sequence_nr


class Link:
    """One value on its way across one border.

    Attributes:
        source, target: the stages.
        sent: the value in the source; dropped after the source's backward.
        edge: where it was made in the source's graph, as it was when it was sent: the source may change it later.
        leaf: where the target's graph begins; its `.grad` is what travels back.
        received: what the target's code works on: a copy, so that changing it in place is legal.
        version: the version of `received` when it arrived.
    """

    __slots__ = ("edge", "leaf", "received", "sent", "source", "target", "version")

    def __init__(self, source: int, target: int, sent: Tensor, leaf: Tensor, received: Tensor) -> None:
        self.source, self.target = source, target
        self.sent: Tensor | None = sent
        self.edge: GradientEdge | None = get_gradient_edge(sent)
        self.leaf: Tensor | None = leaf
        self.received: Tensor | None = received
        self.version = received._version


class MicroBatch:
    """One micro-batch of one step.

    Args:
        context: what the micro-batches of a step share.
        index: the micro-batch.
        call: runs the model and the loss; what it returns is kept as `result`.
    """

    def __init__(self, context: StepContext, index: int, call: Call) -> None:
        self.context = context
        self.index = index
        self.stage = 0
        self.stages = [0]  # the stages it has entered
        self.starts = [0]  # and the first sequence number of each
        self.passed: list[int] = []  # stages whose cut its forward came to, in the order of the calls
        self.links: list[Link] = []
        self.result: Result | None = None
        self.finished = False
        self.cancelled = False
        self.leaky = False
        self.reentrant = 0  # how many of torch's reentrant checkpoints the forward is in
        self.recomputed = False  # while a module runs whose activations are dropped
        self.alone = False  # while its backward keeps all others from drawing random numbers
        self.seconds: dict[int, float] = {}  # of each stage's forward, without the hand-over between threads
        self.frames: list[tuple[nn.Module, bool]] = []
        self.handed: list[Handed] = []  # in a rehearsal, one for each frame
        self.mode: ForeignValues | None = ForeignValues(self)
        self._call: Call | None = call
        self._received: dict[int, list[Link]] = {}
        self._moved: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._error: BaseException | None = None
        self._started = False
        self._pending = 0
        self._turn: Any = None
        self._in_checkpoint = False
        self._woken = 0.0
        self._thread = 0  # the system's number of the forward's thread
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()

    @property
    def moved(self) -> list[tuple[Tensor, int]]:
        """Values without a graph that were moved to another device, and the stage that wanted them there."""
        return [(value, stage) for (_, stage), (value, _) in self._moved.items()]

    # -- called by the ranks' workers ---------------------------------------------------------------------------

    def advance(self, stage: int) -> None:
        """The action F(stage): runs the forward up to where the next stage begins.

        Does nothing if this micro-batch never enters the stage (an expert that got nothing, a branch not taken).
        """
        if self.finished or self._pending != stage:
            return
        if not self._started:
            self.context.pool.run(self._run, lambda thread: self.context.place(stage, thread))
            self._started = True
        elif self._thread:
            self.context.place(stage, self._thread)
        with contextlib.suppress(RuntimeError):  # `cancel` was faster
            self._go.release()
        self._done.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # or the error and this frame would keep each other, and the step's tensors, alive

    def cancel(self) -> None:
        """Gives the forward up: it ends where it is parked, or at its next call of a module."""
        self.cancelled = True
        if self._started and not self.finished:
            with contextlib.suppress(RuntimeError):  # it is not parked, or `advance` was faster
                self._go.release()

    def wait_until_ended(self) -> None:
        while self._started and not self.finished:
            time.sleep(0.001)

    def release(self) -> None:
        """Lets go of what a step that was given up still holds: closures and errors, which are cycles, and graphs.

        Whoever keeps the error that ended the step keeps this object, by the error's traceback.
        """
        self.mode = None
        self._call = None
        self._error = None
        self.links.clear()
        if self.result is not None:
            self.result.root = None

    # -- in the micro-batch's own thread ------------------------------------------------------------------------

    def _run(self) -> None:
        self._thread = threading.get_native_id()
        self._go.acquire()
        context = self.context
        try:
            if self.cancelled:
                raise Cancelled
            with contextlib.ExitStack() as stack:
                context.enter_thread(self, stack)
                self._begin(0)
                call, self._call = self._call, None
                assert call is not None  # a micro-batch runs once
                stack.enter_context(modes_put_back())
                if context.learning or None in context.flow.noisy:
                    self.mode_on()
                self.result = context.variables.copy().run(call, lambda: self.stage)
        except BaseException as error:
            self._error = error
        finally:
            self._finish()

    def _finish(self) -> None:
        context = self.context
        self.mode = None
        if self.cancelled and self._error is None:
            self._error = Cancelled()  # the model swallowed it and went on
        try:
            self._leave_stage(self._error is None)
            if self._error is None:
                self._check_aliases()
                context.check_finished(self)
        except BaseException as error:  # whatever it is: the worker that waits must hear of it
            self._error = self._error or error
        context.leave_thread()
        # What the rest of the step needs are the links; everything else would keep activations alive.
        self.frames.clear()
        self.handed.clear()
        self._received.clear()
        self._moved.clear()
        for link in self.links:
            link.received = None
        self._call = None
        self.finished = True
        with contextlib.suppress(RuntimeError):  # a cancelled forward may end before its worker saw it park
            self._done.release()

    def park(self, stage: int) -> None:
        """Hands the rank back to its worker until F(stage) comes."""
        self._leave_stage(True)
        if self.context.learning:
            self.context.kept_values.check()
        self._in_checkpoint = self.in_checkpoint()
        self._pending = stage
        self._done.release()
        self._go.acquire()
        if self.cancelled:
            raise Cancelled
        self.stage = stage
        self._begin(stage)
        self.stages.append(stage)
        self.starts.append(_next_number())

    def _begin(self, stage: int) -> None:
        self.context.activate(stage, self.index)
        self._turn = self.context.randomness.enter(stage, self.index, self.context.stage_device(stage))
        if stage == 0:
            self.starts[0] = _next_number()
        self._woken = time.perf_counter()

    def _leave_stage(self, ended: bool) -> None:
        self.seconds[self.stage] = time.perf_counter() - self._woken
        if self._turn is not None:
            turn, self._turn = self._turn, None
            turn.leave(ended)
            if self._in_checkpoint and self.stage in self.context.randomness.drawing_stages:
                raise PipelabError(
                    f"Stage {self.stage} draws random numbers and begins inside torch.utils.checkpoint, whose second "
                    f"forward would draw others. Cut at a module outside the checkpoint, or let the checkpoint begin "
                    f"inside the stage."
                )

    # -- ownership ----------------------------------------------------------------------------------------------

    def is_foreign(self, value: Tensor) -> bool:
        """Whether `value` belongs to another stage than the one that runs."""
        if self.context.changed_in_place.watching:
            self.context.changed_in_place.touch(value, self.stage)
        home = self.context.parameters.touch(value, self.stage)
        if home is not None and value.requires_grad:
            return home != self.stage
        if self.context.elsewhere(value, self.stage):
            return True
        # A leaf that is no parameter is an input, which every stage may read.
        return value.grad_fn is not None and _age(value) < self.starts[-1]

    def any_foreign(self, values: Iterable[Any]) -> bool:
        """Whether a foreign value is among `values`, or in lists, tuples and dicts among them."""
        for value in values:
            if isinstance(value, Tensor):
                if self.is_foreign(value):
                    return True
            elif isinstance(value, (list, tuple)):
                if self.any_foreign(value):
                    return True
            elif type(value) is dict and self.any_foreign(value.values()):
                return True
        return False

    def own(self, value: Tensor) -> Tensor:
        """What the running stage uses in place of `value`."""
        if not self.is_foreign(value):
            return value
        if self.context.parameters.knows(value):
            return self.context.parameters.replica(value, self.stage)
        if not value.requires_grad or value.grad_fn is None:
            return self._move(value)
        return self._receive(value)

    def own_deep(self, value: Any) -> Any:
        """`own` for the arguments of an operation: lists, tuples and dicts that hold a foreign value are rebuilt."""
        if isinstance(value, Tensor):
            return self.own(value)
        if not self.any_foreign((value,)):
            return value  # the very list: a custom Function may append to it
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
            return type(value)(*map(self.own_deep, value))
        if type(value) in (list, tuple):
            return type(value)(map(self.own_deep, value))
        if type(value) is dict:
            return {key: self.own_deep(item) for key, item in value.items()}
        return value

    def own_argument(self, value: Any) -> Any:
        """`own` for the arguments of a module: lists and dicts stay, since the module may append to them."""
        if isinstance(value, Tensor):
            return self.own(value)
        if type(value) is tuple:
            mine = tuple(map(self.own_argument, value))
            return mine if any(a is not b for a, b in zip(mine, value, strict=True)) else value
        return value

    def in_checkpoint(self) -> bool:
        """Whether the forward is inside a torch.utils.checkpoint of the model's own."""
        return not self.recomputed and (self.reentrant > 0 or self.context.in_checkpoint())

    def note_checkpoint(self) -> None:
        """Notes, while learning, that something runs inside a checkpoint."""
        flow = self.context.flow
        if self.context.learning and not flow.checkpoints and self.in_checkpoint():
            flow.checkpoints = True

    def note_noise(self) -> None:
        """The running module's own code, or the loss, touched a foreign value."""
        if self.context.learning:
            self.context.flow.noisy.add(self.frames[-1][0] if self.frames else None)

    def _receive(self, value: Tensor) -> Tensor:
        links = self._received.setdefault(id(value), [])
        if links:
            newest = links[-1]
            copy = newest.received
            assert copy is not None  # received values are dropped only when the forward has ended
            if copy._version != newest.version:  # changed in place by another stage: the newest counts
                return copy if newest.target == self.stage else self.own(copy)
            for link in links:
                if link.target == self.stage and link.received is not None:
                    return link.received
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            device = self.context.device(self.stage)
            with self.context.copying(value, self.stage):
                received = leaf.to(device, copy=True) if device is not None else leaf.clone()
        link = Link(self._source(value), self.stage, value, leaf, received)
        links.append(link)
        self.links.append(link)
        return received

    def _move(self, value: Tensor) -> Tensor:
        """A value without a graph (ids, masks, an input) on the device of the running stage."""
        key = (id(value), self.stage)
        if key not in self._moved:
            device = self.context.device(self.stage)
            with self.context.copying(value, self.stage):
                self._moved[key] = (value, value.to(device))
        return self._moved[key][1]

    def _source(self, value: Tensor) -> int:
        return self.stages[max(bisect.bisect_right(self.starts, _age(value)) - 1, 0)]

    def _check_aliases(self) -> None:
        changed = [
            link
            for link in self.links
            if link.received is not None and link.received._version != link.version
        ]
        for link in changed:
            for other in self.links:
                if (
                    other.sent is link.sent
                    or other.sent is link.received
                    or other.sent is None
                    or link.sent is None
                ):
                    continue
                if other.sent.untyped_storage().data_ptr() == link.sent.untyped_storage().data_ptr():
                    raise PipelabError(
                        f"Stage {link.target} changes a value of stage {link.source} in place while another view of "
                        f"the same memory crosses a cut too. Clone it before it is changed, or move the cut."
                    )

    # -- the mode that sees operations --------------------------------------------------------------------------

    def mode_on(self) -> None:
        if self.mode is not None:
            self.mode.switch_on()

    def mode_off(self) -> bool:
        """Takes the mode off if it is on top of the stack; says whether it was."""
        return self.mode is not None and self.mode.switch_off()


def _age(value: Tensor) -> int:
    """The sequence number of the node that made `value`."""
    node = value.grad_fn
    assert node is not None
    age = node._sequence_nr()
    if value._is_view():
        # When the base of a view was changed in place, torch makes the view's node anew, with a late number, the moment
        # that grad_fn is read; the node behind it tells the true age.
        inputs = node.next_functions
        if inputs and inputs[0][0] is not None:
            age = min(age, inputs[0][0]._sequence_nr())
    return age
