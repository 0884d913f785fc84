"""What the Lab is set to, as one frozen value: the choices, and everything that follows from them.

    choices: profile, batch size, schedule, ranks, micro-batches, stages per rank, split, devices, links
       -> schedule -> costs at this micro-batch size -> predicted trace -> report, plan

It knows no widgets. A change makes a new value or is refused; the old value is never half changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipelab.core.actions import as_index
from pipelab.core.costs import Costs, Links
from pipelab.core.plan import Devices, Plan, VirtualDevices
from pipelab.core.profile import Profile
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError, reject_unknown
from pipelab.planning.batch import Batch
from pipelab.runtime.runnable import check_schedule

OFFERED = tuple(name for name, info in SCHEDULES.items() if info.is_step)
"""The schedules that the Lab offers: one training step over whole micro-batches, so that a batch can be held fixed."""

CHOICES = ("schedule", "num_ranks", "num_microbatches", "stages_per_rank", "split")


@dataclass(frozen=True)
class Setting:
    """One setting of the Lab. Make the first with `Setting.start`, others with `changed`.

    Attributes:
        profile: costs of the layers.
        batch_size: samples in the whole batch; it stays fixed while the number of micro-batches changes.
        schedule: the checked order of actions.
        stages_per_rank: v, as asked for.
        split: where the stages begin.
        devices: "auto", names, or virtual devices, which are always as many as ranks.
        links: between ranks; None for links that take no time.
    """

    profile: Profile
    batch_size: int
    schedule: Schedule
    stages_per_rank: int
    split: Split
    devices: Devices = "auto"
    links: Links | None = None

    @classmethod
    def start(
        cls,
        profile: Profile,
        *,
        batch_size: int | None = None,
        schedule: str | Schedule | None = None,
        num_ranks: int | None = None,
        num_microbatches: int | None = None,
        stages_per_rank: int | None = None,
        split: Split | Iterable[str] | None = None,
        devices: Devices | Iterable[str] = "auto",
        links: Links | None = None,
    ) -> Setting:
        """The setting to begin with; whatever is left out is chosen to suit the profile."""
        batch_size = profile.batch_size if batch_size is None else as_index("batch_size", batch_size)
        if batch_size < 1:
            raise PipelabError(f"batch_size is {batch_size}; a batch has at least one sample.")
        if stages_per_rank is not None and as_index("stages_per_rank", stages_per_rank) < 1:
            raise PipelabError(f"stages_per_rank is {stages_per_rank}; it must be at least 1.")
        layers = len(profile.layers)
        if not isinstance(devices, str | VirtualDevices):
            devices = tuple(str(device) for device in devices)
        if num_ranks is None and not isinstance(devices, str):
            num_ranks = devices.count if isinstance(devices, VirtualDevices) else len(devices)
        least = _least_stages_per_rank(schedule) if isinstance(schedule, str) else 1
        first = build(OFFERED[0], 1, 1, 1)
        blank = cls(profile, batch_size, first, 1, Split([]), devices, links)
        wishes = {
            "num_ranks": num_ranks,
            "num_microbatches": num_microbatches,
            "stages_per_rank": stages_per_rank,
            "split": split,
        }
        if not isinstance(schedule, Schedule):  # one given as a table brings its own sizes
            if num_ranks is None:
                wishes["num_ranks"] = min(
                    4, max(1, layers // (least if stages_per_rank is None else stages_per_rank))
                )
            if num_microbatches is None:
                wishes["num_microbatches"] = min(8, batch_size)
        wishes = {key: wish for key, wish in wishes.items() if wish is not None}
        if schedule is None:
            return blank._shortest(wishes)
        return blank.changed(schedule=schedule, **wishes)

    def _shortest(self, wishes: dict[str, Any]) -> Setting:
        """These sizes with the schedule that predicts the shortest training step; of equal ones, the least in flight.

        Candidates are what a Pipeline runs at these sizes. Schedules of several stages a rank are among them only
        where that is asked for: they need more cuts. Those of two chains are not: they hold the weights twice.
        """
        per_rank = wishes.get("stages_per_rank", 1)
        training, refusal = [], None
        for name in OFFERED:
            if _fitting_stages_per_rank(name, per_rank) != per_rank:
                continue
            try:
                candidate = self.changed(schedule=name, **{**wishes, "stages_per_rank": per_rank})
                check_schedule(candidate.schedule)
            except PipelabError as error:
                refusal = refusal or error
                continue
            if candidate.schedule.has_backward and candidate.schedule.placement.chains == 1:
                training.append(candidate)
        if not training:
            raise refusal or PipelabError(
                f"No schedule takes stages_per_rank={per_rank}. Give one with schedule=."
            )
        shortest = min(setting.predicted.makespan for setting in training)
        return min(
            training,
            key=lambda s: (round(s.predicted.makespan / shortest, 3), max(s.schedule.peak_in_flight)),
        )

    def changed(self, **wishes: Any) -> Setting:
        """This setting with some choices changed, and what must follow changed with them.

        Other numbers of stages get a balanced split; otherwise the cuts stay where they are.

        Args:
            **wishes: any of `schedule` (a name of `SCHEDULES`, or a `Schedule`), `num_ranks`, `num_microbatches`,
                `stages_per_rank`, `split` (a `Split` or names of layers).

        Raises:
            PipelabError: what is asked for is impossible; the sentence says why.
        """
        reject_unknown("Lab.choose", [wish for wish in wishes if wish not in CHOICES], CHOICES)
        order, stages_per_rank = self._schedule_for(wishes)
        Batch(self.batch_size, order.num_microbatches)  # refused here where there are fewer samples
        if order.minibatches > 1 or order.slices > 1:
            raise PipelabError(
                f"{order.name} has {order.minibatches} mini-batches and {order.slices} slices a micro-batch; the Lab "
                f"shows one training step over whole micro-batches. Use pp.simulate(schedule, costs)."
            )
        self._check_stages(order.name, order.num_ranks, order.stages_per_rank, order.num_model_stages)
        asked = replace(self, schedule=order, stages_per_rank=stages_per_rank)
        if "split" in wishes:
            split = _as_split(wishes["split"])
            asked._check_split(split)
        elif self.split.num_stages == order.num_model_stages:
            split = self.split
        else:
            split = asked._balanced()
        new = replace(asked, split=split)
        new.plan  # noqa: B018 - refused here, if at all, and not when it is looked at
        new.costs  # noqa: B018
        return new

    def balanced(self) -> Setting:
        """This setting with the cuts where the slowest stage is fastest."""
        return self.changed(split=self._balanced())

    @property
    def num_ranks(self) -> int:
        """p."""
        return self.schedule.num_ranks

    @property
    def num_microbatches(self) -> int:
        """m."""
        return self.schedule.num_microbatches

    @property
    def is_custom(self) -> bool:
        """Whether the schedule is a table of its own, which no size can be changed of."""
        return self.schedule.name not in OFFERED

    @property
    def microbatch_size(self) -> float:
        """Samples per micro-batch; the mean where they are uneven."""
        return self._batch.microbatch_size

    @cached_property
    def costs(self) -> Costs:
        """Seconds per stage at this micro-batch size."""
        return self._batch.costs(self.profile, self.split, self.links)

    @cached_property
    def predicted(self) -> Trace:
        """The simulated run."""
        return simulate(self.schedule, self.costs)

    @cached_property
    def report(self) -> Report:
        """The numbers of the simulated run."""
        return self.predicted.report()

    @cached_property
    def plan(self) -> Plan:
        """What an engine needs to run this setting."""
        return Plan(self.split, self.schedule, devices=self._devices_for(self.num_ranks), links=self.links)

    @cached_property
    def cut_positions(self) -> tuple[int, ...]:
        """For each border the index of the layer that the next stage begins with."""
        return tuple(part.start for part in self.profile.stages(self.split)[1:])

    def moved_cut(self, border: int, position: int) -> Setting:
        """This setting with one border before the layer at another position."""
        cuts = list(self.split.cuts)
        cuts[border] = self.profile.layers[position]
        return self.changed(split=Split(cuts))

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said about the costs."""
        return self._batch.notes

    @property
    def _batch(self) -> Batch:
        return Batch(self.batch_size, self.num_microbatches)

    def _schedule_for(self, wishes: dict[str, Any]) -> tuple[Schedule, int]:
        wish = wishes.get("schedule", self.schedule.name)
        sizes = {name for name in ("num_ranks", "num_microbatches", "stages_per_rank") if name in wishes}
        if isinstance(wish, Schedule) or (wish == self.schedule.name and self.is_custom):
            given = wish if isinstance(wish, Schedule) else self.schedule
            wrong = [name for name in sorted(sizes) if wishes[name] != getattr(given, name)]
            if wrong:
                raise PipelabError(
                    f"{given.name} is a finished table: its {wrong[0]} is {getattr(given, wrong[0])} and cannot become "
                    f"{wishes[wrong[0]]}. Choose a schedule by name, one of {', '.join(OFFERED)}."
                )
            return given, given.stages_per_rank
        if not isinstance(wish, str):
            raise TypeError(f"schedule must be a Schedule or a name, not {type(wish).__name__}.")
        per_rank = wishes.get("stages_per_rank", _fitting_stages_per_rank(wish, self.stages_per_rank))
        ranks = wishes.get("num_ranks", self.num_ranks)
        microbatches = wishes.get("num_microbatches", self.num_microbatches)
        is_same = wish == self.schedule.name and (ranks, microbatches, per_rank) == self._sizes
        if is_same and not is_searched(wish):
            return self.schedule, self.stages_per_rank
        Batch(self.batch_size, microbatches)
        if all(isinstance(size, int) and size > 0 for size in (ranks, per_rank)):
            self._check_stages(wish, ranks, per_rank, ranks * per_rank)  # before time is spent on building it
        costs = self._costs_of(ranks * per_rank, microbatches, wishes) if is_searched(wish) else None
        if is_same and costs == self.costs:
            return self.schedule, self.stages_per_rank
        return build(wish, ranks, microbatches, per_rank, costs), per_rank

    def _costs_of(self, num_stages: int, num_microbatches: int, wishes: dict[str, Any]) -> Costs | None:
        """What a schedule of these sizes will cost, before there is one; None where the split cannot be."""
        batch = Batch(self.batch_size, num_microbatches)
        if "split" in wishes:
            split = _as_split(wishes["split"])
        elif self.split.num_stages == num_stages:
            split = self.split
        else:
            split = batch.balance(self.profile, num_stages)
        return batch.costs(self.profile, split, self.links) if split.num_stages == num_stages else None

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.num_ranks, self.num_microbatches, self.stages_per_rank

    def _check_stages(self, name: str, num_ranks: int, stages_per_rank: int, needed: int) -> None:
        if needed > self.profile.num_layers:
            raise PipelabError(
                f"{name} on {num_ranks} ranks with {stages_per_rank} per rank needs {needed} stages, but the model has "
                f"{self.profile.num_layers} layers to cut between. Use fewer ranks or stages per rank."
            )

    def _check_split(self, split: Split) -> None:
        needed = self.schedule.num_model_stages
        if split.num_stages != needed:
            raise PipelabError(
                f"The split has {split.num_stages} stages, but {self.schedule.name} on {self.num_ranks} ranks with "
                f"{self.stages_per_rank} a rank needs {needed}. Change num_ranks in the same call: "
                f"choose(split=..., num_ranks=...)."
            )
        self.profile.stages(split)

    def _balanced(self) -> Split:
        return self._batch.balance(self.profile, self.schedule.num_model_stages)

    def _devices_for(self, num_ranks: int) -> Devices:
        if isinstance(self.devices, VirtualDevices):
            return replace(self.devices, count=num_ranks)
        if isinstance(self.devices, str):
            return self.devices
        if len(self.devices) < num_ranks:
            raise PipelabError(
                f"{num_ranks} ranks need {num_ranks} devices; the Lab was given {len(self.devices)}: "
                f"{', '.join(self.devices)}. Name more, or use devices=pp.virtual({num_ranks})."
            )
        return self.devices[:num_ranks]


def build(
    name: str, num_ranks: int, num_microbatches: int, stages_per_rank: int, costs: Costs | None = None
) -> Schedule:
    """A schedule by its name and sizes, none of which is left open; for these costs where it is searched for some."""
    return schedule(
        name,
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        stages_per_rank=as_index("stages_per_rank", stages_per_rank),
        **({} if costs is None else {"costs": costs}),
    )


def is_searched(name: str) -> bool:
    """Whether a schedule is searched for the costs that one has, so that other costs may want another order."""
    return name in SCHEDULES and "costs" in SCHEDULES[name].keywords


def bounds_of_stages_per_rank(name: str) -> tuple[int, int | None]:
    """The least and the most stages per rank that a schedule takes; None for no bound."""
    info = SCHEDULES.get(name)
    return info.stages_per_rank if info is not None else (1, 1)


def _least_stages_per_rank(name: str) -> int:
    return bounds_of_stages_per_rank(name)[0]


def _fitting_stages_per_rank(name: str, wish: int) -> int:
    """The number nearest to the wish that the schedule takes; a loop is entered with two stages a rank."""
    least, most = bounds_of_stages_per_rank(name)
    if least == most:
        return least
    return max(least, wish, 2) if most is None else min(max(least, wish, 2), most)


def _as_split(wish: object) -> Split:
    if isinstance(wish, Split):
        return wish
    if isinstance(wish, str) or not isinstance(wish, Iterable):
        raise TypeError(f"split must be a Split or a list of layer names, not {type(wish).__name__}.")
    return Split(list(wish))
