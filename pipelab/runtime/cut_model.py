"""A model with its cuts: what stays known about it from step to step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pipelab.core.costs import StageBytes
from pipelab.runtime.compiled import compiled_modules, must_be_plain
from pipelab.runtime.flow import Flow
from pipelab.runtime.in_place import ChangedInPlace
from pipelab.runtime.kept import KeptValues
from pipelab.runtime.memory import KeptBytes
from pipelab.runtime.parameters import Parameters
from pipelab.runtime.randomness import Randomness
from pipelab.runtime.rank_device import CopyStreams, RankDevice
from pipelab.runtime.recompute import Recompute
from pipelab.runtime.threads import ThreadPool
from pipelab.runtime.traffic import Crossing


class CutModel:
    """A model with its cuts, and all that is known about it from step to step.

    Args:
        model: the user's model. Nothing of ours stays on it between steps.
        cuts: names of the modules at which stages 1, 2, ... begin.
        streams: the rank device that runs each stage.
        pool: threads for the forwards.
        threads: intra-op threads of each forward.
        recomputed: the stages whose activations are dropped and computed again.
    """

    def __init__(
        self,
        model: nn.Module,
        cuts: tuple[str, ...],
        streams: list[RankDevice],
        pool: ThreadPool,
        threads: int,
        recomputed: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model
        self.names = cuts
        self.cuts = {model.get_submodule(name): stage for stage, name in enumerate(cuts, start=1)}
        self.streams = streams
        self.copies = CopyStreams()
        devices = self.devices = [stream.device for stream in streams]
        self.same_device = len(set(devices)) == 1
        self.pool = pool
        self.threads = threads
        self.flow = Flow()
        self.parameters = Parameters(model, None if self.same_device else devices)
        self.randomness = Randomness(model, devices)
        self.kept = KeptBytes(len(cuts) + 1)
        self.kept_values = KeptValues(model)
        self.changed_in_place = ChangedInPlace(model)
        self.recompute = Recompute(self, recomputed)
        self.shared: dict[int, list[int]] = {}  # parameters by identity: the stages that use them
        self.crossings: tuple[Crossing, ...] | None = None  # known when a first micro-batch has come through

    def on_copy(self, model: nn.Module, streams: list[RankDevice]) -> CutModel:
        """A copy of the model, cut at the same places, drawing the same random numbers, to run on `streams`."""
        made = CutModel(model, self.names, streams, self.pool, self.threads)
        made.randomness = self.randomness
        made.recompute = self.recompute
        return made

    def not_compiled(self, watched: Iterable[nn.Module] | None = None) -> list[nn.Module]:
        """The modules that went through torch.compile, but inside which a step must look.

        Args:
            watched: the modules that are watched in a step, if they are known already.
        """
        compiled = compiled_modules(self.model)
        if not compiled:
            return []
        seen = (
            set(self.flow.watched(set(self.cuts)) if watched is None else watched) | self.kept_values.owners
        )
        return [
            module
            for module in compiled
            if module in self.kept_values.owners or must_be_plain(module, seen, self.flow.noisy)
        ]

    @property
    def num_stages(self) -> int:
        return len(self.names) + 1

    def stage_bytes(self, *, mergeable: bool = False) -> StageBytes | None:
        """Bytes of parameters, kept activations and sent values per stage; None before the first step.

        Args:
            mergeable: as if nothing were copied at the borders, so that sums over stages are those of one stage.
        """
        if not self.kept.known:
            return None
        parameters = [0] * self.num_stages
        for parameter in self.model.parameters():
            home = self.parameters.home(parameter)
            parameters[home or 0] += parameter.numel() * parameter.element_size()
        return self.kept.mergeable_bytes(parameters) if mergeable else self.kept.stage_bytes(parameters)
