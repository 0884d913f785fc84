"""Does the pipeline compute what the whole model computes? Run both and compare every gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from pipelab.runtime.inputs import Batch, LossWeight
from pipelab.runtime.loss import Result, loss_call
from pipelab.runtime.outputs import join
from pipelab.runtime.pipeline import Pipeline
from pipelab.runtime.preserve import preserved
from pipelab.runtime.randomness import seed_generators

# (relative, absolute) per precision: fp64 shows the algorithm, fp32 what summing in another order changes.
_TOLERANCES = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (1e-3, 1e-5),
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (2e-2, 2e-2),
}


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from the reference.

    Attributes:
        name: of the parameter, or "loss" or "outputs".
        absolute: the largest absolute difference.
        relative: the largest difference relative to the largest value of the reference.
        excess: the largest difference in units of what is allowed; above 1 is wrong.
    """

    name: str
    absolute: float
    relative: float
    excess: float

    @property
    def is_gradient(self) -> bool:
        """Whether it is of a parameter."""
        return self.name != "outputs" and not self.name.startswith("loss")


@dataclass(frozen=True)
class GradientCheck:
    """True when loss, outputs and every gradient equal the whole model's.

    Attributes:
        differences: for the loss, the outputs, and each parameter, worst first.
        reference: what was compared with.
    """

    differences: tuple[Difference, ...] = field(repr=False)
    reference: str

    @property
    def worst(self) -> Difference:
        return self.differences[0]

    def __bool__(self) -> bool:
        return self.worst.excess <= 1

    def __str__(self) -> str:
        count = sum(difference.is_gradient for difference in self.differences)
        worst = self.worst
        if self:
            verdict = f"equal: loss, outputs and the gradients of {count} parameters match {self.reference}"
            return f"{verdict}\nlargest difference {worst.absolute:.2e} (relative {worst.relative:.2e}) in {worst.name}"
        wrong = [difference for difference in self.differences if not difference.excess <= 1]
        shown = "\n".join(f"  {d.name}: {d.absolute:.2e} (relative {d.relative:.2e})" for d in wrong[:5])
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return f"DIFFERENT from {self.reference}; worst first:\n{shown}{more}"

    __repr__ = __str__


def check_gradients(
    pipe: Pipeline, inputs: Any, target: Any = None, *, loss_weight: LossWeight = None
) -> GradientCheck:
    """Runs a step of the pipeline and the whole model on a copy, and compares loss, outputs and every gradient.

    The reference sees the whole batch at once. With BatchNorm in training, or with dropout, that is another
    computation; then the reference is plain gradient accumulation over the same micro-batches, with the same random
    state where a stage begins; and whether the micro-batches' losses make up the loss of the whole batch is checked by
    itself, in evaluation mode. Gradients, buffers and random state are put back.

    Args:
        pipe: an open pipeline.
        inputs: as for `Pipeline.step`.
        target: as for `Pipeline.step`.
        loss_weight: as for `Pipeline.step`.

    Returns:
        A value that is true or false and names the worst parameter.
    """
    if not isinstance(pipe, Pipeline):
        raise TypeError(
            f"check_gradients() takes a Pipeline, not {type(pipe).__name__}: check_gradients(pipe, x, y)."
        )
    model = pipe.model
    with preserved(model):
        copied = copy.deepcopy(model)
        step = pipe.step(inputs, target, loss_weight=loss_weight)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        batch = Batch.cut(inputs, target, pipe.schedule.num_microbatches)
        device = pipe._cut.devices[0]
        copied.to(device)
        drawing = pipe._cut.randomness.drawing_stages
        batch_norm = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
        if drawing or batch_norm:
            why = "dropout draws per micro-batch" if drawing else "BatchNorm's statistics are per micro-batch"
            reference = f"plain gradient accumulation of the whole model ({why})"
            weights = batch.weights(pipe.reduction, loss_weight)
            weighing = _weighing(pipe, copied, batch, weights, device)
            loss, outputs = _accumulate(pipe, copied, batch, weights, device, reseed=bool(drawing))
        else:
            reference = "the whole model on the whole batch"
            weighing = []  # the whole batch's loss is the reference itself
            loss, outputs = _whole(pipe, copied, inputs, target, device)
        found = [_compare("loss", step.loss, loss), *weighing, *_compare_outputs(step.outputs, outputs)]
        for name, parameter in copied.named_parameters():
            found.append(
                _compare(name, _or_zeros(gradients[name], parameter), _or_zeros(parameter.grad, parameter))
            )
    return GradientCheck(tuple(sorted(found, key=lambda d: -_order(d.excess))), reference)


def _whole(
    pipe: Pipeline, model: nn.Module, inputs: Any, target: Any, device: torch.device
) -> tuple[Tensor, Any]:
    batch = Batch.cut(inputs, target, 1)
    result = loss_call(model, pipe.loss_fn, batch, 0, 1.0, [device] * pipe.split.num_stages, None, True)(
        lambda: 0
    )
    return _backward(result), result.outputs


def _accumulate(
    pipe: Pipeline,
    model: nn.Module,
    batch: Batch,
    weights: tuple[float, ...],
    device: torch.device,
    reseed: bool,
) -> tuple[Tensor, Any]:
    total, outputs = torch.zeros((), dtype=torch.float64), []
    for index, weight in enumerate(weights):
        call = loss_call(
            model, pipe.loss_fn, batch, index, weight, [device] * pipe.split.num_stages, None, True
        )
        with _seeded(pipe, model, index, device) if reseed else _unseeded():
            result = call(lambda: 0)
        total += _backward(result).double().cpu() * weight
        outputs.append(result.outputs)
    return total, join(outputs, batch.sizes)


def _weighing(
    pipe: Pipeline, model: nn.Module, batch: Batch, weights: tuple[float, ...], device: torch.device
) -> list[Difference]:
    """Do the weighed losses of the micro-batches make up the whole batch's? Asked where both are comparable."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    devices = [device] * pipe.split.num_stages

    def loss_of(part: Batch, index: int) -> Tensor:
        result = loss_call(model, pipe.loss_fn, part, index, 1.0, devices)(lambda: 0)
        assert result.loss is not None
        return result.loss

    with torch.no_grad():
        whole = loss_of(Batch(batch.inputs, batch.target, (batch.size,)), 0)
        parts = torch.stack([loss_of(batch, index) * weight for index, weight in enumerate(weights)]).sum()
    for module, training in flags:
        module.training = training
    return [_compare("loss of the whole batch (reduction or loss_weight)", parts, whole)]


def _backward(result: Result) -> Tensor:
    """Runs the backward of a call that had a loss; returns that loss."""
    assert result.root is not None and result.loss is not None
    result.root.backward()
    return result.loss


@contextmanager
def _unseeded() -> Iterator[None]:
    yield


@contextmanager
def _seeded(pipe: Pipeline, model: nn.Module, microbatch: int, device: torch.device) -> Iterator[None]:
    """The random state that the pipeline gave each stage of this micro-batch, where the stage begins."""
    randomness = pipe._cut.randomness
    begun: set[int] = set()

    def begin(stage: int) -> None:
        if stage not in begun and stage in (0, *randomness.drawing_stages):
            begun.add(stage)
            seed_generators(randomness.seed, stage, microbatch, device)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _m, _a, stage=stage: begin(stage), prepend=True
        )  # type: ignore[misc]
        for stage, name in enumerate(pipe.split.cuts, start=1)
    ]
    begin(0)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare_outputs(ours: Any, reference: Any) -> list[Difference]:
    mine, theirs = tree_leaves(ours), tree_leaves(reference)
    if len(mine) != len(theirs):
        return [Difference("outputs", float("inf"), float("inf"), float("inf"))]
    pairs = zip(mine, theirs, strict=True)
    found = [_compare("outputs", a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return [max(found, key=lambda d: _order(d.excess))] if found else []


def _compare(name: str, ours: Tensor, reference: Tensor) -> Difference:
    if ours.shape != reference.shape:
        return Difference(name, float("inf"), float("inf"), float("inf"))
    relative, absolute = _TOLERANCES.get(ours.dtype, (0.0, 0.0))
    a, b = ours.detach().double().cpu(), reference.detach().double().cpu()
    if not a.numel():
        return Difference(name, 0.0, 0.0, 0.0)
    distance = (a - b).abs()
    excess = distance / (absolute + relative * b.abs().max()) if relative else distance.ne(0).double() * 2
    return Difference(
        name,
        float(distance.max()),
        float(distance.max() / b.abs().max().clamp_min(1e-300)),
        float(excess.max()),
    )


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """No gradient and a gradient of zeros are the same update."""
    return torch.zeros_like(parameter) if gradient is None else gradient


def _order(excess: float) -> float:
    return float("inf") if excess != excess else excess  # NaN is the worst
