"""Schedules that are written as phases: on each rank a pattern of cells, repeated, then the next pattern.

    Phase("F0", 3), Phase("F1 I1 W1", 2)    F0 F0 F0 F1 I1 W1 F1 I1 W1

Letters are kinds and digits number the stages of a rank; `F0;B1` is one cell in which two actions overlap. Micro-
batches are taken in order: the k-th F0 of a rank is that of micro-batch k, and likewise its k-th I0 or B0, and
its k-th W0 or B0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import CODES, ActionTable, IntArray, Kind
from pipelab.core.placement import Placement

__all__ = ["Phase", "Rows", "late_weights", "lay_out"]

_I, _W = CODES[Kind.I], CODES[Kind.W]

_COUNTED_WITH = {"F": ("F",), "I": ("I",), "W": ("W",), "B": ("I", "W")}
"""What a kind counts as: the next I after a B is that of the next micro-batch, and so is the next W."""


@dataclass(frozen=True)
class Phase:
    """A pattern of cells that each rank repeats.

    Attributes:
        pattern: cells with spaces between; "." is a cell that something else is put into. Of F, backward and W of
            one chunk a pattern has each at most once.
        repeats: shape (p,): how often each rank runs it.
    """

    pattern: str
    repeats: IntArray


@dataclass(frozen=True, eq=False)
class Rows:
    """Actions that know their cell, in any order.

    Attributes:
        kind: shape (n,): codes.
        chunk: shape (n,): which of the rank's stages.
        microbatch: shape (n,).
        rank: shape (n,).
        at: shape (n,): which cell of the rank, from 0; there may be gaps.
        member: shape (n,): the place within the cell.
    """

    kind: IntArray
    chunk: IntArray
    microbatch: IntArray
    rank: IntArray
    at: IntArray
    member: IntArray

    def __add__(self, other: Rows) -> Rows:
        return Rows(*map(np.concatenate, zip(self._columns(), other._columns(), strict=True)))

    def where(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Some of the rows; chosen is of shape (n,)."""
        return Rows(*(column[chosen] for column in self._columns()))

    def _columns(self) -> tuple[IntArray, ...]:
        return self.kind, self.chunk, self.microbatch, self.rank, self.at, self.member

    def table(self, placement: Placement) -> ActionTable:
        """Sort the rows; the chunks of a rank are its stages, ascending."""
        stages = np.argsort(placement.ranks, kind="stable").reshape(placement.num_ranks, -1)
        cell = self.rank * (int(self.at.max()) + 1) + self.at
        order = np.argsort(2 * cell + self.member, kind="stable")
        rank, chunk = self.rank[order], self.chunk[order]
        number = np.cumsum(np.diff(cell[order], prepend=-1) > 0) - 1
        return ActionTable(self.kind[order], stages[rank, chunk], self.microbatch[order], rank, number)


def lay_out(phases: Iterable[Phase], num_ranks: int, num_microbatches: int) -> tuple[Rows, list[IntArray]]:
    """Number the actions of every phase, all ranks at once.

    Actions of a micro-batch that there is not are left out: a pattern may run further than there is to do.

    Args:
        phases: in order.
        num_ranks: p.
        num_microbatches: m.

    Returns:
        The rows, and for each phase the cell in which it begins on each rank, of shape (p,).
    """
    counts: dict[str, IntArray] = {}
    begin = np.zeros(num_ranks, dtype=np.int64)
    begins: list[IntArray] = []
    parts: list[list[IntArray]] = []
    for phase in phases:
        cells = phase.pattern.split()
        for offset, cell in enumerate(cells):
            for member, action in enumerate(cell.split(";") if cell != "." else ()):
                letter, chunk = action[0], action[1:]
                counters = [name + chunk for name in _COUNTED_WITH[letter]]
                first = counts.get(counters[0], np.zeros(num_ranks, dtype=np.int64))
                take = np.clip(num_microbatches - first, 0, phase.repeats)
                rank = np.repeat(np.arange(num_ranks), take)
                turn = np.arange(len(rank)) - np.repeat(np.cumsum(take) - take, take)
                same = np.ones_like(turn)
                fixed = [same * CODES[Kind(letter)], same * int(chunk)]
                at = begin[rank] + turn * len(cells) + offset
                parts.append([*fixed, first[rank] + turn, rank, at, same * member])
                for counter in counters:
                    counts[counter] = first + phase.repeats
        begins.append(begin)
        begin = begin + phase.repeats * len(cells)
    return Rows(*map(np.concatenate, zip(*parts, strict=True))), begins


def late_weights(rows: Rows, first: IntArray, rest: IntArray, waits: IntArray) -> Rows:
    """The W that are put off, in the order of their I, for the free cells of a rank's last phases.

    These are `. I0`, in which one W runs before each further I, and `.` for all that are left.

    Args:
        rows: what is there without them.
        first: shape (p,): the cell of the first I whose W is late; from there to `rest` every cell is one.
        rest: shape (p,): the cell in which `. I0` begins.
        waits: shape (p,): how often `. I0` runs.
    """
    late = np.flatnonzero((rows.kind == _I) & (rows.at >= first[rows.rank]))
    rank, at = rows.rank[late], rows.at[late]
    start = rest[rank]
    turn = np.where(at < start, at - first[rank], start - first[rank] + (at - start) // 2)
    slot = start + turn + np.minimum(turn, waits[rank])
    kind = np.full(len(late), _W)
    return Rows(kind, rows.chunk[late], rows.microbatch[late], rank, slot, np.zeros_like(slot))
