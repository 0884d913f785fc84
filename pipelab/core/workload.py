"""The few distinct durations and transfers that a schedule of many cells has.

A step of 131,072 cells over 64 stages has 128 durations: one for the forward and one for the backward of each
stage. Costs are looked up once per class, not once per cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipelab.core.actions import KINDS, ActionTable, IntArray, Kind
from pipelab.core.placement import Placement
from pipelab.core.recurrence import Recurrence

if TYPE_CHECKING:
    from pipelab.core.lanes import Features, Lanes

__all__ = ["Hop", "Work", "Workload"]

Work = tuple[tuple[Kind, int], ...]
"""What one class of cells computes: the kind and the model stage of each member; empty for no work at all."""

Hop = tuple[int, int, int]
"""Source rank, target rank, and the model stage whose output (or its gradient) travels."""


@dataclass(frozen=True, eq=False, repr=False)
class Workload:
    """What costs are needed for, and where.

    Attributes:
        works: the classes of cells; the last is the empty one, of entries that only wait.
        hops: for each hop of the recurrence its ranks and its model stage; the last goes nowhere and is that of
            entries that need nothing.
        which: shape (entries,): the class of each entry of the recurrence.
        compiled: the schedule with further lanes, kept once it was compiled (`lanes`).
    """

    works: tuple[Work, ...]
    hops: tuple[Hop, ...]
    which: IntArray
    compiled: dict[Features, Lanes] = field(default_factory=dict)

    @classmethod
    def of(cls, table: ActionTable, placement: Placement, recurrence: Recurrence) -> Workload:
        """Find the classes of a schedule."""
        model_stage = np.array(placement.model_stages)
        key = table.kind.astype(np.int64) * placement.num_stages + model_stage[table.stage]
        works, of_cell = _overlaps(key, table) if table.has_overlaps else _plain(key)
        named: list[Work] = [
            tuple((KINDS[k // placement.num_stages], k % placement.num_stages) for k in members)
            for members in works
        ]
        which = np.append(of_cell, len(named))[recurrence.work]
        hops: list[Hop] = []
        for source, target in placement.stage_edges:
            a, b, stage = placement.ranks[source], placement.ranks[target], placement.model_stages[source]
            hops += [(a, b, stage), (b, a, stage)]
        return cls((*named, ()), (*hops, (0, 0, 0)), which)


def _plain(key: IntArray) -> tuple[list[tuple[int, ...]], IntArray]:
    present = np.flatnonzero(np.bincount(key))
    number = np.zeros(int(key.max()) + 1, dtype=np.int64)
    number[present] = np.arange(len(present))
    return [(int(k),) for k in present], number[key]


def _overlaps(key: IntArray, table: ActionTable) -> tuple[list[tuple[int, ...]], IntArray]:
    members: dict[tuple[int, ...], int] = {}
    stops = [*table.first_rows[1:].tolist(), table.num_rows]
    keys = key.tolist()
    found = [
        members.setdefault(tuple(keys[a:b]), len(members))
        for a, b in zip(table.first_rows.tolist(), stops, strict=True)
    ]
    return list(members), np.array(found)
