"""What a pipeline is checked against: the user's model itself, run plainly, with everything put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss import Result, loss_call, loss_modules, total_loss
from pipelab.runtime.loss_weights import Weight
from pipelab.runtime.outputs import join
from pipelab.runtime.pipeline import Pipeline
from pipelab.runtime.preserve import preserved
from pipelab.runtime.randomness import seed_generators


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        loss: of the whole batch.
        outputs: of the whole batch, put together.
        gradients: of each parameter of the model and of the loss by name, and of inputs; None where there is none.
    """

    loss: Tensor
    outputs: Any
    gradients: dict[str, Tensor | None]


class Reference:
    """Runs of the user's model without a pipeline, on one device.

    The model itself runs, not a copy: a loss may close over it, parameters may have hooks, and not every model can be
    copied. Where the stages lie on several devices, its weights are gathered on the last one's for as long as a
    run takes.

    Args:
        pipe: the pipeline whose model, loss and random state are used.
        batch: the data, cut as the pipeline cuts it.
        weights: of the micro-batches.
    """

    def __init__(self, pipe: Pipeline, batch: Batch, weights: list[Weight]) -> None:
        self._pipe, self._batch, self._weights = pipe, batch, weights
        self._device = pipe._cut.devices[-1]  # where the loss's own parameters are
        self.roots = [pipe.model, *loss_modules(pipe.loss_fn)]

    def leaves(self) -> dict[str, Tensor]:
        """What has gradients: the parameters of the model by name, those that only the loss has, and inputs."""
        named: dict[str, Tensor] = dict(self._pipe.model.named_parameters())
        known = set(map(id, named.values()))
        for number, module in enumerate(self.roots[1:]):
            prefix = "loss_fn" if number == 0 else f"loss_fn ({number})"
            for name, parameter in module.named_parameters(prefix=prefix):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    named[name] = parameter
        for number, leaf in enumerate(self._batch.wanting_gradients()):
            if id(leaf) not in known:
                named[f"input {number}"] = leaf
        return named

    def whole(self, weight: Weight) -> Outcome:
        """The whole batch at once."""
        with self._alone():
            result = self._call(self._batch.whole(), 0, weight)
            return Outcome(total_loss([result], [weight]), result.outputs, self._gradients())

    def accumulated(self) -> Outcome:
        """Plain gradient accumulation over the same micro-batches, with the random state of the pipeline's step."""
        with self._alone():
            results = []
            for index, weight in enumerate(self._weights):
                with self._seeded(index):
                    results.append(self._call(self._batch, index, weight))
            outputs = join([r.outputs for r in results], self._batch.sizes, self._batch.output_dims)
            return Outcome(total_loss(results, self._weights), outputs, self._gradients())

    def losses_in_evaluation(self, whole: Weight) -> tuple[Tensor, Tensor]:
        """The loss from the micro-batches' weighed losses, and from the whole batch, without dropout."""
        with self._alone(), _evaluating(self._pipe.model), torch.no_grad():
            at_once = total_loss([self._call(self._batch.whole(), 0, whole)], [whole])
            results = [self._call(self._batch, i, weight) for i, weight in enumerate(self._weights)]
            return total_loss(results, self._weights), at_once

    def _call(self, batch: Batch, index: int, weight: Weight) -> Result:
        pipe = self._pipe
        devices = [self._device] * pipe.split.num_stages
        result = loss_call(pipe.model, pipe.loss_fn, batch, index, weight, devices, None, True)(lambda: 0)
        if result.counts and result.root is not None and result.root.requires_grad:
            result.root.backward()
        result.root = None
        return result

    def _gradients(self) -> dict[str, Tensor | None]:
        return {name: leaf.grad for name, leaf in self.leaves().items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (
            preserved(*self.roots, inputs=self._batch.wanting_gradients(), gradient_hooks=True),
            _gathered(self.roots, self._device),
        ):
            yield

    @contextmanager
    def _seeded(self, microbatch: int) -> Iterator[None]:
        """The random state that the pipeline gave each stage of this micro-batch, where the stage begins."""
        pipe, randomness = self._pipe, self._pipe._cut.randomness
        if not randomness.drawing_stages:
            yield
            return
        begun: set[int] = set()

        def begin(stage: int) -> None:
            if stage not in begun and stage in (0, *randomness.drawing_stages):
                begun.add(stage)
                seed_generators(randomness.seed, stage, microbatch, self._device)

        handles = [
            pipe.model.get_submodule(name).register_forward_pre_hook(
                lambda _m, _a, stage=stage: begin(stage),  # type: ignore[misc]
                prepend=True,
            )
            for stage, name in enumerate(pipe.split.cuts, start=1)
        ]
        begin(0)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def same_generator(devices: Iterable[torch.device]) -> bool:
    """Whether stages on these devices draw the same numbers from the same seed."""
    return len({device.type for device in devices}) == 1


@contextmanager
def _gathered(roots: list[nn.Module], device: torch.device) -> Iterator[None]:
    """All weights on one device for a while; afterwards they are where, and what, they were."""
    tensors = [tensor for root in roots for tensor in (*root.parameters(), *root.buffers())]
    away = [(tensor, tensor.data) for tensor in tensors if tensor.device != device]
    try:
        for tensor, data in away:
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in away:
            tensor.grad = None  # it lies on the other device; who needs it has it
            tensor.data = data


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
