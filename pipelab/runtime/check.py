"""Does the pipeline compute what the whole model computes? Run both and compare every gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from pipelab.core.quantities import counted
from pipelab.errors import PipelabError
from pipelab.runtime.cautions import batchnorms
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss import own_loss
from pipelab.runtime.loss_weights import LossWeight, weigh
from pipelab.runtime.outputs import sample_dim
from pipelab.runtime.pipeline import Pipeline
from pipelab.runtime.preserve import preserved
from pipelab.runtime.reference import Outcome, Reference, same_generator

# (relative, absolute) per precision: fp64 shows the algorithm, fp32 what summing in another order changes.
_TOLERANCES = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (1e-3, 1e-5),
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (2e-2, 2e-2),
    torch.complex128: (1e-12, 1e-13),
    torch.complex64: (1e-3, 1e-5),
}
_WHOLE = "the whole model on the whole batch"
_EQUAL_TO_ACCUMULATION = (
    "The pipeline does equal plain gradient accumulation over the same micro-batches: the losses of the micro-batches "
    "do not make up the loss of the whole batch (see reduction, loss_weight and batch_dim), or a sample's output "
    "depends on the other samples."
)


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from the reference.

    Attributes:
        name: of the parameter, or "loss" or "outputs".
        absolute: the largest absolute difference.
        relative: the largest difference relative to the largest value of the reference.
        excess: the largest difference in units of what is allowed; above 1 is wrong.
        is_gradient: whether it is of a parameter.
    """

    name: str
    absolute: float
    relative: float
    excess: float
    is_gradient: bool = False


@dataclass(frozen=True)
class GradientCheck:
    """True when loss, outputs and every gradient equal the whole model's.

    Attributes:
        differences: for the loss, the outputs, and each parameter, worst first.
        reference: what was compared with.
        notes: what else to know.
    """

    differences: tuple[Difference, ...] = field(repr=False)
    reference: str
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> Difference:
        return self.differences[0]

    def __bool__(self) -> bool:
        return self.worst.excess <= 1

    def __str__(self) -> str:
        count = sum(difference.is_gradient for difference in self.differences)
        worst, notes = self.worst, "".join(f"\n{note}" for note in self.notes)
        if self:
            verdict = f"equal: loss, outputs and the gradients of {count} parameters match {self.reference}"
            largest = (
                f"largest difference {worst.absolute:.2e} (relative {worst.relative:.2e}) in {worst.name}"
            )
            return f"{verdict}\n{largest}{notes}"
        wrong = [difference for difference in self.differences if not difference.excess <= 1]
        shown = "\n".join(f"  {d.name}: {d.absolute:.2e} (relative {d.relative:.2e})" for d in wrong[:5])
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return f"DIFFERENT from {self.reference}; worst first:\n{shown}{more}{notes}"

    __repr__ = __str__


def check_gradients(
    pipe: Pipeline, inputs: Any, target: Any = None, *, loss_weight: LossWeight = None
) -> GradientCheck:
    """Runs a step of the pipeline and the model itself without it, and compares loss, outputs and every gradient.

    The reference sees the whole batch at once. With BatchNorm in training, or with dropout, that is another
    computation; then the reference is plain gradient accumulation over the same micro-batches, with the same random
    state where a stage begins; and whether the micro-batches' losses make up the loss of the whole batch is checked by
    itself, in evaluation mode. Gradients (the loss's too), buffers, attributes and random state are put back. The
    model must fit on the last stage's device.

    Args:
        pipe: an open pipeline.
        inputs: as for `Pipeline.step`.
        target: as for `Pipeline.step`.
        loss_weight: as for `Pipeline.step`.

    Returns:
        A value that is true or false and names the worst parameter.

    Raises:
        PipelabError: the step itself changes weights, or dropout runs on a GPU and on the CPU, so that nothing can
            be compared.
    """
    if not isinstance(pipe, Pipeline):
        raise TypeError(
            f"check_gradients() takes a Pipeline, not {type(pipe).__name__}: check_gradients(pipe, x, y)."
        )
    batch = Batch.cut(inputs, target, pipe.schedule.num_microbatches, pipe.batch_dims)
    weights = weigh(batch, pipe.reduction, loss_weight)
    (whole,) = weigh(batch.whole(), pipe.reduction, loss_weight)
    reference = Reference(pipe, batch, weights)
    leaves = reference.leaves()
    versions = {name: leaf._version for name, leaf in leaves.items()}
    with preserved(*reference.roots, inputs=batch.wanting_gradients(), gradient_hooks=True):
        step = pipe.step(inputs, target, loss_weight=loss_weight)
        ours = Outcome(step.loss, step.outputs, {name: leaf.grad for name, leaf in leaves.items()})
        _refuse_changes(leaves, versions)
    drawing = pipe._cut.randomness.drawing_stages
    if drawing and not same_generator(pipe._cut.devices):
        raise PipelabError(
            "Dropout draws other numbers on a GPU than on the CPU, and the stages lie on both, so no plain run is the "
            "same. Check with model.eval(), or with all stages on one kind of device."
        )
    if drawing or batchnorms(pipe.model):
        why = "dropout draws per micro-batch" if drawing else "BatchNorm's statistics are per micro-batch"
        name = f"plain gradient accumulation of the whole model ({why})"
        weighing = _compare(
            "loss of the whole batch (reduction, loss_weight or batch_dim)",
            *reference.losses_in_evaluation(whole),
        )
        return _verdict(ours, reference.accumulated(), name, None, [weighing])
    result = _verdict(ours, reference.whole(whole), _WHOLE, batch)
    if not result and _verdict(ours, reference.accumulated(), "", None):
        return dataclasses.replace(result, notes=(*result.notes, _EQUAL_TO_ACCUMULATION))
    return result


def _refuse_changes(leaves: dict[str, Tensor], versions: dict[str, int]) -> None:
    changed = [name for name, leaf in leaves.items() if leaf._version != versions[name]]
    if changed:
        raise PipelabError(
            f"The step changed the weights themselves, {changed[0]!r} for one, so its gradients cannot be compared "
            f"with another run's. Take off what does so, such as an optimizer in a hook."
        )


def _verdict(
    ours: Outcome, theirs: Outcome, reference: str, batch: Batch | None, more: list[Difference] | None = None
) -> GradientCheck:
    """Compares two runs.

    Args:
        ours, theirs: the pipeline's and the reference's.
        reference: what the second is.
        batch: given if the reference saw the whole batch at once: then only what is per sample compares.
        more: further differences.
    """
    found = [_compare("loss", ours.loss, theirs.loss), *(more or [])]
    left_out = []
    for name, mine, other in _pairs(ours.outputs, theirs.outputs):
        if not isinstance(other, Tensor):
            continue
        if batch is None or sample_dim([other], (batch.size,), batch.output_dims) is not None:
            found.append(
                _compare("outputs", mine, other) if isinstance(mine, Tensor) else _unlike("outputs", False)
            )
        elif other is not own_loss(theirs.outputs) or not torch.equal(
            other.reshape(-1), theirs.loss.reshape(-1)
        ):
            left_out.append(name)
    scale = max((_largest(g) for g in theirs.gradients.values() if g is not None), default=0.0)
    for name, other in theirs.gradients.items():
        mine = ours.gradients[name]
        if mine is not None or other is not None:
            found.append(_compare_gradients(name, mine, other, scale, theirs.loss.dtype))
    notes = (_not_compared(left_out),) if left_out else ()
    return GradientCheck(tuple(sorted(found, key=lambda d: -_order(d.excess))), reference, notes)


def _not_compared(names: list[str]) -> str:
    one = len(names) == 1
    named = f": {', '.join(repr(name) for name in names)}" if all(names) else ""
    rest = f"{'is' if one else 'are'} not one per sample and {'was' if one else 'were'} not compared{named}."
    return f"{counted(len(names), 'output')} {rest}"


def _pairs(ours: Any, reference: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of the reference's outputs, each with its name and beside what the pipeline has in its place.

    A name is the key of a dictionary or the field of a dataclass, the outermost; "" where there is none.
    """
    leaves, spec = tree_flatten(reference)
    names = [name] * len(leaves)
    if isinstance(reference, Mapping) and not name:
        keys = [str(key) for key, value in reference.items() for _ in tree_leaves(value)]
        names = keys if len(keys) == len(leaves) else names
    try:
        mine = spec.flatten_up_to(ours)
    except ValueError:  # another structure
        mine = [None] * len(leaves)
    for outer, a, b in zip(names, mine, leaves, strict=True):
        if dataclasses.is_dataclass(b) and not isinstance(b, type):
            for field_name in (f.name for f in dataclasses.fields(b)):
                yield from _pairs(getattr(a, field_name, None), getattr(b, field_name), outer or field_name)
        else:
            yield outer, a, b


def _compare_gradients(
    name: str, ours: Tensor | None, reference: Tensor | None, scale: float, of_loss: torch.dtype
) -> Difference:
    """No gradient and a gradient of zeros are the same update."""
    given = ours if ours is not None else reference
    assert given is not None
    zeros = torch.zeros_like(given)
    a, b = zeros if ours is None else ours, zeros if reference is None else reference
    return _compare(name, a, b, scale, (of_loss,), is_gradient=True)


def _compare(
    name: str,
    ours: Tensor,
    reference: Tensor,
    scale: float | None = None,
    passed: tuple[torch.dtype, ...] = (),
    is_gradient: bool = False,
) -> Difference:
    """How far one tensor is from another.

    Args:
        name: of what is compared.
        ours, reference: the pipeline's tensor and the other one.
        scale: what the absolute tolerance is a part of: the largest of all gradients, since one that is zero but for
            rounding has no size of its own. None: the largest value of the reference.
        passed: precisions that the numbers went through.
        is_gradient: whether it is one.
    """
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return _unlike(name, is_gradient)
    relative, absolute = _tolerance(ours.dtype, passed)
    a, b = _numbers(ours), _numbers(reference)
    if not a.numel():
        return Difference(name, 0.0, 0.0, 0.0, is_gradient)
    distance = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities too
    largest = _largest(reference)
    allowed = relative * largest + absolute * (largest if scale is None else scale)
    worst = float(distance.max())
    return Difference(
        name,
        worst,
        worst / largest if largest else (0.0 if worst == 0 else float("inf")),
        worst / allowed if allowed else (0.0 if worst == 0 else float("inf")),
        is_gradient,
    )


def _tolerance(dtype: torch.dtype, passed: tuple[torch.dtype, ...]) -> tuple[float, float]:
    """Relative and absolute. Numbers are no more precise than what made them: autocast, a loss of low precision."""
    if dtype not in _TOLERANCES:
        return 0.0, 0.0
    autocast = [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return max(_TOLERANCES[kind] for kind in (dtype, *passed, *autocast) if kind in _TOLERANCES)


def _numbers(tensor: Tensor) -> Tensor:
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    real = torch.view_as_real(dense) if dense.is_complex() else dense
    return real.cpu().double()


def _largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    numbers = _numbers(tensor).abs()
    numbers = numbers[numbers.isfinite()]
    return float(numbers.max()) if numbers.numel() else 0.0


def _unlike(name: str, is_gradient: bool) -> Difference:
    return Difference(name, float("inf"), float("inf"), float("inf"), is_gradient)


def _order(excess: float) -> float:
    return float("inf") if excess != excess else excess  # NaN is the worst
