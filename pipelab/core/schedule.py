"""A schedule: for each rank an ordered tuple of actions, with the placement of the stages.

It is data, written once and checked when it is made; the simulator, the engines, the plots and the exercises
all read it, and none of them knows it by name. Idle time is not in it: that follows from the costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core import schedule_text, strict_json
from pipelab.core.actions import KINDS, MAX_CELLS, Action, ActionTable, IntArray, as_actions, as_index
from pipelab.core.cells import placement_of, read_cells
from pipelab.core.placement import Placement
from pipelab.core.quantities import counted
from pipelab.core.recurrence import Predecessors, Recurrence
from pipelab.core.saving import Saved
from pipelab.core.tables import pretty
from pipelab.core.validation import Checked, check
from pipelab.core.workload import Workload
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.costs import Costs
    from pipelab.core.interchange.torch_runtime import TorchVerdict
    from pipelab.core.versions import WeightVersions

__all__ = ["Schedule"]

_NUMBERING = ("minibatches", "slices")


@dataclass(frozen=True, init=False, repr=False)
class Schedule(Saved):
    """For each rank the order of its actions.

    Attributes:
        table: the actions as numpy columns (`ActionTable`).
        placement: which rank holds which stage.
        name: what plots and tables call it.
        minibatches: how many mini-batches the table runs one after the other, each ended by an update (U) of
            every stage: mini-batch n, micro-batch i has the number n*m + i. More than 1 only in an asynchronous
            schedule, whose ranks do not wait for each other's updates.
        slices: in how many causal slices each micro-batch runs: slice q of micro-batch i has the number i*k + q.

    Example:
        >>> two = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]], name="mine")
        >>> two.num_ranks, two.num_microbatches, two.orders[1][1]
        (2, 2, Action.parse('1B0'))
        >>> print(two)
        mine: 2 ranks, 2 stages, 2 micro-batches, 8 actions
        F = I = W = 1, B = 2, no latency; one column is 1: makespan 9, bubble fraction 33.3 %
        rank 0 | 0F0 0F1  .   .  0B0 ---  .  0B1 ---
        rank 1 |  .  1F0 1B0 --- 1F1 1B1 ---  .   .

    Raises:
        PipelabError: an order that cannot run: an action missing, doubled, on the wrong rank, or waiting for
            ever.
    """

    table: ActionTable
    placement: Placement
    name: str
    minibatches: int = 1
    slices: int = 1

    def __init__(
        self,
        orders: Iterable[Iterable[Action | str]],
        placement: Placement | None = None,
        *,
        name: str = "custom",
        minibatches: int = 1,
        slices: int = 1,
    ) -> None:
        """Check an order given by hand.

        Args:
            orders: for each rank its actions, or cells such as `"0F0"`.
            placement: where the stages are; None reads it from the orders, as one chain.
            name: what plots and tables call it.
            minibatches: how many mini-batches follow each other.
            slices: in how many slices each micro-batch runs.
        """
        if isinstance(orders, str):
            raise PipelabError(
                "orders is one text; for the text form of a schedule use Schedule.from_text(text)."
            )
        per_rank = [
            as_actions(order, f"{_checked_name(name)}: the order of rank {r}")
            for r, order in enumerate(orders)
        ]
        total = sum(map(len, per_rank))
        if total > MAX_CELLS:
            raise PipelabError(f"{name} has {total:,} cells; the limit is {MAX_CELLS:,} (2**22).")
        table = ActionTable.from_orders(per_rank)
        placement = placement_of(table, name, len(per_rank)) if placement is None else placement
        self._set(table, placement, name, minibatches, slices)

    @classmethod
    def from_table(
        cls,
        table: ActionTable,
        placement: Placement,
        *,
        name: str = "custom",
        minibatches: int = 1,
        slices: int = 1,
    ) -> Schedule:
        """Check an order that is already in columns: the fast door, used by the builders.

        Args:
            table: rows sorted by rank and, within a rank, in order.
            placement: where the stages are.
            name: what plots and tables call it.
            minibatches: how many mini-batches follow each other.
            slices: in how many slices each micro-batch runs.
        """
        self = object.__new__(cls)
        self._set(table, placement, name, minibatches, slices)
        return self

    def _set(
        self, table: ActionTable, placement: Placement, name: str, minibatches: int, slices: int
    ) -> None:
        if not isinstance(placement, Placement):
            raise TypeError(f"placement must be a Placement or None, not {type(placement).__name__}.")
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "placement", placement)
        object.__setattr__(self, "name", _checked_name(name))
        for part, count in (("minibatches", minibatches), ("slices", slices)):
            object.__setattr__(self, part, as_index(part, count))
        checked = check(name, table, placement, self.minibatches, self.slices)
        object.__setattr__(self, "_checked", checked)

    @property
    def _check(self) -> Checked:
        found: Checked = self.__dict__["_checked"]
        return found

    @property
    def num_ranks(self) -> int:
        """p: how many ranks there are."""
        return self.placement.num_ranks

    @property
    def num_stages(self) -> int:
        """How many stage ids there are, replicas included."""
        return self.placement.num_stages

    @property
    def num_model_stages(self) -> int:
        """In how many stages the model is cut: what `balance` wants and what `Costs` are per."""
        return self.placement.num_model_stages

    @property
    def num_microbatches(self) -> int:
        """How many micro-batch numbers the table has: m, times the mini-batches, or times the slices."""
        return self._check.num_microbatches

    @cached_property
    def stages_per_rank(self) -> int:
        """v: the most stage ids that one rank holds."""
        return int(np.bincount(self.placement.ranks).max())

    @property
    def has_backward(self) -> bool:
        """Whether every stage runs backward; otherwise none does."""
        return self._check.has_backward

    @cached_property
    def orders(self) -> tuple[tuple[Action, ...], ...]:
        """For each rank its actions in order. Made when it is first asked for."""
        actions = self.table.actions()
        return tuple(actions[a:b] for a, b in self._bounds)

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        """For each rank where its cells begin and end."""
        stops = np.searchsorted(self.table.cell_ranks, np.arange(self.num_ranks + 1)).tolist()
        return list(pairwise(stops))

    @property
    def predecessors(self) -> Predecessors:
        """What cells need from other ranks, as arrays (cell waits for cell)."""
        return self._check.predecessors

    @cached_property
    def topological_order(self) -> IntArray:
        """Shape (cells,): the cells in an order in which each comes after all it needs."""
        work = self.recurrence.work
        return work[work >= 0]

    @property
    def recurrence(self) -> Recurrence:
        """The schedule compiled for simulation; made once, by the check."""
        return self._check.recurrence

    @cached_property
    def peak_in_flight(self) -> tuple[int, ...]:
        """For each rank the most micro-batches (stage chunks) in flight; it follows from the order alone."""
        from pipelab.core.memory import peaks  # memory is about schedules, and imports this module

        return tuple(peaks(self).astype(int).tolist())

    @cached_property
    def workload(self) -> Workload:
        """The distinct durations and transfers of this schedule."""
        return Workload.of(self.table, self.placement, self.recurrence)

    def needs(self, action: Action) -> tuple[Action, ...]:
        """The actions that must end before `action` starts; members of an overlap by themselves.

        Args:
            action: one cell of this schedule, or a member of one.

        Example:
            >>> import pipelab as pp
            >>> pp.schedule("1f1b", num_ranks=2, num_microbatches=2).needs(Action.parse("0B0"))
            (Action.parse('0F0'), Action.parse('1B0'))

        Raises:
            PipelabError: the action is not in this schedule.
        """
        try:
            found = [need for member in action.parts for need in self._needs[member]]
        except KeyError:
            raise PipelabError(f"{action} is not in {self.name}.") from None
        return tuple(dict.fromkeys(found))

    @cached_property
    def _needs(self) -> dict[Action, tuple[Action, ...]]:
        table, found = self.table, self._check
        rows = zip(table.kind.tolist(), table.stage.tolist(), table.microbatch.tolist(), strict=True)
        actions = [Action(KINDS[kind], stage, microbatch) for kind, stage, microbatch in rows]
        needed: list[list[Action]] = [[] for _ in actions]
        for row, giver in zip(found.needs.row.tolist(), found.givers.tolist(), strict=True):
            needed[row].append(actions[giver])
        return dict(zip(actions, map(tuple, needed), strict=True))

    def weight_versions(self, consistent: bool | None = None) -> WeightVersions:
        """Which version of the weights each mini-batch of an asynchronous schedule sees on each stage.

        Args:
            consistent: whether a mini-batch sees one version on all stages, that of its entry (2BW); False takes
                the newest of each stage (PipeDream). None: True where a mini-batch has several micro-batches.

        Example:
            >>> import pipelab as pp
            >>> found = pp.schedule("pipedream", num_ranks=4, num_microbatches=8).weight_versions()
            >>> found.staleness[:, -1], found.kept
            (array([3, 2, 1, 0]), array([4, 3, 2, 1]))

        Raises:
            PipelabError: a schedule without an update after each mini-batch.
        """
        from pipelab.core.versions import WeightVersions  # it is about schedules, and imports this module

        return WeightVersions.of(self, consistent)

    def swap(self, first: Action | str, second: Action | str) -> Schedule:
        """The schedule with two cells of one rank exchanged, checked anew.

        Args:
            first: a cell, such as "0F1".
            second: a cell of the same rank.

        Example:
            >>> import pipelab as pp
            >>> one = pp.schedule("gpipe", num_ranks=1, num_microbatches=2).swap("0F1", "0B0")
            >>> " ".join(map(str, one.orders[0])), one.name
            ('0F0 0B0 0F1 0B1', 'gpipe (edited)')

        Raises:
            PipelabError: a cell that is not there or on another rank, or an order that cannot run.
        """
        from pipelab.core.edits import swap  # edits make schedules, and import this module

        return swap(self, first, second)

    def move(
        self, action: Action | str, *, before: Action | str | None = None, after: Action | str | None = None
    ) -> Schedule:
        """The schedule with one cell put elsewhere on its rank, checked anew.

        Args:
            action: a cell, such as "0W3".
            before: the cell of the same rank that it shall come before; or
            after: the cell of the same rank that it shall come after.

        Raises:
            PipelabError: a cell that is not there or on another rank, or an order that cannot run.
            TypeError: neither of `before` and `after`, or both.
        """
        from pipelab.core.edits import move

        return move(self, action, before, after)

    def with_name(self, name: str) -> Schedule:
        """The same schedule under another name."""
        named = object.__new__(Schedule)
        vars(named).update(vars(self))  # what was checked and compiled does not depend on the name
        object.__setattr__(named, "name", _checked_name(name))
        return named

    def grid(self, costs: Costs | None = None, *, width: int = 110) -> str:
        """Draw ranks against time steps.

        Args:
            costs: seconds per stage; None is F = I = W = 1, B = 2 without latency.
            width: the longest line, in characters; a wider grid is elided in the middle, with a note.
        """
        from pipelab.core.grid import draw_grid  # drawing simulates, which needs this module

        return draw_grid(self, costs, width)

    def __str__(self) -> str:
        return f"{self._headline}\n{self.grid()}"

    @property
    def _headline(self) -> str:
        return (
            f"{self.name}: {counted(self.num_ranks, 'rank')}, {counted(self.num_stages, 'stage')}, "
            f"{counted(self.num_microbatches, 'micro-batch', 'micro-batches')}, "
            f"{counted(self.table.num_cells, 'action')}"
        )

    def __repr__(self) -> str:
        one_chain = self.placement == Placement(self.placement.ranks)
        if self.table.num_cells > 24 or not one_chain:
            return f"<Schedule {self._headline}>"
        orders = [[str(action) for action in order] for order in self.orders]
        parts = "".join(f", {n}={getattr(self, n)}" for n in _NUMBERING if getattr(self, n) != 1)
        return f"Schedule({orders!r}, name={self.name!r}{parts})"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def to_text(self) -> str:
        """The schedule as text that `from_text` reads: a header, then one line of cells for each rank."""
        numbering = {part: getattr(self, part) for part in _NUMBERING}
        return schedule_text.dump(self.name, self.placement, numbering, self.lines)

    @classmethod
    def from_text(cls, text: str) -> Schedule:
        """Read what `to_text` wrote.

        Raises:
            PipelabError: not that form, or a schedule that cannot run.
        """
        name, placement, numbering, lines = schedule_text.load(text)
        names = [f"rank {rank}" for rank in range(len(lines))]
        return cls.from_table(read_cells(lines, names), placement, name=name, **numbering)

    def to_csv(self) -> str:
        """The schedule as torch's compute-only table: one line a rank, cells with commas between.

        It is what `_PipelineScheduleRuntime._load_csv(path, format="compute_only")` reads and `_dump_csv` writes, byte
        for byte; write it with `open(path, "w", newline="")`. See `runs_on_torch` for what torch does with it.

        Example:
            >>> import pipelab as pp
            >>> pp.schedule("1f1b", num_ranks=2, num_microbatches=2).to_csv().splitlines()
            ['0F0,0F1,0B0,0B1', '1F0,1B0,1F1,1B1']

        Raises:
            PipelabError: updates (U), mini-batches or slices, which the table cannot hold.
        """
        from pipelab.core.interchange import torch_csv  # formats are about schedules

        return torch_csv.dump(self)

    @classmethod
    def from_csv(cls, text: str, placement: Placement | None = None, *, name: str = "custom") -> Schedule:
        """Read torch's compute-only table, strictly; empty cells (idle time) are left out.

        Args:
            text: what `to_csv` or torch's `_dump_csv(path, format="compute_only")` wrote.
            placement: where the stages are; None reads it from the table, as one chain.
            name: what plots and tables call it.

        Raises:
            PipelabError: names the line and the cell that is none, or says what cannot run.
        """
        from pipelab.core.interchange import torch_csv

        table = torch_csv.load(text)
        if placement is None:
            placement = placement_of(table, name, int(table.rank.max(initial=-1)) + 1)
        return cls.from_table(table, placement, name=name)

    @cached_property
    def runs_on_torch(self) -> TorchVerdict:
        """What torch.distributed.pipelining would do with this schedule: "exact", "lowerable" or "no", and why."""
        from pipelab.core.interchange.torch_runtime import judge

        return judge(self)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as plain values, ready for JSON: each rank's order is one text of cells."""
        data = {"name": self.name, "placement": self.placement.to_dict(), "orders": self.lines}
        return data | {n: getattr(self, n) for n in _NUMBERING if getattr(self, n) != 1}

    @property
    def lines(self) -> list[str]:
        """For each rank its cells as one text, with a space between."""
        texts = self.table.texts()
        return [" ".join(texts[a:b]) for a, b in self._bounds]

    @classmethod
    def from_dict(cls, data: object, where: str = "schedule") -> Schedule:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field, or what cannot run.
        """
        required = ("name", "placement", "orders")
        found = strict_json.fields(data, where, required=required, optional=_NUMBERING)
        name = strict_json.text(found["name"], f"{where}.name")
        placement = Placement.from_dict(found["placement"], f"{where}.placement")
        lines = strict_json.texts(found["orders"], f"{where}.orders", strict_json.MAX_BYTES)
        if len(lines) != placement.num_ranks:
            raise PipelabError(
                f"{where}.orders has {len(lines)} orders, but the placement {placement.num_ranks} ranks."
            )
        names = [f"{where}.orders[{rank}]" for rank in range(len(lines))]
        numbering = {n: strict_json.integer(found[n], f"{where}.{n}") for n in _NUMBERING if n in found}
        return cls.from_table(read_cells(lines, names), placement, name=name, **numbering)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.table, self.placement, self.name, self.minibatches, self.slices)


def _rebuild(table: ActionTable, placement: Placement, name: str, minibatches: int, slices: int) -> Schedule:
    return Schedule.from_table(table, placement, name=name, minibatches=minibatches, slices=slices)


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be text, not {name!r}.")
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise PipelabError(f"name is {name[:60]!r}; it must be 1 to 200 printable characters.")
    return name
