"""All actions of a step with what they cost and what ranks may hold, before anybody has put them in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelab.core.actions import CODES, ActionTable, IntArray, Kind
from pipelab.core.costs import Costs
from pipelab.core.placement import Placement

__all__ = ["Graph", "Jobs"]

Graph = list[list[list[tuple[int, int, float]]]]
"""For each kind and stage the kinds and stages at the other end of its edges, with seconds of the transfer."""


@dataclass(frozen=True)
class Jobs:
    """All actions of a step, before anybody has put them in order.

    Actions are numbered kind by kind, stage by stage, micro-batch by micro-batch.

    Attributes:
        placement: where the stages are.
        num_microbatches: m.
        costs: seconds, links and bytes; per model stage.
        kinds: (F, B) or (F, I, W).
        caps: for each rank the most chunks in flight; None for no cap.
        room: for each rank the most bytes of activations; None for no cap.
        stage_caps: for each stage the most micro-batches in flight; None for no cap.
        ahead: for each rank the most chunks between F and I (or B): how far it may run ahead of the gradients,
            while W may wait longer; None for no cap.
    """

    placement: Placement
    num_microbatches: int
    costs: Costs
    kinds: tuple[Kind, ...]
    caps: tuple[int, ...] | None = None
    room: tuple[int, ...] | None = None
    stage_caps: tuple[int, ...] | None = None
    ahead: tuple[int, ...] | None = None

    @cached_property
    def columns(self) -> tuple[IntArray, IntArray, IntArray]:
        """Index into `kinds`, stage and micro-batch of each action, each of shape (actions,)."""
        placement, m = self.placement, self.num_microbatches
        chain = np.arange(placement.num_stages) // (placement.num_stages // placement.chains)
        runs = chain[:, None] == np.arange(m) * placement.chains // m
        stage, microbatch = np.nonzero(runs)
        repeat = len(self.kinds)
        kind = np.repeat(np.arange(repeat), len(stage))
        return kind, np.tile(stage, repeat), np.tile(microbatch, repeat)

    @cached_property
    def seconds(self) -> list[list[float]]:
        """`seconds[k][s]`: how long kind k takes on stage s."""
        stages = self.placement.model_stages
        return [[self.costs.seconds(kind, stage) for stage in stages] for kind in self.kinds]

    @cached_property
    def followers(self) -> Graph:
        """`followers[k][s]`: the kind and stage of each action that waits for it, and seconds of the transfer."""
        placement, costs = self.placement, self.costs
        found: Graph = [[[] for _ in range(placement.num_stages)] for _ in self.kinds]
        for s, t in placement.stage_edges:
            sent = 0.0 if costs.bytes is None else costs.bytes.outputs[placement.model_stages[s]]
            a, b = placement.ranks[s], placement.ranks[t]
            found[0][s].append((0, t, costs.links.seconds(a, b, sent)))
            found[1][t].append((1, s, costs.links.seconds(b, a, sent)))
        for k in range(len(self.kinds) - 1):
            for s in range(placement.num_stages):
                found[k][s].append((k + 1, s, 0.0))
        return found

    @cached_property
    def num_needs(self) -> list[list[int]]:
        """`num_needs[k][s]`: for how many actions it waits."""
        return [[len(nodes) for nodes in of_kind] for of_kind in self.givers]

    @cached_property
    def givers(self) -> Graph:
        """`givers[k][s]`: the kind and stage of each action that it waits for, and seconds of the transfer."""
        found: Graph = [[[] for _ in of_kind] for of_kind in self.followers]
        for k, of_kind in enumerate(self.followers):
            for s, followers in enumerate(of_kind):
                for kind, stage, transfer in followers:
                    found[kind][stage].append((k, s, transfer))
        return found

    @cached_property
    def tails(self) -> list[list[float]]:
        """`tails[k][s]`: seconds of the longest chain of needs that starts with the action, itself included."""
        return self._longest(self.followers, self.givers)

    @cached_property
    def heads(self) -> list[list[float]]:
        """`heads[k][s]`: seconds of the longest chain of needs that ends with the action, itself included."""
        return self._longest(self.givers, self.followers)

    def _longest(self, ahead: Graph, behind: Graph) -> list[list[float]]:
        longest = [list(row) for row in self.seconds]
        missing = [[len(nodes) for nodes in of_kind] for of_kind in ahead]
        free = [(k, s) for k, counts in enumerate(missing) for s, count in enumerate(counts) if not count]
        while free:
            kind, stage = free.pop()
            for k, s, transfer in behind[kind][stage]:
                longest[k][s] = max(longest[k][s], self.seconds[k][s] + transfer + longest[kind][stage])
                missing[k][s] -= 1
                if not missing[k][s]:
                    free.append((k, s))
        return longest

    @cached_property
    def lower_bound(self) -> float:
        """Seconds that no order can beat: max over ranks of (shortest head + work + shortest tail), transfers included.

        See the module `lower_bound`, which says the same of a schedule with free links.
        """
        bounds = []
        for rank in range(self.placement.num_ranks):
            here = [(k, s) for k in range(len(self.kinds)) for s in self.placement.stages_of(rank)]
            head = min(self.heads[k][s] - self.seconds[k][s] for k, s in here)
            tail = min(self.tails[k][s] - self.seconds[k][s] for k, s in here)
            counts = [len(self.chain_turns[self.placement.chain_of_stage(s)]) for _, s in here]
            work = sum(n * self.seconds[k][s] for n, (k, s) in zip(counts, here, strict=True))
            bounds.append(head + work + tail)
        return max(bounds)

    @cached_property
    def kept_bytes(self) -> list[int]:
        """For each stage the bytes that a micro-batch keeps until its backward, rounded up; 0 where unknown."""
        kept = (0.0,) * self.costs.num_stages if self.costs.bytes is None else self.costs.bytes.activations
        return [math.ceil(kept[stage]) for stage in self.placement.model_stages]

    def of_one(self, weight: Sequence[int]) -> tuple[int, ...]:
        """For each rank what one micro-batch holds there at most.

        Args:
            weight: for each stage what a micro-batch holds from its forward on.
        """
        placement = self.placement
        chains = [[0] * placement.chains for _ in range(placement.num_ranks)]
        for stage, rank in enumerate(placement.ranks):
            chains[rank][placement.chain_of_stage(stage)] += weight[stage]
        return tuple(map(max, chains))

    @cached_property
    def chunks_of_one(self) -> tuple[int, ...]:
        """For each rank how many chunks of one micro-batch it holds: the least cap that works."""
        return self.of_one([1] * self.placement.num_stages)

    @cached_property
    def turns(self) -> list[int]:
        """For each micro-batch its place in the order "oldest first", the chains taking turns."""
        m, chains = self.num_microbatches, self.placement.chains
        chain = np.arange(m) * chains // m
        turn = np.empty(m, dtype=np.int64)
        turn[np.lexsort((chain, np.arange(m) - np.searchsorted(chain, chain)))] = np.arange(m)
        turns: list[int] = turn.tolist()
        return turns

    @cached_property
    def chain_turns(self) -> list[list[int]]:
        """For each chain the turns of its micro-batches."""
        m, chains = self.num_microbatches, self.placement.chains
        return [[turn for i, turn in enumerate(self.turns) if i * chains // m == c] for c in range(chains)]

    def table(self, orders: Sequence[Sequence[int]]) -> ActionTable:
        """Lay out action numbers, one order a rank, as columns."""
        rank = np.repeat(np.arange(len(orders)), [len(order) for order in orders])
        number = np.concatenate([np.asarray(order, dtype=np.int64) for order in orders])
        kind, stage, microbatch = self.columns
        codes = np.array([CODES[kind] for kind in self.kinds])
        return ActionTable(codes[kind[number]], stage[number], microbatch[number], rank)
