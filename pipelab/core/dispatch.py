"""List scheduling: whenever a rank is free it takes the most urgent action that it may run.

An event loop over time, in plain Python since every choice depends on those before. Actions are numbered by
urgency, so that comparing two of them is comparing two integers.

**Never a dead end.** A cap on what a rank holds could stop a pipeline for good: ranks full of first chunks have
no room for the second ones. So a forward is taken only if afterwards all micro-batches could still be finished
one by one, oldest first, each with the room that is free then (the banker's algorithm, per rank). The oldest
unfinished micro-batch may always go on, so something always can. All that this asks of a cap is room for one
micro-batch.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.core.jobs import Jobs
from pipelab.core.recurrence import FloatArray

__all__ = ["Dispatched", "dispatch"]

_CLOSE = 1e-9
"""Arrivals this near (in longest durations) count as now: sums of decimals are not exact."""


@dataclass(frozen=True)
class Dispatched:
    """What came out of one run of `dispatch`.

    Attributes:
        orders: for each rank the numbers of its actions in order; `Jobs.table` lays them out.
        start: shape (actions,): seconds, by number.
        makespan: seconds that they take.
    """

    orders: tuple[list[int], ...]
    start: FloatArray
    makespan: float


@dataclass
class _Room:
    """What a rank may hold of one resource, and who holds it.

    Attributes:
        free: what is left.
        weight: what a forward of each stage takes.
        until: the kind (1 for I or B, 2 for W) that gives it back.
        missing: for each micro-batch (by turn) what its forwards will still take.
        held: for each micro-batch (by turn) what it holds.
        most: what a whole micro-batch takes.
        first: the turn before which all micro-batches have been here and gone.
    """

    free: int
    weight: dict[int, int]
    until: int
    missing: list[int]
    held: list[int]
    most: int
    first: int = 0

    def takes(self, stage: int, turn: int) -> bool:
        """Whether after this forward everybody could still be finished, one by one."""
        spare = self.free - self.weight[stage]
        if spare < 0:
            return False
        for other in range(self.first, turn):
            if spare >= self.most:
                return True
            if self.missing[other] > spare:
                return False
            spare += self.held[other]
        return True

    def take(self, stage: int, turn: int) -> None:
        amount = self.weight[stage]
        self.free -= amount
        self.missing[turn] -= amount
        self.held[turn] += amount

    def give(self, stage: int, turn: int) -> None:
        self.free += self.weight[stage]
        self.held[turn] -= self.weight[stage]
        while self.first < len(self.held) and not (self.missing[self.first] or self.held[self.first]):
            self.first += 1


def _rooms(jobs: Jobs) -> list[list[_Room]]:
    """The caps of each rank."""
    placement, m = jobs.placement, jobs.num_microbatches
    rooms: list[list[_Room]] = [[] for _ in range(placement.num_ranks)]
    last = len(jobs.kinds) - 1
    for rank, found in enumerate(rooms):
        stages = placement.stages_of(rank)
        one = dict.fromkeys(stages, 1)
        limits: list[tuple[int, dict[int, int], int]] = []
        if jobs.caps is not None:
            limits.append((jobs.caps[rank], one, last))
        if jobs.ahead is not None:
            limits.append((jobs.ahead[rank], one, 1))
        if jobs.room is not None:
            limits.append((jobs.room[rank], {s: jobs.kept_bytes[s] for s in stages}, last))
        if jobs.stage_caps is not None:
            limits += [(jobs.stage_caps[s], {t: int(t == s) for t in stages}, last) for s in stages]
        for limit, weight, until in limits:
            missing = [0] * m
            for stage in stages:
                for turn in jobs.chain_turns[placement.chain_of_stage(stage)]:
                    missing[turn] += weight[stage]
            found.append(_Room(limit, weight, until, missing, [0] * m, max(missing)))
    return rooms


@dataclass
class _Rank:
    """One rank while time runs.

    Attributes:
        rooms: its caps.
        forwards: the urgencies of forwards that have arrived, ascending.
        others: the same of backwards; they may always run.
        coming: heap of (seconds, urgency): what is known to arrive.
        order: the actions that it has run.
        free_at: seconds when it has finished.
    """

    rooms: list[_Room]
    forwards: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    coming: list[tuple[float, int]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    free_at: float = 0.0


class _Loop:
    """The state of one run of `dispatch`; urgencies number the actions, 0 is the most urgent."""

    def __init__(self, jobs: Jobs, urgency: Sequence[int] | IntArray, patience: Sequence[float]) -> None:
        """Give each action its place in the order of urgency, and let the first ones arrive."""
        self.patience = patience
        by_urgency = np.asarray(urgency, dtype=np.int64)
        kind, stage, microbatch = (column[by_urgency] for column in jobs.columns)
        self.number: list[int] = by_urgency.tolist()
        self.kind: list[int] = kind.tolist()
        self.stage: list[int] = stage.tolist()
        self.microbatch: list[int] = microbatch.tolist()
        self.turn: list[int] = np.array(jobs.turns)[microbatch].tolist()
        self.rank_of = jobs.placement.ranks
        self.seconds, self.followers = jobs.seconds, jobs.followers
        self.close = _CLOSE * max(map(max, jobs.seconds))
        self.ranks = [_Rank(rooms) for rooms in _rooms(jobs)]
        place = np.empty((len(jobs.kinds), jobs.placement.num_stages, jobs.num_microbatches), dtype=np.int64)
        place[kind, stage, microbatch] = np.arange(len(by_urgency))
        self.place: Any = place.tolist()
        self.missing: list[int] = np.array(jobs.num_needs)[kind, stage].tolist()
        self.arrival = [0.0] * len(self.number)
        self.events: list[tuple[float, int]] = [(0.0, rank) for rank in range(len(self.ranks))]
        for action, missing in enumerate(self.missing):
            if not missing:
                self.ranks[self.rank_of[self.stage[action]]].forwards.append(action)

    def run(self) -> Dispatched:
        """Let time run until nobody has anything left to do."""
        events, ranks = self.events, self.ranks
        while events:
            now, index = heappop(events)
            rank = ranks[index]
            if rank.free_at > now:
                continue
            while rank.coming and rank.coming[0][0] <= now + self.close:
                action = heappop(rank.coming)[1]
                insort(rank.others if self.kind[action] else rank.forwards, action)
            chosen = self._choose(rank, now)
            if chosen >= 0:
                self._start(rank, chosen, now)
                heappush(events, (rank.free_at, index))
            elif rank.coming:
                heappush(events, (rank.coming[0][0], index))
        orders = tuple([self.number[action] for action in rank.order] for rank in ranks)
        start = np.empty(len(self.number))
        start[self.number] = self.arrival
        return Dispatched(orders, start, max(rank.free_at for rank in ranks))

    def _may(self, rank: _Rank, action: int) -> bool:
        return all(room.takes(self.stage[action], self.turn[action]) for room in rank.rooms)

    def _choose(self, rank: _Rank, now: float) -> int:
        """The most urgent action that may run and does not make a more urgent one wait; -1 for none."""
        forward = next((f for f in rank.forwards if self._may(rank, f)), None) if rank.forwards else None
        choices = [rank.others[0]] if rank.others else []
        if forward is not None:
            choices.append(forward)
        if not self.patience:
            return min(choices, default=-1)
        choices = sorted({*rank.others, *choices})
        for action in choices:
            kind = self.kind[action]
            stop = now + self.patience[kind] * self.seconds[kind][self.stage[action]] - self.close
            for arrival, other in rank.coming:
                if other < action and arrival < stop and (self.kind[other] or self._may(rank, other)):
                    break
            else:
                return action
        return -1

    def _start(self, rank: _Rank, action: int, now: float) -> None:
        kind, stage, microbatch = self.kind[action], self.stage[action], self.microbatch[action]
        (rank.others if kind else rank.forwards).remove(action)
        rank.order.append(action)
        for room in rank.rooms:
            if kind == 0:
                room.take(stage, self.turn[action])
            elif kind == room.until:
                room.give(stage, self.turn[action])
        start = self.arrival[action] = max(now, self.arrival[action])
        end = start + self.seconds[kind][stage]
        rank.free_at = end
        for next_kind, next_stage, transfer in self.followers[kind][stage]:
            follower = self.place[next_kind][next_stage][microbatch]
            arrival = max(self.arrival[follower], end + transfer)
            self.arrival[follower] = arrival
            self.missing[follower] -= 1
            if not self.missing[follower]:
                index = self.rank_of[next_stage]
                target = self.ranks[index]
                heappush(target.coming, (arrival, follower))
                if target.free_at <= now:
                    heappush(self.events, (arrival, index))


def dispatch(jobs: Jobs, urgency: Sequence[int] | IntArray, patience: Sequence[float] = ()) -> Dispatched:
    """Put all actions in order.

    Args:
        jobs: the actions, their costs and caps; every cap has room for one micro-batch.
        urgency: the numbers of all actions, the most urgent first.
        patience: for each kind: a rank does not start an action that would make a more urgent one, known to
            arrive within this share of the time that it takes, wait; it takes something less urgent that fits,
            or waits. 0 never waits; nothing means 0 for all.

    Returns:
        The orders, and how long they take.
    """
    return _Loop(jobs, urgency, patience).run()
