"""Many schedules at many sizes, in one call: which one, when?

Only a comparison of like with like answers that. Every point of a sweep is one training step of the same model on
the same batch or, where costs are given per micro-batch, on micro-batches of one size; schedules that hold several
stages a rank get the model cut into smaller pieces, not a larger model. What does other work is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import getdoc, signature
from itertools import product
from typing import Any

from pipelab.core.actions import as_index
from pipelab.core.costs import Costs, Links
from pipelab.core.profile import Profile
from pipelab.core.progress import Bar, Progress
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, ScheduleInfo, schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.core.sweep import QUANTITIES, Sweep, SweepPoint
from pipelab.errors import PipelabError, nearest, one_of, reject_unknown
from pipelab.planning.batch import Batch
from pipelab.planning.finer import cut_evenly
from pipelab.planning.sweep_links import check_bytes, links_asked, links_text

__all__ = ["sweep"]

Builder = Callable[..., Schedule]
"""Called as `pp.schedule` less the name: builder(num_ranks=, num_microbatches=[, stages_per_rank=])."""

CostRule = Callable[..., Costs]
"""Called as rule(num_stages=, num_microbatches=)."""

_LIMITS = {"max_in_flight": (" stage chunks", "peak_activations"), "max_bytes": (" bytes", "peak_bytes")}
"""Options that limit what a rank holds: the unit, and the quantity of all rows that `Sweep.best` can limit."""


def sweep(
    *,
    schedules: str | Iterable[str] | Mapping[str, str | Builder | ScheduleInfo],
    num_microbatches: int | Iterable[int],
    num_ranks: int | Iterable[int],
    stages_per_rank: int | Iterable[int] | None = None,
    costs: Costs | CostRule | None = None,
    profile: Profile | None = None,
    split: Split | None = None,
    batch_size: int | None = None,
    links: Links | Iterable[Links] | None = None,
    progress: Progress = True,
    **options: Any,
) -> Sweep:
    """Simulate every schedule at every size.

    A size that a schedule refuses is a row of the table that says why. So is a schedule that does other work than
    one training step: several mini-batches, or no backward where another has one.
    What a point costs comes from one of

    - nothing: F = I = W = 1 second for the stages of a rank together;
    - `costs`: of one micro-batch. A schedule with k times as many stages gets each of them cut evenly into k;
    - `profile`: of a whole batch that stays the same, so that more micro-batches are smaller ones.

    Where a schedule cuts micro-batches into slices, each slice is taken to cost the same; causal attention makes later
    ones dearer.

    Args:
        schedules: names, or a mapping from labels to names or to functions that are called as
            `pp.schedule` is, without the name. `pp.SCHEDULES` itself is all of them.
        num_microbatches: m, one or several.
        num_ranks: p, one or several.
        stages_per_rank: v, one or several; None lets every schedule take its own: the least that it can, and 2
            where it takes any number.
        costs: for one number of stages; or a function, called with `num_stages=` and `num_microbatches=`.
        profile: costs of the layers; with it `costs` is left out.
        split: with a profile: the cut points; None balances the stages anew for every size.
        batch_size: with a profile: samples of the whole batch; None takes `profile.batch_size`.
        links: between the ranks, one or several, which the table tells apart; None takes those of `costs`, or links
            that take no time.
        progress: whether to show a bar where it takes over a second; or a function, called with how many points are
            done and how many there are. An interrupt ends the sweep between two points or within one.
        **options: passed to those schedules that take them, and no others; the table says to which. `max_in_flight`
            counts chunks of a schedule's own stages, halves of micro-batches where a rank holds two. A limit that is
            the same for all rows is `.best(peak_activations=...)`, in micro-batches, or `.best(peak_bytes=...)`.
            Schedules that take `costs` get those of the row, so that each is made for them; the table says so.

    Returns:
        A table: `print` it, `.to_frame()`, `.best()`, `plot_sweep`.

    Example:
        >>> found = sweep(schedules=["gpipe", "1f1b"], num_ranks=4, num_microbatches=[4, 8])
        >>> found.columns()["makespan [s]"]
        array([21., 33., 21., 33.])
        >>> found.where(num_microbatches=8).best(peak_activations=4).schedule
        '1f1b'

    Raises:
        PipelabError: an unknown schedule, a size that is no size, a bandwidth where no bytes are known, or nothing
            but refusals.
        TypeError: an option that none of the schedules takes, or costs of two kinds.
    """
    builders = _builders(schedules, options)
    rule = _cost_rule(costs, profile, split, batch_size)
    ranks, microbatches = _whole("num_ranks", num_ranks), _whole("num_microbatches", num_microbatches)
    per_rank: Sequence[int | None] = (
        [None] if stages_per_rank is None else _whole("stages_per_rank", stages_per_rank)
    )
    if links is None and not callable(costs):  # a function of costs alone may have others at each size
        links = costs.links if isinstance(costs, Costs) else Links()
    some_links = links_asked(links)
    check_bytes(some_links, costs, profile)
    cases = list(product(builders.items(), ranks, per_rank, some_links.items(), microbatches))
    if not cases:
        raise PipelabError("This sweep has no points: each of its lists needs at least one entry.")
    found = []
    with Bar(len(cases), progress, "sweep") as bar:
        for (label, build), p, v, link, m in cases:
            found.append(_point(label, build, rule, p, v, m, link))
            bar.advance()
    points = _alike(found)
    if all(point.refusal for point in points):
        raise PipelabError(f"Every size was refused. {points[0].schedule}: {points[0].refusal}")
    conditions = [
        rule.text,
        links_text(list(some_links)),
        *_ordered_by_costs(builders),
        *_passed(builders),
    ]
    return Sweep(points, "; ".join(conditions))


# --- what is built ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """Builds a schedule of `SCHEDULES`; its options are those of the sweep that it takes."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def stages_per_rank(self, wish: int | None) -> int:
        least, most = SCHEDULES[self.name].stages_per_rank
        if wish is not None:
            return wish
        return max(least, 2) if most is None else least

    def __call__(
        self, *, costs_of: Callable[[int], Costs], stages_per_rank: int | None, **sizes: int
    ) -> Schedule:
        v = self.stages_per_rank(stages_per_rank)
        options = dict(self.options)
        if "costs" in SCHEDULES[self.name].keywords:
            options["costs"] = costs_of(sizes["num_ranks"] * v)
        return schedule(self.name, stages_per_rank=v, **sizes, **options)


@dataclass(frozen=True)
class _Given:
    """Builds a schedule with a function of the user's."""

    label: str
    function: Builder

    def stages_per_rank(self, wish: int | None) -> int | None:
        return wish

    def __call__(self, *, costs_of: object, stages_per_rank: int | None, **sizes: int) -> Schedule:
        if stages_per_rank is not None:
            sizes["stages_per_rank"] = stages_per_rank
        built = self.function(**sizes)
        if not isinstance(built, Schedule):
            raise TypeError(f"{self.label} must return a Schedule, not {type(built).__name__}.")
        return built


def _builders(schedules: object, options: Mapping[str, Any]) -> dict[str, _Named | _Given]:
    if isinstance(schedules, str):
        schedules = [schedules]
    if not isinstance(schedules, Iterable):
        raise TypeError(
            f"schedules must be names or a mapping from labels to functions, not {type(schedules).__name__}."
        )
    pairs = schedules.items() if isinstance(schedules, Mapping) else [(name, name) for name in schedules]
    found: dict[str, _Named | _Given] = {}
    for label, wanted in pairs:
        if isinstance(wanted, ScheduleInfo):
            wanted = wanted.name
        if isinstance(wanted, str):
            one_of("schedule", wanted, SCHEDULES)
            taken = tuple((n, x) for n, x in options.items() if n in SCHEDULES[wanted].keywords)
            found[label] = _Named(wanted, taken)
        elif callable(wanted):
            found[label] = _Given(label, wanted)
        else:
            raise TypeError(
                f"schedules holds {type(wanted).__name__}; it takes names, or a mapping from a label to a function of "
                f"num_ranks and num_microbatches."
            )
    takers = {n for b in found.values() if isinstance(b, _Named) for n in SCHEDULES[b.name].keywords}
    known = {*signature(sweep).parameters, *takers} - {"options"}
    unknown = [name for name in options if name not in takers]
    if unknown and not nearest(unknown[0], known):
        raise TypeError(f"sweep takes no {unknown[0]!r}, nor does any of these schedules.")
    reject_unknown("sweep", unknown, sorted(known))
    return found


def _ordered_by_costs(builders: Mapping[str, _Named | _Given]) -> list[str]:
    """What must be said where an order was made for the costs of its row."""
    found = [
        label
        for label, build in builders.items()
        if isinstance(build, _Named) and "costs" in SCHEDULES[build.name].keywords
    ]
    return [f"made for the costs of each row: {', '.join(found)}"] if found else []


def _passed(builders: Mapping[str, _Named | _Given]) -> list[str]:
    """Which options went to whom, and what limits all rows alike where an option limits only some."""
    takers: dict[tuple[str, str], list[str]] = {}
    for label, build in builders.items():
        for name, value in build.options if isinstance(build, _Named) else ():
            takers.setdefault((name, repr(value)[:40]), []).append(label)
    found = []
    for (name, value), labels in takers.items():
        unit, quantity = _LIMITS.get(name, ("", ""))
        text = f"{name}={value}{unit} passed to {', '.join(labels)}"
        if len(labels) < len(builders):
            text += " and not to the others"
            text += f" (a limit on all: best({quantity}=...))" if quantity else ""
        found.append(text)
    return found


# --- what it costs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """Where the costs of a point come from."""

    text: str
    costs: Callable[[int, int, int], Costs]
    """Called with p, the model stages and m."""


def _cost_rule(costs: object, profile: Profile | None, split: Split | None, batch_size: int | None) -> _Rule:
    if profile is not None:
        if costs is not None:
            raise TypeError("sweep() takes costs or a profile, not both.")
        if not isinstance(profile, Profile):
            raise TypeError(
                f"profile must be a Profile, not {type(profile).__name__}. Call pp.profile first."
            )
        size = profile.batch_size if batch_size is None else batch_size
        cuts = "stages balanced anew for each size" if split is None else "the split given"
        text = f"a batch of {size} samples on {profile.device}, shared by the micro-batches, {cuts}"
        return _Rule(text, lambda p, stages, m: _of_batch(profile, split, Batch(size, m), stages))
    if split is not None or batch_size is not None:
        raise TypeError(
            "sweep() takes split and batch_size with a profile only: profile=pp.profile(model, x)."
        )
    if costs is None:
        text = "F = I = W = 1 s for the stages of a rank together"
        return _Rule(text, lambda p, stages, m: Costs.uniform(stages, *[p / stages] * 3))
    if isinstance(costs, Costs):
        text = f"costs given for {costs.num_stages} stages, cut evenly where there are more"
        return _Rule(text, lambda p, stages, m: _cut(costs, stages))
    if not callable(costs):
        raise TypeError(f"costs must be Costs or a function that makes them, not {type(costs).__name__}.")
    made: CostRule = costs
    name = getattr(made, "__name__", "a function")
    says = (getdoc(made) or "").partition("\n")[0].rstrip(".")
    text = f"costs by {name}" + (f": {says}" if says else "")

    def by_rule(p: int, stages: int, m: int) -> Costs:
        found = made(num_stages=stages, num_microbatches=m)
        if not isinstance(found, Costs):
            raise TypeError(
                f"costs={name} must return Costs, not {type(found).__name__}, such as pp.Costs.uniform(num_stages)."
            )
        return found

    return _Rule(text, by_rule)


def _cut(costs: Costs, stages: int) -> Costs:
    if stages % costs.num_stages:
        raise PipelabError(
            f"The schedule has {stages} model stages, which the {costs.num_stages} stages of the costs cannot be cut "
            f"into evenly. Give costs for a divisor of {stages}, or a function of num_stages."
        )
    return cut_evenly(costs, stages // costs.num_stages)


def _of_batch(profile: Profile, split: Split | None, batch: Batch, stages: int) -> Costs:
    if split is not None and split.num_stages != stages:
        raise PipelabError(f"The split has {split.num_stages} stages and the schedule {stages}.")
    return batch.costs(profile, batch.balance(profile, stages) if split is None else split)


# --- one point ----------------------------------------------------------------------------------------------


def _point(
    label: str,
    build: _Named | _Given,
    rule: _Rule,
    p: int,
    v: int | None,
    m: int,
    links: tuple[Links | None, str],
) -> tuple[SweepPoint, bool]:
    """The point, and whether its schedule has a backward."""
    wish, text = links

    def costs_of(stages: int, slices: int = 1) -> Costs:
        found = rule.costs(p, stages, m)
        return cut_evenly(found if wish is None else replace(found, links=wish), 1, slices)

    sized = partial(build, costs_of=costs_of, stages_per_rank=v, num_ranks=p, num_microbatches=m)
    point = SweepPoint(
        schedule=label,
        num_ranks=p,
        num_microbatches=m,
        stages_per_rank=build.stages_per_rank(v),
        links=wish,
        links_text=text,
    )
    try:
        built = sized()
        _check_step(label, built)
        costs = costs_of(built.num_model_stages, built.slices)
        report = simulate(built, costs).report()
    except PipelabError as refusal:
        return replace(point, refusal=_first_line(refusal)), False
    share = p / (built.num_model_stages * built.slices)
    ran = replace(
        point,
        stages_per_rank=point.stages_per_rank or built.stages_per_rank,
        links=costs.links,
        numbers=tuple(quantity.of(report, share) for quantity in QUANTITIES.values()),
        costs=costs,
        build=sized,
    )
    return ran, built.has_backward


def _check_step(label: str, built: Schedule) -> None:
    """Refuse what is not one training step: its work is not that of the other rows."""
    if built.minibatches > 1:
        raise PipelabError(
            f"{label} runs {built.minibatches} mini-batches, each with an update of its own; a sweep compares single "
            f"steps. Use simulate for it alone."
        )


def _alike(found: Sequence[tuple[SweepPoint, bool]]) -> tuple[SweepPoint, ...]:
    """The points, those without a backward refused where others have one."""
    trained = next((point.schedule for point, has_backward in found if has_backward), None)
    return tuple(
        point if trained is None or has_backward or point.refusal else _without_backward(point, trained)
        for point, has_backward in found
    )


def _without_backward(point: SweepPoint, trained: str) -> SweepPoint:
    reason = f"{point.schedule} has no backward, and {trained} has one; give it a sweep of its own."
    return replace(point, numbers=(), refusal=reason, costs=None, build=None)


def _first_line(error: PipelabError) -> str:
    return str(error).partition("\n")[0]


def _whole(name: str, value: int | Iterable[int]) -> list[int]:
    numbers = list(value) if isinstance(value, Iterable) else [value]
    found = list(dict.fromkeys(as_index(name, number) for number in numbers))
    if not found:
        raise PipelabError(f"{name} is empty; give at least one number.")
    if min(found) < 1:
        raise PipelabError(f"{name} holds {min(found)}; it must be at least 1.")
    return found
