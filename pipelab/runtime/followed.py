"""Memory measured while a step runs: the tensors that each action makes are followed until they die.

    forward    in the micro-batch's thread --.
                                             |-- every operation notes the storages that it made
    backward   in the rank's thread ---------'
    end of an action: which of the storages that its rank's stages ever made are still alive?

Storages are followed by weak references, so that following keeps none alive. On a GPU the allocator is asked besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pipelab.core.actions import Action, Kind
from pipelab.core.measured_memory import AllocatorMemory, MeasuredMemory
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.runtime.engine import Cell
from pipelab.runtime.memory import roots_of, saved_tensors
from pipelab.runtime.rank_device import RankDevice
from pipelab.runtime.trees import tensors

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch
    from pipelab.runtime.stages import SuspendedStages

Storages = dict[int, tuple[StorageWeakRef, int]]
"""Storages by identity, which holds as long as the weak reference is there: the reference and the bytes."""


class Births(TorchDispatchMode):
    """Notes the storages that operations make in a thread. What an operation was given is not made by it.

    Args:
        into: where they are noted, asked at every operation.
    """

    def __init__(self, into: Callable[[], Storages]) -> None:
        super().__init__()
        self._into = into

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = self._into()
        given: set[int] | None = None
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            identity = _identity(tensor)
            if identity is None or identity in made:
                continue
            if given is None:
                given = set(_identities((args, kwargs)))
            if identity not in given:
                storage = tensor.untyped_storage()
                made[identity] = (StorageWeakRef(storage), storage.nbytes())
        return result


class Followed:
    """The stages of a step, as the engine knows them, with an eye on what their actions leave alive.

    Args:
        schedule: of the step.
        cells: its program.
        ranks: the device of each rank.
    """

    def __init__(self, schedule: Schedule, cells: Sequence[Cell], ranks: Sequence[RankDevice]) -> None:
        self._schedule = schedule
        self._stages: SuspendedStages
        self._num_model_stages = schedule.num_model_stages
        self._ranks = schedule.placement.ranks
        self._devices = [rank.device for rank in ranks]
        self._cell = {action: cell.index for cell in cells for action in cell.action.parts}
        self._of_rank = [
            [stage for stage, rank in enumerate(self._ranks) if rank == here] for here in range(len(ranks))
        ]
        # For each rank: the cell that had ended, and for each of its stages what is held and what it has in flight.
        self._looks: list[list[tuple[int, list[tuple[int, int, int]]]]] = [[] for _ in ranks]
        self._in_flight = [0] * len(self._ranks)
        self._alive: list[Storages] = [{} for _ in self._ranks]
        self._made: dict[tuple[int, int], Storages] = {}
        self._results: set[int] = set()  # storages of outputs that no backward needs
        self._results_in_use: dict[int, set[int]] = {}  # by micro-batch: those that one needs yet
        self._strange = np.zeros(
            self._num_model_stages
        )  # bytes that a micro-batch keeps and did not make: its inputs
        self._allocated: dict[torch.device, list[tuple[int, int]]] = {}
        self._at_first: dict[torch.device, int] = {}
        self._most: dict[torch.device, int] = {}

    def around(self, stages: SuspendedStages) -> Followed:
        """Takes the stages to follow; once."""
        self._stages = stages
        return self

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a step, as `SuspendedStages.running`."""
        gpus = {device for device in self._devices if device.type == "cuda"}
        for device in gpus:
            torch.cuda.reset_peak_memory_stats(device)
            self._at_first[device] = torch.cuda.memory_allocated(device)
        self._stages.follow(self._births)
        with self._stages.running():
            yield
        for device in gpus:
            self._most[device] = torch.cuda.max_memory_allocated(device)

    def cancel(self) -> None:
        self._stages.cancel()

    # -- the actions --------------------------------------------------------------------------------------------

    def forward(self, stage: int, microbatch: int) -> None:
        self._stages.forward(stage, microbatch)
        run = self._stages.microbatches[microbatch]
        if run.finished:
            self._finish(run)
        self._look(Kind.F, stage, microbatch)

    def backward(self, stage: int, microbatch: int) -> None:
        with self._watching(stage, microbatch):
            self._stages.backward(stage, microbatch)
        self._look(Kind.B, stage, microbatch)

    def backward_input(self, stage: int, microbatch: int) -> None:
        with self._watching(stage, microbatch):
            self._stages.backward_input(stage, microbatch)
        self._look(Kind.I, stage, microbatch)

    def backward_weight(self, stage: int, microbatch: int) -> None:
        with self._watching(stage, microbatch):
            self._stages.backward_weight(stage, microbatch)
        self._look(Kind.W, stage, microbatch)

    def _births(self, microbatch: MicroBatch) -> Births:
        """For the thread of a micro-batch's forward, which goes from stage to stage."""
        return Births(lambda: self._made.setdefault((microbatch.stage, microbatch.index), {}))

    def _watching(self, stage: int, microbatch: int) -> Births:
        made = self._made.setdefault((stage % self._num_model_stages, microbatch), {})
        return Births(lambda: made)

    # -- when an action ends ------------------------------------------------------------------------------------

    def _look(self, kind: Kind, stage: int, microbatch: int) -> None:
        made = self._made.pop((stage % self._num_model_stages, microbatch), {})
        if kind is Kind.F:
            self._in_flight[stage] += 1
        else:
            for identity in self._gradients():
                made.pop(identity, None)
            self._results |= self._results_in_use.get(microbatch, set()) & self._alive[stage].keys()
            self._in_flight[stage] -= kind is not Kind.I
        self._alive[stage].update(made)
        rank = self._ranks[stage]
        cell = self._cell[Action(kind, stage, microbatch)]
        found = [(*self._count(each), self._in_flight[each]) for each in self._of_rank[rank]]
        self._looks[rank].append((cell, found))
        device = self._devices[rank]
        if device.type == "cuda":
            self._allocated.setdefault(device, []).append((cell, torch.cuda.memory_allocated(device)))

    def _count(self, stage: int) -> tuple[int, int]:
        """Bytes of a stage's living storages: without outputs that no backward needs, and of these."""
        alive = self._alive[stage]
        for identity in [identity for identity, (storage, _) in alive.items() if storage.expired()]:
            del alive[identity]
        results = sum(size for identity, (_, size) in alive.items() if identity in self._results)
        return sum(size for _, size in alive.values()) - results, results

    def _finish(self, run: MicroBatch) -> None:
        """Looks at a micro-batch whose forward has ended: what is an output, and what it keeps and did not make."""
        result = run.result
        results = set() if result is None else set(_identities(result.outputs))
        if result is not None and result.loss is not None:  # kept for `step.loss`: no matter of the model's
            self._made.get((run.stage, run.index), {}).pop(_identity(result.loss) or 0, None)
        in_use: set[int] = set()
        of_model = run.context.parameters.storages()
        known = [*self._alive, *(self._made.get((stage, run.index), {}) for stage in run.stages)]
        for stage, begin in zip(run.stages, run.starts, strict=True):
            strange: dict[tuple[int, int], int] = {}
            for tensor in saved_tensors(roots_of(run, stage), begin):
                identity = _identity(tensor)
                if identity is None:
                    continue
                in_use.add(identity)
                ours = any(identity in storages for storages in known)
                if not ours and tensor.untyped_storage().data_ptr() not in of_model:
                    strange[identity, int(tensor.storage_offset())] = tensor.numel() * tensor.element_size()
            self._strange[stage] = max(self._strange[stage], sum(strange.values()))
        self._results |= results - in_use
        self._results_in_use[run.index] = results & in_use

    def _gradients(self) -> set[int]:
        """The storages of the parameters' gradients, which are counted with the weights."""
        found = (p.grad for model in self._stages.models for p in model.parameters() if p.grad is not None)
        return {identity for identity in map(_identity, found) if identity is not None}

    # -- when the step is over ----------------------------------------------------------------------------------

    def memory(self, trace: Trace) -> MeasuredMemory:
        """What was measured.

        Args:
            trace: of the step.
        """
        for identity in self._gradients():  # a replica's gradient may have become the parameter's own
            for alive in self._alive:
                alive.pop(identity, None)
        looks = [(cell, rank, found) for rank, each in enumerate(self._looks) for cell, found in each]
        activations, outputs = np.zeros((2, len(looks), len(self._ranks)))
        for row, (_, rank, found) in enumerate(looks):
            for stage, (held, results, in_flight) in zip(self._of_rank[rank], found, strict=True):
                strange = self._strange[stage % self._num_model_stages]
                activations[row, stage], outputs[row, stage] = held + in_flight * strange, results
        allocators = []
        for device, allocated in self._allocated.items():
            cells, held = np.array(sorted(allocated, key=lambda look: trace.end[look[0]])).T
            first = self._at_first[device]
            allocators.append(
                AllocatorMemory(
                    str(device), trace.end[cells], held - float(first), float(self._most[device] - first)
                )
            )
        return MeasuredMemory(
            trace,
            np.array([cell for cell, _, _ in looks], dtype=np.int32),
            activations,
            outputs,
            left=tuple(float(self._count(stage)[0]) for stage in range(len(self._ranks))),
            allocators=tuple(allocators),
        )


def _identity(tensor: Any) -> int | None:
    """Of a tensor's storage; None for what has none, such as a sparse tensor."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


def _identities(tree: Any) -> Iterator[int]:
    for tensor in tensors(tree):
        identity = _identity(tensor)
        if identity is not None:
            yield identity
