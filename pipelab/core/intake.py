"""In which order a schedule's first stages take micro-batches, and which forward takes each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.dependencies import StageGraph
from pipelab.core.feed import Feed
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError

__all__ = ["Intake", "intake_of", "taken_on_one_rank"]


@dataclass(frozen=True, eq=False, repr=False)
class Intake:
    """The order in which micro-batches come.

    A chain may have several first stages (with edges given by hand). Each needs the micro-batch; the one that comes
    first in the order takes it out of the queue.

    Attributes:
        microbatch: shape (m,).
        cell: shape (m,): the cell that takes each out of the queue.
        stage: shape (m,): the first stage of that cell.
        reader: shape (n,): every cell that reads an input, and
        read: shape (n,): which it reads, a position in `microbatch`.
        workers: how many prepare.
        queue: how many prepared micro-batches may wait.
    """

    microbatch: IntArray
    cell: IntArray
    stage: IntArray
    reader: IntArray
    read: IntArray
    workers: int
    queue: int


def intake_of(schedule: Schedule, feed: Feed, starts: FloatArray | None = None) -> Intake:
    """Find the order in which the first stages take micro-batches.

    Args:
        schedule: any schedule.
        feed: how many workers and how much room.
        starts: shape (cells,): when each cell would start without a feed. It decides which comes first on two ranks; of
            two that start together, the one with the shorter chain of actions before it, then the lower rank. None
            where `taken_on_one_rank` says that one rank takes all.

    Raises:
        PipelabError: the queue has less room than one cell takes at once.
    """
    rows = _taking(schedule)
    table = schedule.table
    cell, microbatch = table.cell[rows], table.microbatch[rows]
    keys: list[IntArray | FloatArray] = [microbatch, cell]
    if starts is not None:
        recurrence = schedule.recurrence
        depth, _ = recurrence.times((recurrence.work >= 0).astype(np.float64), 0.0)
        keys += [depth[cell], starts[cell]]
    order = np.lexsort(keys)
    _, first = np.unique(microbatch[order], return_index=True)
    first = order[np.sort(first)]
    at_once = int(np.bincount(cell[first]).max())
    if at_once > feed.queue:
        wide = table.action(int(np.argmax(np.bincount(cell[first]))))
        raise PipelabError(
            f"{schedule.name}: {wide} takes {at_once} micro-batches at once, but the queue of the feed has room for "
            f"{feed.queue}. Give it room for {at_once}."
        )
    position = np.empty(len(first), dtype=np.int64)
    position[microbatch[first]] = np.arange(len(first))
    return Intake(
        microbatch[first],
        cell[first],
        table.stage[rows][first],
        cell,
        position[microbatch],
        feed.workers,
        feed.queue,
    )


def _taking(schedule: Schedule) -> IntArray:
    """The rows of the forwards that read an input: those of stages that no other stage feeds."""
    table, graph = schedule.table, StageGraph(schedule.placement)
    is_first = np.ones(schedule.num_stages, dtype=bool)
    is_first[graph.target] = False
    return np.flatnonzero((table.kind == CODES[Kind.F]) & is_first[table.stage])


def taken_on_one_rank(schedule: Schedule) -> bool:
    """Whether one rank takes every micro-batch, so that its order alone decides."""
    ranks = schedule.table.rank[_taking(schedule)]
    return bool((ranks == ranks[0]).all())
