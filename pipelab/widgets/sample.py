"""From a model and a whole batch to a profile at about the size of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelab.core.plan import Plan
from pipelab.core.profile import Profile
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from torch import nn


def batch_size_of(inputs: Any, target: Any) -> int:
    """Samples in the whole batch.

    Raises:
        PipelabError: inputs and target disagree, or there are none.
    """
    from pipelab.runtime.inputs import Args, batch_size

    return batch_size(Args.of(inputs), target)


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
    loss_fn: Callable[..., Any] | None,
    num_microbatches: int,
) -> Profile:
    """Measure the layers where they will be used: a line fitted far from the sizes in question predicts badly."""
    from pipelab.runtime.inputs import enlarge
    from pipelab.runtime.profiling import profile

    size = max(1, batch_size_of(inputs, target) // num_microbatches)
    sample, goal = enlarge(inputs, target, size)
    first = next(model.parameters(), None)
    return profile(model, sample, goal, loss_fn=loss_fn, device="cpu" if first is None else str(first.device))
