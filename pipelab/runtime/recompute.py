"""Activations that are dropped after a stage's forward and computed again in its backward.

    F   x --[ module ]--> y          kept: x alone
    B   x --[ module ]               again, for what its gradients need; then the gradients

What runs again are whole modules that lie in one stage, with nothing inside that was handed a value of another stage:
each goes through torch's checkpoint, and its `forward` is wrapped while a step runs. The second forward draws the same
random numbers, and leaves the running statistics of its norms alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from pipelab.errors import PipelabError
from pipelab.runtime.compiled import is_compiled
from pipelab.runtime.deferral import InCheckpoint
from pipelab.runtime.held import NOTHING
from pipelab.runtime.interception import current

if TYPE_CHECKING:
    from pipelab.runtime.context import StepContext
    from pipelab.runtime.cut_model import CutModel
    from pipelab.runtime.microbatch import MicroBatch

_MOST_NAMES = 4


def recomputed_stages(recompute: str | Sequence[int], num_stages: int) -> frozenset[int]:
    """The stages that a person means by "none", "all" or a list.

    Raises:
        PipelabError: a stage that there is not, or another word.
        TypeError: neither a word nor a list of stages.
    """
    if isinstance(recompute, str):
        if recompute not in ("none", "all"):
            raise PipelabError(f"recompute is {recompute!r}; it must be 'none', 'all' or a list of stages.")
        return frozenset(range(num_stages)) if recompute == "all" else frozenset()
    if not isinstance(recompute, Collection) or not all(type(stage) is int for stage in recompute):
        raise TypeError(
            f"recompute must be 'none', 'all' or a list of stages such as [0, 1], not {recompute!r}."
        )
    for stage in recompute:
        if not 0 <= stage < num_stages:
            raise PipelabError(f"recompute names stage {stage}, but the stages are 0 to {num_stages - 1}.")
    return frozenset(recompute)


class Recompute:
    """Which modules of a pipeline run again in the backward.

    Args:
        cut_model: the user's model, and what is learnt about it.
        stages: those whose activations are dropped.
    """

    def __init__(self, cut_model: CutModel, stages: frozenset[int]) -> None:
        self.stages = stages
        self._cut_model = cut_model
        self._names: list[str] = []  # of the modules that run again, the same in every copy of the model
        self._notes: list[str] = []
        self._known: tuple[int, ...] = ()
        self._counted = False

    @property
    def wants_rehearsal(self) -> bool:
        """Whether a micro-batch must show first what can run again, so that no whole step keeps everything."""
        return bool(self.stages) and not self._cut_model.flow.rehearsed

    @property
    def notes(self) -> tuple[str, ...]:
        """For each stage what runs again and what does not, with the reason; known after a first step."""
        if not self.wants_rehearsal:
            self._choose()
        return tuple(self._notes)

    @contextlib.contextmanager
    def wrapped(self, context: StepContext) -> Iterator[None]:
        """While a step runs: the forwards of the chosen modules are wrapped. In a rehearsal nothing is known yet."""
        if not self.stages or self.wants_rehearsal or not context.grad:
            yield
            return
        self._choose()
        context.counting = context.counting or not self._counted
        before = []
        try:
            for name in self._names:
                module = context.model.get_submodule(name)
                before.append((vars(module), vars(module).get("forward", NOTHING)))
                vars(module)["forward"] = _run_again(module, module.forward, context)
            yield
            self._check_draws(context)
            self._counted = True
        finally:
            for attributes, forward in before:
                if forward is NOTHING:
                    attributes.pop("forward", None)
                else:
                    attributes["forward"] = forward

    def _check_draws(self, context: StepContext) -> None:
        """Refuses a step in which a stage drew random numbers that had not been looked at for it.

        Raises:
            PipelabError: says that the next step is right.
        """
        if self._names and context.randomness.strayed:
            raise PipelabError(
                "A stage drew random numbers that had drawn none in earlier steps, and modules whose activations are "
                "recomputed may have drawn others the second time. Nothing is left of this step; in the next one every "
                "stage is looked at again."
            )

    # -- which modules ------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Takes the largest modules that can run again, from what was learnt last."""
        amount = (*self._cut_model.flow.amount, len(self._cut_model.kept_values.names))
        if self._known == amount:
            return
        self._known = amount
        self._names = []
        chosen: dict[int, list[str]] = {stage: [] for stage in sorted(self.stages)}
        left_out: dict[int, dict[str, list[str]]] = {stage: {} for stage in sorted(self.stages)}
        seen: set[nn.Module] = set()

        def visit(name: str, module: nn.Module) -> None:
            if module in seen:
                return
            seen.add(module)
            stages = sorted(self._cut_model.flow.called_in.get(module, set()))
            if stages and self.stages.intersection(stages) and _is_worth_it(module):
                why_not = self._why_not(module, stages)
                if why_not is None:
                    self._names.append(name)
                    chosen[stages[0]].append(name or "the model")
                    return
                if why_not:
                    for stage in self.stages.intersection(stages):
                        left_out[stage].setdefault(why_not, []).append(name or "the model")
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}" if name else child_name, child)

        visit("", self._cut_model.model)
        self._notes = [_note(stage, chosen[stage], left_out[stage]) for stage in chosen]

    def _why_not(self, module: nn.Module, stages: list[int]) -> str | None:
        """Why a module cannot run again as a whole; "" where its parts may; None if it can."""
        flow, cuts = self._cut_model.flow, self._cut_model.cuts
        inside = list(module.modules())
        below = inside[1:]
        if any(part in cuts for part in below):
            return ""  # other stages begin in it
        if module in flow.noisy or any(part in flow.noisy or part in flow.sites for part in below):
            return "a value or a weight of another stage is used in it"
        if len(stages) > 1:
            return "called in several stages"
        if module in flow.checkpointed:
            return "inside a checkpoint of the model's own"
        if module in flow.changing:
            return "what it is handed is changed in place"
        if any(part in flow.writing and not isinstance(part, _NormBase) for part in inside):
            return "a buffer or a container is written to, which would happen twice"
        if not self._cut_model.kept_values.owners.isdisjoint(inside):
            return "attributes are set, which would happen twice"
        if any(part._forward_hooks or part._forward_pre_hooks for part in below):
            return "hooks inside it would run twice"
        if is_compiled(module):
            return "compiled as a whole"
        return None


def _is_worth_it(module: nn.Module) -> bool:
    """Not so for a single layer of torch's: what it keeps is mostly what it was handed."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return True
    return next(module.children(), None) is not None or not type(module).__module__.startswith("torch.nn.")


def _note(stage: int, chosen: list[str], left_out: dict[str, list[str]]) -> str:
    if not chosen:
        again = "nothing runs again, since no module of several layers lies in it whole"
    else:
        again = f"{_named(chosen)} {'run' if len(chosen) > 1 else 'runs'} again in the backward"
    reasons = [f"{_named(names)} ({why})" for why, names in left_out.items()]
    return f"Stage {stage}: {again}." + (f" Not so {'; '.join(reasons)}." if reasons else "")


def _named(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


# -- how they run again -----------------------------------------------------------------------------------------


def _run_again(module: nn.Module, forward: Callable[..., Any], context: StepContext) -> Callable[..., Any]:
    """The module's forward through torch's checkpoint."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        microbatch = current()
        if microbatch is None or microbatch.context is not context or microbatch.recomputed:
            return forward(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        given = [(args, kwargs)]  # for the first time the very objects; a list that is filled is the caller's

        def run(*leaves: Any) -> Any:
            args, kwargs = given.pop() if given else tree_unflatten(list(leaves), spec)
            return forward(*args, **kwargs)

        microbatch.recomputed = True
        try:
            return checkpoint(
                run,
                *leaves,
                use_reentrant=False,
                preserve_rng_state=False,  # the generators are the process's: see _Draws
                context_fn=lambda: _both_times(microbatch, norms),
            )
        except RuntimeError as error:
            if not isinstance(error.__cause__, StopIteration):
                raise
            stop = error.__cause__  # torch's checkpoint is a generator, which makes an error of its own of it
        finally:
            microbatch.recomputed = False
        try:
            raise stop
        finally:
            del stop  # or it and this frame would keep each other, and the step's tensors, alive

    return wrapped


def _both_times(
    microbatch: MicroBatch, norms: Sequence[nn.Module]
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """What is around the first and the second forward."""
    context = microbatch.context
    store = context.weight_gradients.get((microbatch.stage, microbatch.index))
    first: list[contextlib.AbstractContextManager[Any]] = [InCheckpoint(store)]
    second: list[contextlib.AbstractContextManager[Any]] = [
        InCheckpoint(store),
        _statistics_left_alone(norms),
    ]
    if context.randomness.may_draw(microbatch.stage):
        draws = _Draws(microbatch, context.stage_device(microbatch.stage))
        first.append(draws.first())
        second.insert(0, draws.second())
    return _together(*first), _together(*second)


@contextlib.contextmanager
def _together(*contexts: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in contexts:
            stack.enter_context(each)
        yield


class _Draws:
    """The state of the generators when a module ran first; it is put back for the second time."""

    def __init__(self, microbatch: MicroBatch, device: torch.device) -> None:
        self._microbatch = microbatch
        self._device = device
        self._states: list[torch.Tensor] = []

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        self._states = self._now()
        yield

    @contextlib.contextmanager
    def second(self) -> Iterator[None]:
        """Alone at the generators: no stage may draw in the meantime."""
        lock = (
            contextlib.nullcontext() if self._microbatch.alone else self._microbatch.context.randomness.lock
        )
        with lock:
            before = self._now()
            self._set(self._states)
            try:
                yield
            finally:
                self._set(before)

    def _now(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)


@contextlib.contextmanager
def _statistics_left_alone(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Norms in training use the statistics of the batch, and count them into copies that nobody sees."""
    counting = [norm._buffers for norm in norms if norm.training]
    before = [dict(buffers) for buffers in counting]
    for buffers in counting:
        buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for buffers, own in zip(counting, before, strict=True):
            buffers.update(own)
