"""A model cut in stages by suspending its own forward: what the engine's actions do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from pipelab.runtime.context import StepContext, check_entered
from pipelab.runtime.deferral import WeightGradients, split_functions
from pipelab.runtime.guard import leaks
from pipelab.runtime.interception import cancel_at_next_call, hooks
from pipelab.runtime.kept import owned_by
from pipelab.runtime.loss import Call
from pipelab.runtime.microbatch import MicroBatch
from pipelab.runtime.weight_share import share_notes


class SuspendedStages:
    """The stages of one step, as the engine knows them.

    The engine's stage ids count through all copies of the model (replica chains, older versions of the weights);
    a micro-batch stays on one copy and knows the model's own stages alone.

    Args:
        contexts: what the step's micro-batches share, one for each copy of the model; the user's model comes first.
        calls: for each micro-batch a function that runs the model and the loss in the micro-batch's thread. What
            it returns has `root`, the tensor where the backward begins, or None.
        copies: the context of each micro-batch.

    Attributes:
        notes: what must be known to judge the times of the step, once it has run.
    """

    def __init__(self, contexts: Sequence[StepContext], calls: Sequence[Call], copies: Sequence[int]) -> None:
        self._contexts = contexts
        self._num_stages = len(contexts[0].cuts) + 1
        self.microbatches = [
            MicroBatch(contexts[copy], index, call)
            for index, (call, copy) in enumerate(zip(calls, copies, strict=True))
        ]
        self.notes: tuple[str, ...] = ()
        self._cancelling: list[RemovableHandle] = []
        self._ended = False
        self._lock = threading.RLock()  # `cancel` may be called in a signal handler, in the middle of itself

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a step: hooks on, and at the end nothing is left behind, whatever happened."""
        try:
            with contextlib.ExitStack() as stack:
                for context in self._contexts:
                    stack.enter_context(context.keeping_apart())
                    stack.enter_context(context.dropping_activations())
                    stack.enter_context(hooks(context))
                if any(context.weight_gradients for context in self._contexts):
                    stack.enter_context(split_functions)
                try:
                    yield
                finally:
                    self._end()
            check_entered(self._contexts)
            for context in self._contexts:
                context.kept_values.check()
                context.kept_values.settle()
                if context.learning:
                    context.flow.learnt.add(context.grad)
                if context.leaks:
                    context.flow.learnt.discard(context.grad)
                self.notes = tuple(dict.fromkeys([*self.notes, *share_notes(context, self.microbatches)]))
                context.parameters.reduce()
        except BaseException:
            for microbatch in self.microbatches:
                microbatch.result = None  # whoever keeps the error keeps the micro-batches
            raise
        finally:
            for context in self._contexts:
                context.kept_values.clear()
                context.parameters.drop_replicas()

    @property
    def models(self) -> list[nn.Module]:
        """The user's model and its copies."""
        return [context.model for context in self._contexts]

    def follow(self, births: Callable[[MicroBatch], contextlib.AbstractContextManager[Any]]) -> None:
        """Makes each forward run inside `births(microbatch)`, in its thread."""
        for context in self._contexts:
            context.births = births

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
        left = run.context.weight_gradients[stage, microbatch]
        self._backward(run, stage, left)
        run.context.note_left(stage, left)

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
                context.thread_state.enter_backward(stack)
                stack.enter_context(context.recomputing(run))
                if context.kept_values.in_use:
                    stack.enter_context(owned_by(run))
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
                assert link.edge is not None  # dropped together with what was sent
                roots.append(link.edge)
                with run.context.copying(link.leaf.grad, stage):
                    gradients.append(link.leaf.grad.to(link.sent.device))
        root = run.result.root if run.result is not None and run.result.counts else None
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
        if stage == 0:
            run.context.kept_values.ended(run)
