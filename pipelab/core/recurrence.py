"""The recurrence that a schedule is: an entry starts when its rank is free and its input has arrived.

    end[k] = max(end[previous on the rank], end[what it needs] + transfer) + duration

It is compiled once per schedule into plain Python lists in topological order; new costs only re-run the loop.
A cell that needs several values becomes several entries, all but the last without duration, so that one loop
serves all. Two sentinels stand before the entries: 0 ends at time 0 (nothing ran before on the rank), 1 ends
at minus infinity (nothing is needed).

What is called a cell on a rank here is any task that runs in a row of tasks: a transfer on a link, for instance
(`lanes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import IntArray

__all__ = ["FloatArray", "Predecessors", "Recurrence", "StuckError", "compile_recurrence"]

FloatArray = npt.NDArray[np.float64]

_SENTINELS = 2
_MANY = 4_000_000
"""How many numbers `makespans` or `carries` holds at once (32 MB)."""


class StuckError(Exception):
    """Some ranks can never go on.

    Attributes:
        heads: for each stuck rank the cell that it cannot run and the cell that this one waits for.
    """

    def __init__(self, heads: dict[int, tuple[int, int]]) -> None:
        super().__init__(heads)
        self.heads = heads


@dataclass(frozen=True, eq=False)
class Predecessors:
    """What cells need from other ranks; what they need from their own rank is kept by the order.

    Attributes:
        cell: shape (n,): the cell that waits.
        needed: shape (n,): the cell that it waits for.
        hop: shape (n,): the edge of the stage graph and the direction, 2e forward and 2e + 1 backward.
    """

    cell: IntArray
    needed: IntArray
    hop: IntArray


@dataclass(frozen=True, eq=False, repr=False)
class Recurrence:
    """A schedule compiled for the longest path.

    Attributes:
        work: shape (entries,): the cell of each entry in topological order; -1 where the entry only waits.
        hop: shape (entries,): over which hop the needed value comes; -1 for none.
        previous: shape (entries,): which end frees the rank, sentinels included.
        needed: shape (entries,): which end the entry waits for, sentinels included.
        place: shape (cells,): which end is that of each cell.
        first: shape (ranks that run something,): the first entry of each.
        last: the last entry of each.
    """

    work: IntArray
    hop: IntArray
    previous: IntArray
    needed: IntArray
    place: IntArray
    first: IntArray
    last: IntArray
    _steps: tuple[list[int], list[int]]

    def times(self, durations: FloatArray, transfers: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Run the recurrence for one set of costs.

        Args:
            durations: shape (entries,): seconds, 0 for entries that only wait.
            transfers: shape (hops,): seconds; or one number for every hop.

        Returns:
            Start and end of each cell, each of shape (cells,), in table order, in seconds.
        """
        moves = transfers if isinstance(transfers, float) else transfers[self.hop]
        ends = [0.0, -np.inf]
        append = ends.append
        every_move = repeat(moves) if isinstance(moves, float) else moves.tolist()
        for duration, previous, needed, move in zip(
            durations.tolist(), *self._steps, every_move, strict=False
        ):
            free = ends[previous]
            arrival = ends[needed] + move
            append((free if free > arrival else arrival) + duration)
        end = np.fromiter(ends, dtype=np.float64, count=len(ends))
        start = np.maximum(end[self.previous], end[self.needed] + moves)
        return start[self.place - _SENTINELS], end[self.place]

    def makespans(self, durations: FloatArray, which: IntArray, transfers: FloatArray) -> FloatArray:
        """Run the recurrence for K sets of costs at once.

        Args:
            durations: shape (classes, K): seconds.
            which: shape (entries,): the class of each entry.
            transfers: shape (hops, K): seconds.

        Returns:
            Shape (K,): seconds from the first start (at 0) to the last end.
        """
        count = durations.shape[1]
        at_once = max(1, _MANY // max(1, len(self.work)))
        chunks = [slice(k, k + at_once) for k in range(0, count, at_once)]
        classes = which.tolist()
        found = [self._last_ends(durations[:, c], classes, transfers[:, c]) for c in chunks]
        return np.concatenate(found) if found else np.zeros(0)

    def carries(self, durations: FloatArray, transfers: FloatArray) -> FloatArray:
        """How the moments at which ranks become free carry over from one run to the next.

        With x the moments at which the ranks become free for a run, rank r becomes free again at
        max over s of (x[s] + found[r, s]): the longest chain that begins on rank s and ends on rank r.

        Args:
            durations: shape (entries,): seconds.
            transfers: shape (hops,): seconds.

        Returns:
            Shape (ranks that run something, the same): seconds; -inf where nothing carries over.
        """
        count = len(self.first)
        at_once = max(1, _MANY // max(1, len(self.work)))
        parts = [slice(k, min(count, k + at_once)) for k in range(0, count, at_once)]
        return np.hstack([self._carried(durations, transfers, part) for part in parts])

    def _carried(self, durations: FloatArray, transfers: FloatArray, part: slice) -> FloatArray:
        """The columns of `carries` for some of the ranks."""
        free = np.full((len(self.first), part.stop - part.start), -np.inf)
        free[np.arange(part.start, part.stop), np.arange(free.shape[1])] = 0.0
        ends = np.full((len(self.work) + _SENTINELS, free.shape[1]), -np.inf)
        rows = list(ends)
        before = [rows[k] for k in self._steps[0]]
        for entry, start in zip(self.first.tolist(), free, strict=True):
            before[entry] = start
        steps = zip(
            rows[_SENTINELS:],
            before,
            self._steps[1],
            durations.tolist(),
            transfers[self.hop].tolist(),
            strict=True,
        )
        scratch = np.empty(free.shape[1])
        add, maximum = np.add, np.maximum
        for end, previous, needed, duration, move in steps:
            if needed != 1:
                add(rows[needed], move, out=scratch)
                maximum(previous, scratch, out=scratch)
                add(scratch, duration, out=end)
            else:
                add(previous, duration, out=end)
        return ends[self.last + _SENTINELS]

    def _last_ends(self, durations: FloatArray, classes: list[int], transfers: FloatArray) -> FloatArray:
        ends = np.empty((len(classes) + _SENTINELS, durations.shape[1]))
        ends[0], ends[1] = 0.0, -np.inf
        rows, costs, moves = list(ends), list(durations), list(transfers)
        scratch = np.empty(durations.shape[1])
        add, maximum = np.add, np.maximum
        steps = zip(rows[_SENTINELS:], classes, *self._steps, self.hop.tolist(), strict=True)
        for end, work, previous, needed, hop in steps:
            if hop >= 0:
                add(rows[needed], moves[hop], out=scratch)
                maximum(rows[previous], scratch, out=scratch)
                add(scratch, costs[work], out=end)
            else:
                add(rows[previous], costs[work], out=end)
        return np.asarray(ends.max(axis=0))


def compile_recurrence(cell_rank: IntArray, num_ranks: int, predecessors: Predecessors) -> Recurrence:
    """Sort the cells topologically and lay them out for the loop.

    Args:
        cell_rank: shape (cells,), ascending.
        num_ranks: p.
        predecessors: what the cells need from other ranks.

    Raises:
        StuckError: there is no such order; it says where every stuck rank stands.
    """
    num_cells = len(cell_rank)
    counts = np.bincount(predecessors.cell, minlength=num_cells)
    last = np.cumsum(np.maximum(counts, 1)) - 1  # the entry of each cell, in table order
    num_entries = int(last[-1]) + 1 if num_cells else 0

    work = np.full(num_entries, -1, dtype=np.int64)
    work[last] = np.arange(num_cells)
    needed = np.full(num_entries, num_entries, dtype=np.int64)
    hop = np.full(num_entries, -1, dtype=np.int64)
    by_cell = np.argsort(predecessors.cell, kind="stable")
    has_need = np.ones(num_entries, dtype=bool)
    has_need[last[counts == 0]] = False
    needed[has_need] = last[predecessors.needed[by_cell]]
    hop[has_need] = predecessors.hop[by_cell]

    stops = np.zeros(num_ranks + 1, dtype=np.int64)
    stops[1:] = np.cumsum(np.bincount(cell_rank, weights=np.maximum(counts, 1), minlength=num_ranks))
    order = np.array(_topological_order(needed.tolist(), stops.tolist(), last), dtype=np.int64)

    position = np.empty(num_entries + 1, dtype=np.int64)
    position[order] = np.arange(num_entries) + _SENTINELS
    position[num_entries] = 1
    previous = position[order - 1]
    previous[np.isin(order, stops[:-1])] = 0
    needed = position[needed[order]]
    steps = (previous.tolist(), needed.tolist())
    runs = stops[:-1] < stops[1:]
    first, final = (position[entry[runs]] - _SENTINELS for entry in (stops[:-1], stops[1:] - 1))
    return Recurrence(work[order], hop[order], previous, needed, position[last], first, final, steps)


def _topological_order(needed: list[int], stops: list[int], last: IntArray) -> list[int]:
    """Let each rank run until it must wait; whoever it waits for wakes it up."""
    done = bytearray(len(needed) + 1)
    done[len(needed)] = 1
    at = stops[:-1]
    sleepers: dict[int, list[int]] = {}
    ready = list(range(len(at) - 1, -1, -1))
    order: list[int] = []
    append = order.append
    while ready:
        rank = ready.pop()
        entry, stop = at[rank], stops[rank + 1]
        while entry < stop:
            need = needed[entry]
            if not done[need]:
                sleepers.setdefault(need, []).append(rank)
                break
            done[entry] = 1
            append(entry)
            if entry in sleepers:
                ready.extend(sleepers.pop(entry))
            entry += 1
        at[rank] = entry
    if len(order) < len(needed):
        cell_of = np.searchsorted(last, np.arange(len(needed)))
        heads = {
            rank: (int(cell_of[k]), int(cell_of[needed[k]]))
            for rank, k in enumerate(at)
            if k < stops[rank + 1]
        }
        raise StuckError(heads)
    return order
