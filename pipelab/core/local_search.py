"""Local search: move one action of the critical path a few places, keep what is not longer.

Only a move on the critical path can make a step shorter: the chain of actions, each starting the moment the one before
ends, that fills the whole makespan. Where two neighbours of one rank are on it, one of them is moved past the other.
Moves that make nothing longer are kept too, so that the search crosses plateaus. It ends after a given number of tries
and draws from a seeded generator: the same arguments give the same order, in bounded time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelab.core.dispatch import Dispatched
from pipelab.core.jobs import Jobs

__all__ = ["Timing", "Workplace"]

_CLOSE = 1e-9
"""Two times this near (in makespans) are one: sums of decimals are not exact."""

_REACH = (1, 1, 1, 2, 3)
"""How many places an action moves; drawn from these."""


@dataclass(frozen=True)
class Timing:
    """Orders and when their actions end.

    Attributes:
        orders: for each rank the numbers of its actions in order.
        end: seconds, by number.
        makespan: seconds.
    """

    orders: tuple[tuple[int, ...], ...]
    end: list[float]
    makespan: float


@dataclass(frozen=True, eq=False)
class Workplace:
    """What orders of some jobs are judged by.

    Attributes:
        jobs: the actions, their costs and caps.
    """

    jobs: Jobs

    @cached_property
    def _took(self) -> list[float]:
        kind, stage, _ = self.jobs.columns
        return [self.jobs.seconds[k][s] for k, s in zip(kind.tolist(), stage.tolist(), strict=True)]

    @cached_property
    def _givers(self) -> list[list[tuple[int, float]]]:
        """For each action what it waits for, and seconds of the transfer."""
        kind, stage, microbatch = (column.tolist() for column in self.jobs.columns)
        number = {key: n for n, key in enumerate(zip(kind, stage, microbatch, strict=True))}
        return [
            [(number[a, t, i], transfer) for a, t, transfer in self.jobs.givers[k][s]] for k, s, i in number
        ]

    @cached_property
    def _changes(self) -> list[tuple[Sequence[int], list[int]]]:
        """For each kind of cap the caps of the ranks, and what each action adds and gives back."""
        jobs, last = self.jobs, len(self.jobs.kinds) - 1
        sign = {0: 1, last: -1}
        kind, stage, _ = (column.tolist() for column in jobs.columns)
        weights = [(jobs.caps, [1] * jobs.placement.num_stages), (jobs.room, jobs.kept_bytes)]
        return [
            (caps, [sign.get(k, 0) * weight[s] for k, s in zip(kind, stage, strict=True)])
            for caps, weight in weights
            if caps is not None
        ]

    def fits(self, rank: int, order: Sequence[int]) -> bool:
        """Whether an order keeps the caps of its rank."""
        for caps, change in self._changes:
            held = 0
            for action in order:
                held += change[action]
                if held > caps[rank]:
                    return False
        return True

    def timing(self, dispatched: Dispatched) -> Timing:
        """The same of what list scheduling made."""
        end = (dispatched.start + np.array(self._took)).tolist()
        return Timing(tuple(map(tuple, dispatched.orders)), end, dispatched.makespan)

    def time(self, orders: Sequence[Sequence[int]]) -> Timing | None:
        """When everything ends; None where ranks wait for each other in a circle."""
        took, givers = self._took, self._givers
        end: list[float] = [-1.0] * len(took)
        at, free = [0] * len(orders), [0.0] * len(orders)
        left, before = len(took), -1
        while left and left != before:
            before = left
            for rank, order in enumerate(orders):
                now, position = free[rank], at[rank]
                for action in order[position:]:
                    start = now
                    for giver, transfer in givers[action]:
                        arrival = end[giver]
                        if arrival < 0:
                            start = -1.0
                            break
                        if arrival + transfer > start:
                            start = arrival + transfer
                    if start < 0:
                        break
                    now = end[action] = start + took[action]
                    position += 1
                left -= position - at[rank]
                at[rank], free[rank] = position, now
        return None if left else Timing(tuple(map(tuple, orders)), end, max(free))

    def improve(self, timing: Timing, tries: int, seed: int, enough: float = 0.0) -> Timing:
        """Search from some orders on.

        Args:
            timing: where to begin; within the caps.
            tries: how many moves are tried.
            seed: of the random moves.
            enough: seconds; a makespan that is no longer ends the search.

        Returns:
            The best orders found, within the caps; never longer than those given.
        """
        draw, best = random.Random(seed), timing
        close = _CLOSE * timing.makespan
        moves = self._moves(timing, draw)
        for _ in range(tries):
            if timing.makespan <= enough + close:
                break
            if not moves:  # this critical path has none; there may be others
                moves = self._moves(timing, draw)
                continue
            rank, position = moves[draw.randrange(len(moves))]
            order = _moved(timing.orders[rank], position, draw)
            if not self.fits(rank, order):
                continue
            found = self.time((*timing.orders[:rank], order, *timing.orders[rank + 1 :]))
            if found is not None and found.makespan <= timing.makespan + close / 10:
                timing, best = found, min(best, found, key=lambda one: one.makespan)
                moves = self._moves(timing, draw)
        return best

    def _moves(self, timing: Timing, draw: random.Random) -> list[tuple[int, int]]:
        """Rank and position of the later of each two neighbours on a critical path, taken at random."""
        end, took, close = timing.end, self._took, _CLOSE * timing.makespan
        place = {
            action: (rank, n) for rank, order in enumerate(timing.orders) for n, action in enumerate(order)
        }
        lasts = [order[-1] for order in timing.orders if end[order[-1]] >= timing.makespan - close]
        action = lasts[draw.randrange(len(lasts))]
        moves: list[tuple[int, int]] = []
        while True:
            start = end[action] - took[action]
            rank, position = place[action]
            needs = [
                giver for giver, transfer in self._givers[action] if end[giver] + transfer >= start - close
            ]
            neighbour = timing.orders[rank][position - 1] if position else -1
            causes = list(needs)
            if neighbour >= 0 and end[neighbour] >= start - close and neighbour not in needs:
                causes.append(neighbour)
            if not causes or start <= close:
                return moves
            cause = causes[draw.randrange(len(causes))]
            if cause not in needs:
                moves.append((rank, position))
            action = cause


def _moved(order: tuple[int, ...], position: int, draw: random.Random) -> tuple[int, ...]:
    """The action moved to the front of its neighbour, or the neighbour behind it, by a few places."""
    reach, new = _REACH[draw.randrange(len(_REACH))], list(order)
    if draw.random() < 0.5:
        new.insert(max(0, position - reach), new.pop(position))
    else:
        new.insert(position - 1 + reach, new.pop(position - 1))
    return tuple(new)
