"""A model cut in stages by suspending its own forward: what the engine's actions do."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from pipelab.core.costs import StageBytes
from pipelab.errors import PipelabError
from pipelab.runtime.deferral import WeightGradients, split_functions
from pipelab.runtime.flow import Flow
from pipelab.runtime.guard import leaks
from pipelab.runtime.interception import cancel_at_next_call, hooks, set_current
from pipelab.runtime.loss import Call
from pipelab.runtime.memory import KeptBytes
from pipelab.runtime.microbatch import MicroBatch
from pipelab.runtime.parameters import Parameters
from pipelab.runtime.randomness import Randomness
from pipelab.runtime.rank_device import RankDevice
from pipelab.runtime.threads import ThreadPool
from pipelab.runtime.traffic import Crossing, crossings


class CutModel:
    """A model with its cuts, and all that is known about it from step to step.

    Args:
        model: the user's model. Nothing of ours stays on it between steps.
        cuts: names of the modules at which stages 1, 2, ... begin.
        streams: the rank device that runs each stage.
        pool: threads for the forwards.
        threads: intra-op threads of each forward.
    """

    def __init__(
        self,
        model: nn.Module,
        cuts: tuple[str, ...],
        streams: list[RankDevice],
        pool: ThreadPool,
        threads: int,
    ) -> None:
        self.model = model
        self.names = cuts
        self.cuts = {model.get_submodule(name): stage for stage, name in enumerate(cuts, start=1)}
        self.streams = streams
        devices = self.devices = [stream.device for stream in streams]
        self.same_device = len(set(devices)) == 1
        self.pool = pool
        self.threads = threads
        self.flow = Flow()
        self.parameters = Parameters(model, None if self.same_device else devices)
        self.randomness = Randomness(model, devices)
        self.kept = KeptBytes(len(cuts) + 1)
        self.shared: dict[int, list[int]] = {}  # parameters by identity: the stages that use them
        self.crossings: tuple[Crossing, ...] | None = None  # known when a first micro-batch has come through

    def on_copy(self, model: nn.Module, streams: list[RankDevice]) -> CutModel:
        """A copy of the model, cut at the same places, drawing the same random numbers, to run on `streams`."""
        made = CutModel(model, self.names, streams, self.pool, self.threads)
        made.randomness = self.randomness
        return made

    @property
    def num_stages(self) -> int:
        return len(self.names) + 1

    def stage_bytes(self, *, mergeable: bool = False) -> StageBytes | None:
        """Bytes of parameters, kept activations and sent values per stage; None before the first step.

        Args:
            mergeable: as if nothing were copied at the borders, so that sums over stages are those of one stage.
        """
        if not self.kept.known:
            return None
        parameters = [0] * self.num_stages
        for parameter in self.model.parameters():
            home = self.parameters.home(parameter)
            parameters[home or 0] += parameter.numel() * parameter.element_size()
        return self.kept.mergeable_bytes(parameters) if mergeable else self.kept.stage_bytes(parameters)


class StepContext:
    """What the micro-batches of one step share that run on the same model.

    Args:
        cut_model: the model and what is known about it.
        in_flight: the most micro-batches whose forward has begun and whose backward has not ended.
        split: the (stage, micro-batch) pairs whose weight gradients have an action of their own.
    """

    def __init__(
        self, cut_model: CutModel, in_flight: int, split: frozenset[tuple[int, int]] = frozenset()
    ) -> None:
        self._cut_model = cut_model
        self._in_flight = in_flight
        self.split = split
        self.model, self.cuts, self.flow = cut_model.model, cut_model.cuts, cut_model.flow
        self.parameters, self.randomness, self.pool = (
            cut_model.parameters,
            cut_model.randomness,
            cut_model.pool,
        )
        self.grad = torch.is_grad_enabled()
        self.weight_gradients = {pair: WeightGradients() for pair in split} if self.grad else {}
        self._writing = [threading.Lock() for _ in range(cut_model.num_stages)]
        self.learning = self.grad not in self.flow.learnt
        self.leaks: list[str] = []
        self.variables = contextvars.copy_context()
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        ]
        self._kept_before = self._kept_values() if self.learning else {}

    # -- threads and devices ------------------------------------------------------------------------------------

    def enter_thread(self, microbatch: MicroBatch, stack: contextlib.ExitStack) -> None:
        """Hands the caller's state, which is per thread in torch, to the micro-batch's thread."""
        torch.set_num_threads(self._cut_model.threads)
        stack.enter_context(torch.set_grad_enabled(self.grad))
        for kind, dtype in self._autocast:
            # No cache: a weight that was cast in one stage must not turn up in another stage's graph.
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        set_current(microbatch)

    def leave_thread(self) -> None:
        set_current(None)

    def activate(self, stage: int) -> None:
        self._cut_model.streams[stage].activate()

    def device(self, stage: int) -> torch.device | None:
        """The device of a stage; None when all stages share one and nothing ever moves."""
        return None if self._cut_model.same_device else self._cut_model.devices[stage]

    def stage_device(self, stage: int) -> torch.device:
        return self._cut_model.devices[stage]

    def in_checkpoint(self) -> bool:
        """Whether the running code is inside torch.utils.checkpoint (or another user of saved-tensor hooks)."""
        return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None

    def recomputing(self, stage: int) -> contextlib.AbstractContextManager[Any]:
        """Around a backward: a checkpoint's second forward puts the global generator back for a while.

        No other stage may draw in the meantime.
        """
        if self.flow.checkpoints and stage in self.randomness.drawing_stages:
            return self.randomness.lock
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def writing(self, stages: Iterable[int]) -> Iterator[None]:
        """Around what adds to the weights' gradients of `stages`: two threads that do so at a time lose updates.

        torch keeps its own backwards apart; this keeps the action W out of a backward that leaks into its stage.
        """
        with contextlib.ExitStack() as stack:
            for stage in stages:
                stack.enter_context(self._writing[stage])
            yield

    def elsewhere(self, value: Tensor, stage: int) -> bool:
        """Whether `value` lies on another device than the stage's. Scalars on the CPU work everywhere."""
        device = self.device(stage)
        return (
            device is not None and value.device != device and (value.dim() > 0 or value.device.type != "cpu")
        )

    def before_transfer(self, value: Tensor, stage: int) -> None:
        """Orders a copy off a GPU, which runs on a stream of the sender's that this thread has not used yet.

        That stream waits for the receiver's, which has waited for the action that made the value; and the value's
        memory stays taken until the copy is done.
        """
        if value.device.type != "cuda":
            return
        sender, receiver = torch.cuda.current_stream(value.device), self._cut_model.devices[stage]
        if receiver.type == "cuda":
            sender.wait_stream(torch.cuda.current_stream(receiver))
        value.record_stream(sender)

    # -- checks while learning ----------------------------------------------------------------------------------

    def check_kept_values(self) -> None:
        """Refuses values that the model keeps on itself: micro-batches in flight would mix them.

        Raises:
            PipelabError: names the attributes.
        """
        if not self.learning or self._in_flight <= 1:
            return
        kept = [
            name for name, value in self._kept_values().items() if self._kept_before.get(name) is not value
        ]
        if kept:
            raise PipelabError(
                f"The model keeps values of the running micro-batch on itself across a cut: {', '.join(kept[:3])}. "
                f"With {self._in_flight} micro-batches in flight they would mix. Pass the value on as an argument, cut "
                f"elsewhere, or use a schedule with one micro-batch in flight."
            )

    def check_finished(self, microbatch: MicroBatch) -> None:
        """Refuses cuts that the first micro-batch never came to; no backward has run yet.

        Raises:
            PipelabError: names the cut and says whether it is out of order or never called.
        """
        if not self.learning or microbatch.index != 0:
            return
        names = self._cut_model.names
        for stage, name in enumerate(names, start=1):
            if stage in microbatch.stages:
                continue
            if stage in microbatch.passed:
                order = ", ".join(repr(names[s - 1]) for s in microbatch.passed)
                raise PipelabError(
                    f"The cuts are not in the order in which the model calls them: it calls {order}. "
                    f"Write Split([{order}])."
                )
            raise PipelabError(
                f"A stage begins at {name!r}, but the model's forward never calls that module (nothing came to it in "
                f"the first micro-batch). Cut at a module that is called: pp.layers(model, inputs) lists them."
            )
        if self.grad:
            self._cut_model.kept.count(microbatch, self.parameters)
            self._cut_model.shared = self.parameters.shared()
            self._cut_model.crossings = crossings(microbatch, self.parameters, self._cut_model.devices)

    def _kept_values(self) -> dict[str, Tensor]:
        found = {}
        for module_name, module in self.model.named_modules():
            for attribute, value in list(vars(module).items()):
                if attribute not in ("_parameters", "_buffers", "_modules"):
                    for index, tensor in enumerate(_graph_values(value)):
                        found[f"{module_name or 'model'}.{attribute}" + (f"[{index}]" if index else "")] = (
                            tensor
                        )
        return found


def _graph_values(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _graph_values(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _graph_values(item)]
    return []


class SuspendedStages:
    """The stages of one step, as the engine knows them.

    The engine's stage ids count through all copies of the model (replica chains, older versions of the weights);
    a micro-batch stays on one copy and knows the model's own stages alone.

    Args:
        contexts: what the step's micro-batches share, one for each copy of the model; the user's model comes first.
        calls: for each micro-batch a function that runs the model and the loss in the micro-batch's thread. What
            it returns has `root`, the tensor where the backward begins, or None.
        copies: the context of each micro-batch.
    """

    def __init__(
        self,
        contexts: Sequence[StepContext],
        calls: Sequence[Call],
        copies: Sequence[int],
    ) -> None:
        self._contexts = contexts
        self._num_stages = len(contexts[0].cuts) + 1
        self.microbatches = [
            MicroBatch(contexts[copy], index, call)
            for index, (call, copy) in enumerate(zip(calls, copies, strict=True))
        ]
        self._cancelling: list[RemovableHandle] = []
        self._ended = False
        self._lock = threading.RLock()  # `cancel` may be called in a signal handler, in the middle of itself

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a step: hooks on, and at the end nothing is left behind, whatever happened."""
        try:
            with contextlib.ExitStack() as stack:
                for context in self._contexts:
                    stack.enter_context(hooks(context))
                if any(context.weight_gradients for context in self._contexts):
                    stack.enter_context(split_functions)
                try:
                    yield
                finally:
                    self._end()
            for context in self._contexts:
                if context.learning:
                    context.flow.learnt.add(context.grad)
                if context.leaks:
                    context.flow.learnt.discard(context.grad)
                context.parameters.reduce()
        finally:
            for context in self._contexts:
                context.parameters.drop_replicas()

    def _end(self) -> None:
        """Brings forwards that have not ended to their end; from then on `cancel` does nothing."""
        if not all(microbatch.finished for microbatch in self.microbatches):
            self.cancel()
            for microbatch in self.microbatches:
                microbatch.wait_until_ended()
        for microbatch in self.microbatches:
            microbatch.release()
        for context in self._contexts:
            for waiting in context.weight_gradients.values():
                waiting.clear()
        with self._lock:
            self._ended = True
            for handle in self._cancelling:
                handle.remove()

    def forward(self, stage: int, microbatch: int) -> None:
        self.microbatches[microbatch].advance(stage % self._num_stages)

    def backward(self, stage: int, microbatch: int) -> None:
        """The whole backward of one stage: gradients of its inputs into the links, of its weights into `.grad`."""
        self._backward(self.microbatches[microbatch], stage % self._num_stages, None)

    def backward_input(self, stage: int, microbatch: int) -> None:
        """A backward that leaves to `backward_weight` what can be left; the stage must be in the context's `split`.

        It is an ordinary backward of the whole graph, which dies with it.
        """
        run, stage = self.microbatches[microbatch], stage % self._num_stages
        self._backward(run, stage, run.context.weight_gradients[stage, microbatch])

    def backward_weight(self, stage: int, microbatch: int) -> None:
        """The gradients of the weights that `backward_input` left, into `.grad`."""
        context, stage = self.microbatches[microbatch].context, stage % self._num_stages
        with context.writing([stage]):
            context.weight_gradients[stage, microbatch].compute()

    def _backward(self, run: MicroBatch, stage: int, left: WeightGradients | None) -> None:
        if stage not in run.stages:
            return
        context = run.context
        roots, gradients = self._roots(run, stage)
        if roots:
            found = leaks(run, stage, roots, context.parameters)
            with contextlib.ExitStack() as stack:
                stack.enter_context(context.recomputing(stage))
                if found:
                    # Still exact: the backward runs on into the other stage's graph, which must survive for its own
                    # turn. Nothing is left to W, which would write to weights of other stages.
                    run.leaky = True
                    context.leaks += found
                    stack.enter_context(context.writing(range(self._num_stages)))
                elif left is not None:
                    stack.enter_context(left.during(roots))
                torch.autograd.backward(roots, gradients, retain_graph=True if run.leaky else None)
        self._forget(run, stage)

    def cancel(self) -> None:
        """Ends every forward: the parked ones now, the running ones at their next call of a module."""
        with self._lock:
            if self._ended:
                return
            self._cancelling.append(cancel_at_next_call())
        for microbatch in self.microbatches:
            microbatch.cancel()

    def _roots(self, run: MicroBatch, stage: int) -> tuple[list[GradientEdge], list[Tensor]]:
        roots: list[GradientEdge] = []
        gradients: list[Tensor] = []
        for link in run.links:
            if (
                link.source == stage
                and link.sent is not None
                and link.leaf is not None
                and link.leaf.grad is not None
            ):
                run.context.before_transfer(link.leaf.grad, stage)
                assert link.edge is not None  # dropped together with what was sent
                roots.append(link.edge)
                gradients.append(link.leaf.grad.to(link.sent.device))
        root = run.result.root if run.result is not None else None
        if stage == run.stages[-1] and root is not None and root.requires_grad:
            roots.append(get_gradient_edge(root))
            gradients.append(torch.ones_like(root))
        return roots, gradients

    def _forget(self, run: MicroBatch, stage: int) -> None:
        """Drops what this backward was the last to need, so that activations die when they are done."""
        if run.leaky:
            return
        for link in run.links:
            if link.source == stage:
                link.sent = link.leaf = link.edge = None
        if stage == run.stages[-1] and run.result is not None:
            run.result.root = None
