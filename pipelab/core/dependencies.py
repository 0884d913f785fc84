"""What an action needs before it can run. This is the only place that says it.

    F(s, i)       needs F(t, i) of every stage t that feeds s
    B or I (s, i) needs F(s, i), and B or I (u, i) of every stage u that s feeds
    W(s, i)       needs I(s, i)
    U(s, i)       needs B or W (s, i)

Where a micro-batch runs in k causal slices (numbers i*k .. i*k+k-1), a slice attends to the ones before it:

    F(s, q)       needs F(s, q-1) also, unless q is the first slice of its micro-batch
    B or I (s, q) needs B or I (s, q+1) also, unless q is the last

The validator, the simulator and the engines all call `needs`; it works on whole columns, and a single action
is a column of length one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelab.core.actions import CODES, ActionTable, IntArray, Kind
from pipelab.core.placement import Placement

__all__ = ["FORWARD", "INPUT", "RESULTS", "UPDATE", "WEIGHT", "Needs", "Slots", "StageGraph", "needs"]

FORWARD, INPUT, WEIGHT, UPDATE = range(4)
"""What an action can give: an output, the gradient of an input, the gradients of weights, new weights."""

RESULTS: dict[int, tuple[Kind, ...]] = {
    FORWARD: (Kind.F,),
    INPUT: (Kind.I, Kind.B),
    WEIGHT: (Kind.W, Kind.B),
    UPDATE: (Kind.U,),
}
"""The kinds that give each result, the split form first."""

_F, _I, _W, _B, _U = (CODES[kind] for kind in (Kind.F, Kind.I, Kind.W, Kind.B, Kind.U))


@dataclass(frozen=True, eq=False)
class Needs:
    """What each row of a table waits for, one line for each need.

    Attributes:
        row: shape (n,): the row that waits.
        result: shape (n,): what it waits for: `FORWARD`, `INPUT` or `WEIGHT`.
        stage: shape (n,): of which stage.
        microbatch: shape (n,): of which micro-batch.
        hop: shape (n,): over which edge the value comes: 2e forward and 2e + 1 backward over edge e of
            `placement.stage_edges`; -1 where it comes from the stage itself.
    """

    row: IntArray
    result: IntArray
    stage: IntArray
    microbatch: IntArray
    hop: IntArray


class StageGraph:
    """The stage graph as numpy columns: who feeds each stage, and whom each stage feeds.

    Attributes:
        feeders: list of columns, shape (stages,): the k-th edge into each stage, or -1.
        readers: list of columns, shape (stages,): the k-th edge out of each stage, or -1.
        source: shape (edges,): where each edge starts.
        target: shape (edges,): where it ends.
    """

    def __init__(self, placement: Placement) -> None:
        edges = np.array(placement.stage_edges, dtype=np.int64).reshape(-1, 2)
        self.source, self.target = edges[:, 0], edges[:, 1]
        self.feeders = _by_stage(self.target, placement.num_stages)
        self.readers = _by_stage(self.source, placement.num_stages)


def _by_stage(ends: IntArray, num_stages: int) -> list[IntArray]:
    columns: list[IntArray] = []
    order = np.argsort(ends, kind="stable")
    counts = np.bincount(ends, minlength=num_stages)
    first = np.cumsum(counts) - counts
    for k in range(int(counts.max(initial=0))):
        column = np.full(num_stages, -1, dtype=np.int64)
        has = np.flatnonzero(counts > k)
        column[has] = order[first[has] + k]
        columns.append(column)
    return columns


def needs(kind: IntArray, stage: IntArray, microbatch: IntArray, graph: StageGraph, slices: int = 1) -> Needs:
    """State what actions need, for whole columns of actions.

    Args:
        kind: shape (rows,): codes, indices into `KINDS`.
        stage: shape (rows,).
        microbatch: shape (rows,).
        graph: the stage graph of the placement.
        slices: k, in how many causal slices each micro-batch runs.

    Returns:
        One line for each need; whether anyone provides it is for the caller to look up.
    """
    lines: list[_Line] = []
    forward, backward = np.flatnonzero(kind == _F), np.flatnonzero((kind == _B) | (kind == _I))

    for edges in graph.feeders:
        lines.append(_across(forward, FORWARD, edges[stage[forward]], graph.source, 0))
    lines.append(_within(backward, FORWARD, stage))
    for edges in graph.readers:
        lines.append(_across(backward, INPUT, edges[stage[backward]], graph.target, 1))
    lines.append(_within(np.flatnonzero(kind == _W), INPUT, stage))
    lines.append(_within(np.flatnonzero(kind == _U), WEIGHT, stage))
    if slices > 1:
        lines.append(_within(forward[microbatch[forward] % slices > 0], FORWARD, stage))
        lines.append(_within(backward[(microbatch[backward] + 1) % slices > 0], INPUT, stage))

    row = np.concatenate([line[0] for line in lines])
    shift: IntArray | int = 0
    if slices > 1:  # the last two lines wait for the slice before and the slice after
        shift = np.repeat([0] * (len(lines) - 2) + [-1, 1], [len(line[0]) for line in lines])
    return Needs(
        row=row,
        result=np.concatenate([np.full(len(line[0]), line[1], dtype=np.int8) for line in lines]),
        stage=np.concatenate([line[2] for line in lines]),
        microbatch=microbatch[row] + shift,
        hop=np.concatenate([line[3] for line in lines]),
    )


_Line = tuple[IntArray, int, IntArray, IntArray]
"""Rows that wait, for which result, of which stages, over which hops."""


def _within(rows: IntArray, result: int, stage: IntArray) -> _Line:
    return rows, result, stage[rows], np.full(len(rows), -1, dtype=np.int64)


def _across(rows: IntArray, result: int, edge: IntArray, far_end: IntArray, direction: int) -> _Line:
    there = edge >= 0
    rows, edge = rows[there], edge[there]
    return rows, result, far_end[edge], 2 * edge + direction


class Slots:
    """A dense position table: which row gives which result of which stage and micro-batch.

    A slot is a pair (stage, micro-batch) that runs: every stage meets the micro-batches of its chain.

    Attributes:
        num_slots: how many pairs run.
        base: shape (stages,): the slot of (s, i) is `base[s] + i`.
        rows: shape (5, num_slots): the row of each kind F, I, W, B, U in each slot, or -1.
    """

    def __init__(self, placement: Placement, num_microbatches: int) -> None:
        chain = np.arange(placement.num_stages) // (placement.num_stages // placement.chains)
        cuts = -(-np.arange(placement.chains + 1) * num_microbatches // placement.chains)
        count = np.diff(cuts)[chain]
        self.first_microbatch, self.last_microbatch = cuts[chain], cuts[chain] + count - 1
        self.base = np.cumsum(count) - count - self.first_microbatch
        self.num_slots = int(count.sum())
        self.rows: IntArray = np.empty((5, 0), dtype=np.int32)

    def fill(self, table: ActionTable) -> IntArray:
        """Enter every row; of two equal actions the last stays.

        Returns:
            Shape (rows,): the row that ended up in each row's place; differs from its own number where it is
            doubled.
        """
        self.rows = np.full((5, self.num_slots), -1, dtype=np.int32)
        flat = self.rows.ravel()
        place = table.kind.astype(np.int64) * self.num_slots + self.base[table.stage] + table.microbatch
        flat[place] = np.arange(table.num_rows, dtype=np.int32)
        kept: IntArray = flat[place]
        return kept

    @cached_property
    def _givers(self) -> IntArray:
        whole = self.rows[_B]
        split_or_whole = [np.where(part < 0, whole, part) for part in (self.rows[_I], self.rows[_W])]
        return np.stack([self.rows[_F], *split_or_whole, self.rows[_U]])

    def givers(self, result: IntArray, stage: IntArray, microbatch: IntArray) -> IntArray:
        """The rows that give results (see `RESULTS`), or -1 where none does."""
        rows: IntArray = self._givers[result, self.base[stage] + microbatch]
        return rows

    def find(self, slot: int) -> tuple[int, int]:
        """The (stage, micro-batch) of a slot."""
        stage = int(np.flatnonzero(self.base + self.last_microbatch >= slot)[0])
        return stage, slot - int(self.base[stage])
