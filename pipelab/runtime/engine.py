"""The local engine: runs the actions of a schedule in threads of this process.

The wall clock gives each rank a worker thread that runs its order; the virtual clock gives all ranks' actions to one
worker, in an order that respects every dependency. Both run the same actions by the same code, so the second is also
the race-free oracle of the first.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipelab.core.actions import CODES, Action, Kind
from pipelab.core.schedule import Schedule
from pipelab.errors import annotate
from pipelab.runtime.interception import Cancelled
from pipelab.runtime.rank_device import RankDevice
from pipelab.runtime.threads import ThreadPool

Progress = Callable[[int, int], None]


class Stages(Protocol):
    """All that the engine knows of a model cut in stages; a schedule with updates wants a method `update` as well."""

    def forward(self, stage: int, microbatch: int) -> None: ...

    def backward(self, stage: int, microbatch: int) -> None: ...

    def backward_input(self, stage: int, microbatch: int) -> None: ...

    def backward_weight(self, stage: int, microbatch: int) -> None: ...

    def cancel(self) -> None:
        """Gives up what is running; called from another thread, maybe more than once."""


METHODS = {
    Kind.F: ("forward", "forward"),
    Kind.B: ("backward", "backward"),
    Kind.I: ("backward_input", "backward of the inputs"),
    Kind.W: ("backward_weight", "backward of the weights"),
    Kind.U: ("update", "update of the weights"),
}
"""For each kind the method of `Stages` that runs it, and what messages call it."""


@dataclass(frozen=True)
class Cell:
    """One action of the program.

    Attributes:
        index: its number in the schedule's table.
        action: what to run; the members of an overlap run one after the other, once all of them may.
        rank: where.
        needs: the cells of other ranks that it waits for.
    """

    index: int
    action: Action
    rank: int
    needs: tuple[int, ...]


def program(schedule: Schedule) -> tuple[Cell, ...]:
    """The schedule's actions in table order (by rank, then by order on the rank)."""
    flat = [(action, rank) for rank, order in enumerate(schedule.orders) for action in order]
    where = {member: index for index, (action, _) in enumerate(flat) for member in action.parts}

    def needs(action: Action, rank: int) -> tuple[int, ...]:
        found = [where[need] for need in schedule.needs(action)]
        return tuple(dict.fromkeys(index for index in found if flat[index][1] != rank))

    return tuple(Cell(index, action, rank, needs(action, rank)) for index, (action, rank) in enumerate(flat))


def with_weight_gradients(schedule: Schedule) -> frozenset[tuple[int, int]]:
    """The (model stage, micro-batch) pairs whose backward is split: weight gradients have an action of their own."""
    table = schedule.table
    rows = table.kind == CODES[Kind.W]
    stages = table.stage[rows] % schedule.num_model_stages
    return frozenset(zip(stages.tolist(), table.microbatch[rows].tolist(), strict=True))


def most_in_flight(schedule: Schedule) -> int:
    """The most micro-batches whose forward has begun at stage 0 and whose backward there has not."""
    table = schedule.table
    kinds = table.kind[
        (table.stage == 0) & np.isin(table.kind, [CODES[kind] for kind in (Kind.F, Kind.B, Kind.I)])
    ]
    return int(np.cumsum(np.where(kinds == CODES[Kind.F], 1, -1)).max())


def forwards_only(schedule: Schedule, num_microbatches: int) -> Schedule:
    """The forwards of the first micro-batches, in the schedule's own order and on its ranks."""
    orders = [
        [
            member
            for action in order
            for member in action.parts
            if member.kind is Kind.F and member.microbatch < num_microbatches
        ]
        for order in schedule.orders
    ]
    return Schedule(orders, schedule.placement, name=f"{schedule.name}, forwards only")


class Execution:
    """One run of a program.

    Args:
        cells: the program, in table order.
        orders: for each worker the cells it runs, in order.
        stages: what the actions do.
        ranks: the device of each rank.
        threads: intra-op threads of each worker.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        orders: Sequence[Sequence[Cell]],
        stages: Stages,
        ranks: Sequence[RankDevice],
        threads: int,
    ) -> None:
        self._cells, self._orders, self._stages, self._ranks = cells, orders, stages, ranks
        self._threads = threads
        self._starts: list[Any] = [None] * len(cells)
        self._ends: list[Any] = [None] * len(cells)
        self._errors: list[BaseException] = []
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._count = 0
        self.stopped = False
        worker = {cell.index: number for number, order in enumerate(orders) for cell in order}
        # One gate for each need that crosses from worker to worker: locked until the need is met.
        self._gates: dict[tuple[int, int], threading.Lock] = {}
        self._opens: dict[int, list[threading.Lock]] = {}
        for cell in cells:
            for need in cell.needs:
                if worker[need] != worker[cell.index]:
                    gate = self._gates[need, cell.index] = threading.Lock()
                    gate.acquire()
                    self._opens.setdefault(need, []).append(gate)

    def run(self, pool: ThreadPool, progress: Progress | None = None) -> None:
        """Runs every action; returns when all workers are at rest, whatever happened.

        Raises:
            Whatever an action raised first, with a note that names the action. After `stop`, nothing.
        """
        for rank in set(self._ranks):
            rank.begin_step()
        waiting = self._start(pool)
        while waiting:
            try:
                self._finished.get(timeout=0.05)
                waiting -= 1
            except queue.Empty:
                if progress is not None:
                    progress = self._report(progress)
        for rank in set(self._ranks):
            rank.finish()
        if progress is not None and not self._errors:
            self._report(progress)
        first = next((error for error in self._errors if not isinstance(error, Cancelled)), None)
        self._errors = []
        try:
            if first is not None:
                raise first
        finally:
            del first  # an error that knows the frame that knows the error would keep all tensors of the step

    def _start(self, pool: ThreadPool) -> int:
        """Starts the workers; returns how many there are, fewer if the system has no more threads: then they stop."""
        for number, order in enumerate(self._orders):
            try:
                place = self._ranks[order[0].rank].place if order else None
                pool.run(lambda number=number: self._work(number), place)  # type: ignore[misc]
            except BaseException as error:
                self._errors.append(error)
                self.stop()
                return number
        return len(self._orders)

    def _report(self, progress: Progress) -> Progress | None:
        """Calls the caller's function. If it raises, the step stops, and the error is the step's."""
        try:
            progress(self._count, len(self._cells))
        except BaseException as error:
            annotate(error, "pipelab: raised in the function for the progress; the step was stopped.")
            self._errors.append(error)
            self.stop()
            return None
        return progress

    def stop(self) -> None:
        """Makes every worker stop before its next action, and gives up what is running. Safe from any thread."""
        self.stopped = True
        for gate in self._gates.values():
            with contextlib.suppress(RuntimeError):  # it was open already
                gate.release()
        self._stages.cancel()

    def times(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When each cell started and ended, in seconds on the host's clock; only after `run`."""
        ranks = [self._ranks[cell.rank] for cell in self._cells]
        starts = [rank.seconds(mark) for rank, mark in zip(ranks, self._starts, strict=True)]
        ends = [rank.seconds(mark) for rank, mark in zip(ranks, self._ends, strict=True)]
        return np.array(starts), np.array(ends)

    def _work(self, number: int) -> None:
        try:
            torch.set_num_threads(self._threads)  # counts for the calling thread alone
            for cell in self._orders[number]:
                self._wait(cell)
                self._perform(cell)
        except BaseException as error:
            self._errors.append(error)
            self.stop()
        finally:
            self._finished.put(number)

    def _wait(self, cell: Cell) -> None:
        for need in cell.needs:
            gate = self._gates.get((need, cell.index))
            if gate is not None:
                gate.acquire()
        if self.stopped:
            raise Cancelled

    def _perform(self, cell: Cell) -> None:
        rank, members = self._ranks[cell.rank], cell.action.parts
        rank.activate(members[0].microbatch)
        rank.wait([self._ends[need] for need in cell.needs])
        self._starts[cell.index] = rank.mark()
        for action in members:
            rank.activate(action.microbatch)
            method, name = METHODS[action.kind]
            try:
                getattr(self._stages, method)(action.stage, action.microbatch)
            except BaseException as error:
                if not isinstance(error, Cancelled):
                    annotate(
                        error,
                        f"pipelab: raised in action {action}: the {name} of stage {action.stage}, micro-batch "
                        f"{action.microbatch}, on rank {cell.rank} ({rank.device}).",
                    )
                raise
            self._ends[cell.index] = rank.mark()
        self._count += 1
        for gate in self._opens.get(cell.index, ()):
            with contextlib.suppress(RuntimeError):  # `stop` opened it
                gate.release()
