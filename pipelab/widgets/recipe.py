"""A setting of the Lab as lines of code that make the same plan and run it: what a person takes along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelab.core.costs import Costs
from pipelab.core.plan_code import devices_code, schedule_code
from pipelab.widgets.setting import Setting, is_searched

_COSTS = ("forward", "input_grad", "weight_grad", "backward")


@dataclass(frozen=True)
class Call:
    """What the Lab was called with, as far as a run depends on it. Model and data keep the names of the examples.

    Attributes:
        has_target: whether there was a target.
        has_loss: whether there was a loss function.
        reduction, batch_dim: as for `Pipeline`.
    """

    has_target: bool = True
    has_loss: bool = True
    reduction: str = "mean"
    batch_dim: int | tuple[int, int, int] = 0

    @property
    def options(self) -> str:
        """Further arguments of a `Pipeline`."""
        parts = ["loss_fn=loss_fn"] if self.has_loss else []
        parts += [f"reduction={self.reduction!r}"] if self.reduction != "mean" else []
        parts += [f"batch_dim={self.batch_dim!r}"] if self.batch_dim != 0 else []
        return "".join(f", {part}" for part in parts)


def recipe(setting: Setting, call: Call | None) -> str:
    """The lines.

    Args:
        setting: what to rebuild.
        call: how the model runs; None where there is none, and a `profile` predicts.

    Example:
        >>> from pipelab.core.profile import Affine, Profile
        >>> line = (Affine(0.0, 1.0),) * 2
        >>> profile = Profile(("a", "b"), line, line, line, (8, 8), line, line, 4, (1, 4), "cpu")
        >>> print(recipe(Setting.start(profile, num_ranks=2, schedule="1f1b"), Call()))
        import pipelab as pp
        <BLANKLINE>
        split = pp.Split(['b'])
        schedule = pp.schedule('1f1b', num_ranks=2, num_microbatches=4)
        plan = pp.Plan(split, schedule)
        with pp.Pipeline(model, plan, loss_fn=loss_fn) as pipe:
            step = pipe.step(x, y)
    """
    return "\n".join(["import pipelab as pp", "", *_plan(setting), *_run(setting, call)])


def _plan(setting: Setting) -> Iterable[str]:
    plan = setting.plan
    costs = _searched_costs(setting.costs) if is_searched(plan.schedule.name) else None
    order = schedule_code(plan.schedule, "pp.", costs)
    if "costs=costs" in order and costs is not None:
        yield f"costs = {_costs_code(costs)}"
    yield f"split = pp.{plan.split!r}"
    yield f"schedule = {order}"
    parts = ["split", "schedule"]
    parts += [f"devices={devices_code(plan.devices, 'pp.')}"] if plan.devices != "auto" else []
    parts += [f"links=pp.{plan.links!r}"] if plan.links is not None else []
    yield f"plan = pp.Plan({', '.join(parts)})"


def _run(setting: Setting, call: Call | None) -> Iterable[str]:
    if call is None:
        links = ", links=plan.links" if setting.links is not None else ""
        size, larger = divmod(setting.batch_size, setting.num_microbatches)
        if larger:  # what the Lab shows is for the mean of two sizes
            yield "from pipelab.planning.batch import Batch"
            batch = f"Batch({setting.batch_size}, {setting.num_microbatches})"
            yield f"costs = {batch}.costs(profile, plan.split{links})"
        else:
            yield f"costs = profile.costs(plan.split, batch_size={size}{links})"
        yield "predicted = pp.simulate(plan.schedule, costs)"
        return
    data = "x, y" if call.has_target else "x"
    yield f"with pp.Pipeline(model, plan{call.options}) as pipe:"
    yield (
        f"    step = pipe.step({data})" if setting.schedule.has_backward else "    outputs = pipe.forward(x)"
    )


def _searched_costs(costs: Costs) -> Costs:
    """What a search looks at: seconds and links, and bytes where these take a time for each."""
    held = costs.bytes if costs.links.has_bandwidth else None
    return Costs(**{name: getattr(costs, name) for name in _COSTS}, bytes=held, links=costs.links)


def _costs_code(costs: Costs) -> str:
    parts = [f"{name}={getattr(costs, name)!r}" for name in _COSTS if getattr(costs, name) is not None]
    parts += [f"bytes=pp.{costs.bytes!r}"] if costs.bytes is not None else []
    parts += [f"links=pp.{costs.links!r}"] if costs.links != Costs.uniform(1).links else []
    return f"pp.Costs({', '.join(parts)})"
