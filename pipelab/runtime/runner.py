"""Runs programs on the ranks of one pipeline, one at a time, and stops them from any thread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelab.core.schedule import Schedule
from pipelab.runtime.engine import Cell, Execution, Progress
from pipelab.runtime.followed import Followed
from pipelab.runtime.measured import Times
from pipelab.runtime.not_finite import NotFinite, Search
from pipelab.runtime.randomness import Randomness
from pipelab.runtime.rank_device import RankDevice
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.threads import ThreadPool


class Runner:
    """What runs the steps of a pipeline.

    Args:
        ranks: the device of each rank.
        pool: where the workers' threads come from.
        threads: intra-op threads of each worker.
        one_at_a_time: whether one worker runs all actions, for the virtual clock; else each rank has a worker.
        randomness: of the model.

    Attributes:
        interrupted: whether the step that runs was asked to stop.
    """

    def __init__(
        self,
        ranks: Sequence[RankDevice],
        pool: ThreadPool,
        threads: int,
        one_at_a_time: bool,
        randomness: Randomness,
    ) -> None:
        self.ranks, self._pool, self._threads = ranks, pool, threads
        self._one_at_a_time, self._randomness = one_at_a_time, randomness
        self._running: Execution | Search | None = None
        self.interrupted = False

    def interrupt(self) -> None:
        """Asks what runs to stop; it raises KeyboardInterrupt where it was started. Does not block."""
        self.interrupted = True
        running = self._running
        if running is not None:
            running.stop()

    def execute(
        self,
        schedule: Schedule,
        cells: Sequence[Cell],
        stages: SuspendedStages | Followed,
        progress: Progress | None = None,
    ) -> Times:
        """Runs a schedule's program; returns when its cells ran, once everything is at rest.

        Raises:
            KeyboardInterrupt: after `interrupt`.
            Exception: whatever an action raised first.
        """
        execution = Execution(cells, self._orders(schedule, cells), stages, self.ranks, self._threads)
        host_threads = torch.get_num_threads()
        self._randomness.begin_step()
        self._running = execution
        try:
            with stages.running():
                if self.interrupted:
                    raise KeyboardInterrupt
                execution.run(self._pool, progress)
                if execution.stopped:
                    raise KeyboardInterrupt
        finally:
            self._running = None
            self._randomness.end_step()
            torch.set_num_threads(host_threads)  # parts of this setting (MKL's) are global to the process
        return execution.times()

    def search(self, search: Search, random_state: Tensor) -> NotFinite:
        """Runs a forward once more to see where its loss stopped being a number."""
        self._running = search
        try:
            return search.run(random_state)
        finally:
            self._running = None

    def _orders(self, schedule: Schedule, cells: Sequence[Cell]) -> list[list[Cell]]:
        if self._one_at_a_time:
            return [[cells[index] for index in schedule.topological_order]]
        return [
            [cell for cell in cells if cell.rank == rank] for rank in sorted({cell.rank for cell in cells})
        ]
