"""The chains in which a model runs: the first on the user's model, each further one on a twin of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pipelab.core.actions import Action, Kind
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.engine import Cell, forwards_only, program
from pipelab.runtime.loss import LossFn
from pipelab.runtime.rank_device import RankDevice
from pipelab.runtime.twins import Twin, check_loss


class Chains:
    """The copies of a model that a schedule runs on.

    A chain's replica gets the weights when a step begins, and its gradients are added to the user's parameters when
    the step ends, after those of the chains before it: the sum does not depend on which rank was faster.

    Args:
        cut_model: the user's model.
        schedule: says which micro-batch runs in which chain.
        ranks: the device of each rank.
        loss_fn: the user's.

    Attributes:
        of_microbatch: for each micro-batch its chain.
        cut_models: for each chain what it runs on.
    """

    def __init__(
        self, cut_model: CutModel, schedule: Schedule, ranks: Sequence[RankDevice], loss_fn: LossFn | None
    ) -> None:
        placement, m = schedule.placement, schedule.num_microbatches
        self._schedule, self._loss_fn = schedule, loss_fn
        self._streams = [
            [
                ranks[placement.ranks[chain * cut_model.num_stages + stage]]
                for stage in range(cut_model.num_stages)
            ]
            for chain in range(placement.chains)
        ]
        self.cut_models = [cut_model]
        self._twins: list[Twin] = []
        self.of_microbatch = [placement.chain_of(i, m) for i in range(m)]
        cut_model.randomness.watch(stream.device for streams in self._streams for stream in streams)

    def ready(self) -> list[CutModel]:
        """What each micro-batch runs on, up to date.

        Raises:
            PipelabError: a model that cannot run in several copies; nothing has run.
        """
        if len(self._streams) > 1:
            check_statistics(self.cut_models[0].model, self._schedule)
            self._check_loss()
            self._refresh()
        return [self.cut_models[chain] for chain in self.of_microbatch]

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Around a run: afterwards all gradients are in the user's model, or, after an error, none of the twins'.

        Raises:
            PipelabError: a forward changed weights or buffers.
        """
        for cut_model in self.cut_models:
            cut_model.kept_values.alone = not self._twins
        try:
            yield
            if self._twins:
                self._check_loss()  # what the model keeps is known when it has run
            for twin in self._twins:
                twin.check_unchanged()
                twin.add_gradients()
                twin.hand_over()
        finally:
            self.cut_models[0].kept_values.alone = True
            for twin in self._twins:
                twin.drop_gradients()

    def forwards(self, num_microbatches: int) -> tuple[Schedule, tuple[Cell, ...]]:
        """The forwards of a batch, on the user's model alone, and its cells with the ranks that run them."""
        if len(self._streams) == 1:
            schedule = forwards_only(self._schedule, num_microbatches)
            return schedule, program(schedule)
        placement, used = first_chain(self._schedule)
        orders = [
            [
                Action(Kind.F, stage, microbatch)
                for microbatch in range(num_microbatches)
                for stage in placement.stages_of(rank)
            ]
            for rank in range(placement.num_ranks)
        ]
        schedule = Schedule(orders, placement, name=f"{self._schedule.name}, forwards only")
        return schedule, tuple(replace(cell, rank=used[cell.rank]) for cell in program(schedule))

    def _check_loss(self) -> None:
        first = self.cut_models[0]
        check_loss(self._loss_fn, first.model, first.kept_values.names)

    def _refresh(self) -> None:
        first = self.cut_models[0]
        if not all(twin.stands_for(first.model) for twin in self._twins) or not self._twins:
            self._twins = [self._twin(chain) for chain in range(1, len(self._streams))]
            self.cut_models = [first]
            for twin, streams in zip(self._twins, self._streams[1:], strict=True):
                self.cut_models.append(first.on_copy(twin.model, streams))
        for twin in self._twins:
            twin.refresh()

    def _twin(self, chain: int) -> Twin:
        first, streams = self.cut_models[0], self._streams[chain]
        homes = first.parameters.homes(first.model, first.names)
        return Twin(first.model, lambda tensor: streams[homes[id(tensor)]].device)


def first_chain(schedule: Schedule) -> tuple[Placement, list[int]]:
    """The first chain by itself, on the user's model: its placement, and which rank of the schedule each of its is."""
    ranks = schedule.placement.ranks[: schedule.num_model_stages]
    used = sorted(set(ranks))  # a chain need not be on every rank
    return Placement(tuple(used.index(rank) for rank in ranks)), used


def check_statistics(model: nn.Module, schedule: Schedule) -> None:
    """Refuses modules whose running statistics each copy of the model would keep for itself.

    Raises:
        PipelabError: names the first.
    """
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            raise PipelabError(
                f"{name!r}, a {type(module).__name__} in training, keeps running statistics, and the schedule "
                f"{schedule.name!r} runs {schedule.placement.chains} copies of the model, of which each would keep its "
                f"own. Use a schedule with one chain, such as 1f1b; or leave the statistics as they are: "
                f"model.get_submodule({name!r}).eval()."
            )
