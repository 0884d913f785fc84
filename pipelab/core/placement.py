"""Which rank holds which stage, and which stage feeds which.

A model cut in S stages and run in c chains has stage ids 0 .. c*S-1; chain j holds the ids j*S .. j*S+S-1.
Where the second chain is a replica of the first (DualPipe, Chimera), `tied` names the original of each
replica.

    linear, p = 4          looped, p = 2, v = 2     wave, p = 2, v = 4        bidirectional, p = 2
    0 -> 1 -> 2 -> 3       rank 0: 0   2            rank 0: 0     3 4     7   rank 0: 0     3   (2 and 3 are
    (stage s on rank s)    rank 1:   1   3          rank 1:   1 2     5 6     rank 1:   1 2     replicas of 0, 1)

A wave of two passes is called a V.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelab.core import strict_json
from pipelab.core.actions import as_index
from pipelab.errors import PipelabError

__all__ = ["MAX_STAGES", "Placement"]

MAX_STAGES = 2**16
"""The most stage ids that a placement may have, and the most pairs of `tied` and of `edges`."""

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Placement:
    """The rank of every stage id, with the graph of the stages.

    Attributes:
        ranks: `ranks[s]` is the rank that holds stage id s; every rank from 0 to the highest holds a stage.
        chains: in how many chains the micro-batches run.
        tied: pairs (replica, original) of stage ids that are the same stage of the model; a dict is accepted.
        edges: pairs (s, t): the output of s is an input of t. None means the chains: s feeds s+1 within its
            chain.

    Example:
        >>> Placement.looped(2, 2).ranks
        (0, 1, 0, 1)
        >>> both_ways = Placement((0, 1, 1, 0), chains=2, tied={2: 0, 3: 1})
        >>> both_ways.num_stages, both_ways.num_model_stages
        (4, 2)

    Raises:
        PipelabError: a rank without a stage, chains of different lengths, a tie that is no replica, an edge
            that leaves its chain, or a graph with a cycle.
    """

    ranks: tuple[int, ...]
    chains: int = 1
    tied: Pairs = ()
    edges: Pairs | None = None

    def __post_init__(self) -> None:
        if len(self.ranks) > MAX_STAGES:
            raise PipelabError(
                f"{len(self.ranks):,} stages are refused: the limit is {MAX_STAGES:,} (2**16)."
            )
        object.__setattr__(self, "ranks", tuple(as_index("rank", rank) for rank in self.ranks))
        object.__setattr__(self, "chains", as_index("chains", self.chains))
        self._check_ranks()
        pairs: Any = self.tied.items() if isinstance(self.tied, Mapping) else self.tied
        object.__setattr__(self, "tied", tuple(sorted(self._pairs("tied", pairs))))
        self._check_tied()
        if self.edges is not None:
            object.__setattr__(self, "edges", tuple(sorted(self._pairs("edges", self.edges))))
            self._check_edges()
            if self.edges == self._chain_edges():
                object.__setattr__(self, "edges", None)

    def _check_ranks(self) -> None:
        if not self.ranks:
            raise PipelabError("A placement needs at least one stage; ranks is empty.")
        if min(self.ranks) < 0:
            raise PipelabError(f"Rank {min(self.ranks)} is out of range; ranks count from 0.")
        gaps = sorted(set(range(min(max(self.ranks), len(self.ranks)) + 1)) - set(self.ranks))
        if gaps:
            raise PipelabError(
                f"Rank {gaps[0]} holds no stage, though rank {max(self.ranks)} is used. Leave no gap."
            )
        if self.chains < 1 or len(self.ranks) % self.chains:
            raise PipelabError(f"{len(self.ranks)} stages cannot form {self.chains} chains of one length.")

    def _pairs(self, name: str, pairs: Iterable[Any]) -> set[tuple[int, int]]:
        found = set()
        for number, pair in enumerate(pairs):
            if number >= MAX_STAGES:
                raise PipelabError(f"{name} has more than {MAX_STAGES:,} pairs (2**16), the limit.")
            try:
                source, target = pair
            except (TypeError, ValueError):
                raise PipelabError(f"{name} must be pairs of stage ids, not {pair!r}.") from None
            source, target = as_index(name, source), as_index(name, target)
            if not (0 <= source < len(self.ranks) and 0 <= target < len(self.ranks)):
                raise PipelabError(
                    f"{name} names ({source}, {target}); stage ids go from 0 to {len(self.ranks) - 1}."
                )
            found.add((source, target))
        return found

    def _check_tied(self) -> None:
        replicas = dict(self.tied)
        for replica, original in self.tied:
            if replicas[replica] != original or original in replicas:
                raise PipelabError(
                    f"tied says that stage {replica} is a replica of {original}; "
                    "a replica has one original, which is itself no replica."
                )
        size = len(self.ranks) // self.chains
        for replica, original in self.tied:
            if replica // size == original // size or replica % size != original % size:
                raise PipelabError(
                    f"tied says that stage {replica} is a replica of {original}; a replica stands at the same place of "
                    f"another chain, and chains have {size} stages here."
                )

    def _check_edges(self) -> None:
        size = len(self.ranks) // self.chains
        sources = [0] * self.num_stages
        targets: dict[int, list[int]] = {}
        for source, target in self.stage_edges:
            if source // size != target // size:
                raise PipelabError(
                    f"Edge ({source}, {target}) leaves its chain; each micro-batch runs in one chain."
                )
            sources[target] += 1
            targets.setdefault(source, []).append(target)
        free = [stage for stage, count in enumerate(sources) if not count]
        while free:
            for target in targets.get(free.pop(), ()):
                sources[target] -= 1
                if not sources[target]:
                    free.append(target)
        circle = [stage for stage, count in enumerate(sources) if count]
        if circle:
            raise PipelabError(f"The stage graph has a cycle; it holds or feeds stages {circle[:8]}.")

    def _chain_edges(self) -> Pairs:
        size = len(self.ranks) // self.chains
        return tuple((s, s + 1) for s in range(len(self.ranks) - 1) if (s + 1) % size)

    @classmethod
    def linear(cls, num_ranks: int) -> Placement:
        """Stage s on rank s.

        Args:
            num_ranks: p, at least 1.
        """
        return cls.looped(num_ranks, 1)

    @classmethod
    def looped(cls, num_ranks: int, stages_per_rank: int) -> Placement:
        """Stage s on rank s mod p, so that the model runs v times around the ranks (arXiv 2104.04473).

        Args:
            num_ranks: p, at least 1.
            stages_per_rank: v, at least 1.
        """
        p, v = _sizes(num_ranks=num_ranks, stages_per_rank=stages_per_rank)
        return cls(tuple(range(p)) * v)

    @classmethod
    def wave(cls, num_ranks: int, stages_per_rank: int) -> Placement:
        """A zig-zag: the model runs through the ranks upwards, then downwards, and so on (arXiv 2308.15762).

        Where it turns, two stages that follow each other share a rank, and nothing is sent.

        Args:
            num_ranks: p, at least 1.
            stages_per_rank: v, the number of passes, at least 1; w waves are v = 2 w.

        Example:
            >>> Placement.wave(3, 2).ranks
            (0, 1, 2, 2, 1, 0)
        """
        p, v = _sizes(num_ranks=num_ranks, stages_per_rank=stages_per_rank)
        there, back = tuple(range(p)), tuple(reversed(range(p)))
        return cls((there + back) * (v // 2) + there * (v % 2))

    @classmethod
    def v(cls, num_ranks: int) -> Placement:
        """A wave of two passes: rank r holds the stages r and 2p-1-r (arXiv 2401.10241, section 6).

        Args:
            num_ranks: p, at least 1.
        """
        return cls.wave(num_ranks, 2)

    @classmethod
    def bidirectional(cls, num_ranks: int) -> Placement:
        """The model twice, in opposite directions: stage s on rank s, its replica p+s on rank p-1-s.

        The first half of the micro-batches runs upwards, the rest downwards (arXiv 2107.06925, 2412.19437).

        Args:
            num_ranks: p, at least 1.
        """
        p, _ = _sizes(num_ranks=num_ranks, chains=2)
        return cls((*range(p), *reversed(range(p))), chains=2, tied=tuple((p + s, s) for s in range(p)))

    @classmethod
    def ensemble(cls, num_members: int, num_ranks: int) -> Placement:
        """Independent models side by side, each on ranks of its own: chains without ties.

        The micro-batches are numbered through: the first m of c*m are the first member's, and so on.

        Args:
            num_members: c, how many models.
            num_ranks: how many ranks each of them has.

        Example:
            >>> Placement.ensemble(2, 2).chain_of_stage(3)
            1
        """
        members, p = _sizes(num_members=num_members, num_ranks=num_ranks)
        return cls(tuple(range(members * p)), chains=members)

    @property
    def num_stages(self) -> int:
        """How many stage ids there are, replicas included."""
        return len(self.ranks)

    @property
    def num_model_stages(self) -> int:
        """In how many stages the model is cut: stage ids that are no replica. `Costs` are per model stage."""
        return len(self.ranks) - len(self.tied)

    @cached_property
    def num_ranks(self) -> int:
        """p: how many ranks there are."""
        return max(self.ranks) + 1

    @cached_property
    def stage_edges(self) -> Pairs:
        """The edges of the stage graph as pairs, also where `edges` is None."""
        return self._chain_edges() if self.edges is None else self.edges

    @cached_property
    def model_stages(self) -> tuple[int, ...]:
        """For each stage id the number of its model stage: where to look in `Costs`."""
        replicas = dict(self.tied)
        number = {s: n for n, s in enumerate(s for s in range(self.num_stages) if s not in replicas)}
        return tuple(number[replicas.get(s, s)] for s in range(self.num_stages))

    def original(self, stage: int) -> int:
        """The stage id that `stage` is a replica of; itself when it is none."""
        self._check_stage(stage)
        return dict(self.tied).get(stage, stage)

    def chain_of(self, microbatch: int, num_microbatches: int) -> int:
        """The chain in which a micro-batch runs: the first m/c micro-batches run in chain 0, and so on.

        Args:
            microbatch: from 0 to num_microbatches - 1.
            num_microbatches: m of the schedule.
        """
        if not 0 <= microbatch < num_microbatches:
            raise PipelabError(f"microbatch is {microbatch}; there are {num_microbatches}, counted from 0.")
        return microbatch * self.chains // num_microbatches

    def chain_of_stage(self, stage: int) -> int:
        """The chain to which a stage id belongs."""
        self._check_stage(stage)
        return stage // (self.num_stages // self.chains)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stage ids that a rank holds, ascending."""
        if not 0 <= rank < self.num_ranks:
            raise PipelabError(f"rank is {rank}; there are {self.num_ranks}, counted from 0.")
        return tuple(stage for stage, holder in enumerate(self.ranks) if holder == rank)

    def _check_stage(self, stage: int) -> None:
        if not 0 <= stage < self.num_stages:
            raise PipelabError(f"stage is {stage}; there are {self.num_stages}, counted from 0.")

    def to_dict(self) -> dict[str, Any]:
        """The placement as plain lists, ready for JSON."""
        edges = None if self.edges is None else [list(edge) for edge in self.edges]
        tied = [list(pair) for pair in self.tied]
        return {"ranks": list(self.ranks), "chains": self.chains, "tied": tied, "edges": edges}

    @classmethod
    def from_dict(cls, data: object, where: str = "placement") -> Placement:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        found = strict_json.fields(data, where, required=("ranks",), optional=("chains", "tied", "edges"))
        ranks = strict_json.integers(found["ranks"], f"{where}.ranks")
        chains = strict_json.integer(found.get("chains", 1), f"{where}.chains")
        tied = _read_pairs(found.get("tied", []), f"{where}.tied")
        edges = found.get("edges")
        return cls(ranks, chains, tied, None if edges is None else _read_pairs(edges, f"{where}.edges"))


def _sizes(**sizes: int) -> tuple[int, int]:
    a, b = (as_index(name, size) for name, size in sizes.items())
    if a < 1 or b < 1:
        raise PipelabError(f"{' and '.join(f'{n}={x}' for n, x in sizes.items())}; both are at least 1.")
    if a * b > MAX_STAGES:
        raise PipelabError(f"{a} x {b} stages are refused: the limit is {MAX_STAGES:,}.")
    return a, b


def _read_pairs(value: object, where: str) -> Pairs:
    pairs = [
        strict_json.integers(item, f"{where}[{n}]") for n, item in enumerate(strict_json.items(value, where))
    ]
    for n, pair in enumerate(pairs):
        if len(pair) != 2:
            raise PipelabError(f"{where}[{n}] must be a pair of stage ids, not {len(pair)} numbers.")
    return tuple((pair[0], pair[1]) for pair in pairs)
