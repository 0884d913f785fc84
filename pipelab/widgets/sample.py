"""From a model and a whole batch to a profile at about the size of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelab.core.plan import Plan
from pipelab.core.profile import Profile
from pipelab.errors import PipelabError
from pipelab.planning.batch import Batch
from pipelab.widgets.recipe import Call

if TYPE_CHECKING:
    from torch import nn


BatchDim = int | tuple[int, int, int]


def batch_size_of(inputs: Any, target: Any, batch_dim: BatchDim = 0) -> int:
    """Samples in the whole batch.

    Raises:
        PipelabError: inputs and target disagree, or there are none.
    """
    from pipelab.runtime.batch_dims import BatchDims
    from pipelab.runtime.inputs import Args, batch_size

    return batch_size(Args.of(inputs), target, BatchDims.of(batch_dim))


@dataclass(frozen=True)
class Sample:
    """What a Lab is of.

    Attributes:
        profile: costs of the layers.
        batch_size: samples in the whole batch; None for those of the profile.
        call: how a run is called; None where there is no model.
    """

    profile: Profile
    batch_size: int | None
    call: Call | None

    @classmethod
    def of(
        cls,
        model: nn.Module | Profile,
        inputs: Any,
        target: Any,
        profile: Profile | None,
        batch_size: int | None,
        num_microbatches: int | None,
        **how: Any,
    ) -> Sample:
        """From what a Lab is called with; a model without a profile is measured.

        Raises:
            TypeError: neither a model with a batch nor a profile alone.
        """
        if isinstance(model, Profile):
            _check_alone(inputs=inputs, target=target, loss_fn=how["loss_fn"], profile=profile)
            return cls(model, batch_size, None)
        _check_model(model, inputs, batch_size)
        size = batch_size_of(inputs, target, how["batch_dim"])
        if num_microbatches is not None:
            Batch(size, num_microbatches)  # refused before time is spent on measuring
        if profile is None:
            parts = 8 if num_microbatches is None else num_microbatches
            profile = profile_of_microbatch(model, inputs, target, parts, **how)
        call = Call(target is not None, how["loss_fn"] is not None, how["reduction"], how["batch_dim"])
        return cls(profile, size, call)


def _check_model(model: object, inputs: Any, batch_size: int | None) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TypeError(
            f"A Lab is of a model and a batch, pp.Lab(model, x, y, loss_fn=...), or of a profile, pp.Lab(profile); "
            f"{type(model).__name__} is neither."
        )
    if inputs is None:
        raise TypeError("Lab(model) needs a batch too: pp.Lab(model, x, y, loss_fn=...).")
    if batch_size is not None:
        raise TypeError("batch_size is for a Lab of a profile; with a model it is what the inputs have.")


def _check_alone(**unwanted: Any) -> None:
    given = [name for name, value in unwanted.items() if value is not None]
    if given:
        raise TypeError(
            f"A Lab of a profile runs nothing, so it takes no {given[0]}. Give the model in its place."
        )


def check_fit(model: nn.Module, profile: Profile, plan: Plan) -> None:
    """Refuse what a run would refuse, before anything is shown that could not run.

    Raises:
        PipelabError: the profile is of another model, or a device does not exist here.
    """
    from pipelab.runtime.devices import resolve

    modules = {name for name, _ in model.named_modules()}
    foreign = [name for name in profile.layers if name not in modules]
    if foreign:
        raise PipelabError(
            f"The profile is of another model: {type(model).__name__} has no layer {foreign[0]!r}. "
            f"Leave profile out to measure this one."
        )
    resolve(plan.devices, plan.schedule.num_ranks)


def profile_of_microbatch(
    model: nn.Module,
    inputs: Any,
    target: Any,
    num_microbatches: int,
    *,
    loss_fn: Callable[..., Any] | None,
    reduction: str = "mean",
    batch_dim: BatchDim = 0,
) -> Profile:
    """Measure the layers where they will be used: a line fitted far from the sizes in question predicts badly."""
    from pipelab.runtime.batch_dims import BatchDims
    from pipelab.runtime.inputs import enlarge
    from pipelab.runtime.profiling import profile

    size = max(1, batch_size_of(inputs, target, batch_dim) // num_microbatches)
    sample, goal = enlarge(inputs, target, size, BatchDims.of(batch_dim))
    first = next(model.parameters(), None)
    return profile(
        model,
        sample,
        goal,
        loss_fn=loss_fn,
        reduction=reduction,
        batch_dim=batch_dim,
        device="cpu" if first is None else str(first.device),
    )
