"""What a rank can do: the closed list of kinds, one action, and the table that holds many of them.

`Action` is the form for people: it prints and parses as `2F0` (stage 2, forward, micro-batch 0), the cell
grammar of torch.distributed.pipelining. `ActionTable` is the form for machines: the same actions as numpy
columns, so that a step of 131,072 actions is built, checked and simulated without one Python object per
action.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelab.errors import PipelabError

__all__ = ["CODES", "KINDS", "MAX_CELLS", "Action", "ActionTable", "IntArray", "Kind"]

IntArray = npt.NDArray[np.integer[Any]]

MAX_CELLS = 2**22
"""The most cells (and the highest micro-batch or stage number) that a schedule may have."""


class Kind(StrEnum):
    """What an action computes.

    Attributes:
        F: forward of one stage for one micro-batch.
        I: gradient of the stage's input. (The Zero Bubble papers write B for it.)
        W: gradient of the stage's weights.
        B: full backward, I then W in one go.
        U: optimizer update of a stage; `0U3` updates stage 0 after micro-batch 3.
        OVERLAP: two or more of the above run together on one rank, at a cost of their own.
    """

    F = "F"
    I = "I"  # noqa: E741 - the letter of the field
    W = "W"
    B = "B"
    U = "U"
    OVERLAP = "OVERLAP_F_B"


KINDS: tuple[Kind, ...] = (Kind.F, Kind.I, Kind.W, Kind.B, Kind.U, Kind.OVERLAP)
"""The kinds in the order of their codes: `KINDS[table.kind[row]]`."""

CODES: dict[Kind, int] = {kind: code for code, kind in enumerate(KINDS)}
"""The code of each kind: `CODES[KINDS[code]] == code`."""

_NUMBER = "(0|[1-9][0-9]{0,17})"
_CELL = re.compile(f"{_NUMBER}([FIWBU]){_NUMBER}")
_OVERLAP = re.compile(r"\(([0-9FIWBU;]{1,1000})\)OVERLAP_F_B")
_GRAMMAR = "A cell is stage, kind, micro-batch, such as 2F0 (kinds F, I, W, B, U), or (0F3;3B1)OVERLAP_F_B"


@dataclass(frozen=True, slots=True)
class Action:
    """One cell of a schedule: what to compute, for which stage and which micro-batch.

    Attributes:
        kind: the `Kind`.
        stage: id of the stage, from 0.
        microbatch: number of the micro-batch, from 0.
        members: for `Kind.OVERLAP` the actions that run together; otherwise empty. The stage and micro-batch
            of an overlap are those of its first member.

    Example:
        >>> action = Action(Kind.F, stage=2, microbatch=0)
        >>> str(action), action == Action.parse("2F0")
        ('2F0', True)
        >>> Action.parse("(0F3;3B1)OVERLAP_F_B").members
        (Action.parse('0F3'), Action.parse('3B1'))

    Raises:
        PipelabError: an unknown kind, a negative number, or members that do not fit the kind.
    """

    kind: Kind
    stage: int
    microbatch: int
    members: tuple[Action, ...] = ()

    def __post_init__(self) -> None:
        if type(self.kind) is not Kind:
            if self.kind not in set(Kind):
                raise PipelabError(f"kind is {self.kind!r}; allowed: {', '.join(Kind)}.")
            object.__setattr__(self, "kind", Kind(self.kind))
        for name in ("stage", "microbatch"):
            value = getattr(self, name)
            if type(value) is not int:
                object.__setattr__(self, name, as_index(name, value))
            if value < 0:
                raise PipelabError(f"{name} is {value}; it counts from 0.")
        if self.members or self.kind is Kind.OVERLAP:
            self._check_members()

    @property
    def parts(self) -> tuple[Action, ...]:
        """What runs in the cell: the members of an overlap; any other action is its own only part."""
        return self.members or (self,)

    def _check_members(self) -> None:
        members = tuple(self.members)
        object.__setattr__(self, "members", members)
        if self.kind is not Kind.OVERLAP:
            raise PipelabError(f"{self.kind} takes no members; only {Kind.OVERLAP} does.")
        if len(members) < 2 or any(not isinstance(m, Action) or m.kind is Kind.OVERLAP for m in members):
            raise PipelabError(f"{Kind.OVERLAP} needs two or more members, each a plain action.")
        if (self.stage, self.microbatch) != (members[0].stage, members[0].microbatch):
            raise PipelabError(
                f"The stage and micro-batch of an overlap are those of its first member, {members[0]}."
            )

    @classmethod
    def overlap(cls, *members: Action) -> Action:
        """Make the cell in which several actions of one rank run together.

        Args:
            members: two or more plain actions.

        Raises:
            PipelabError: fewer than two members, or an overlap among them.
        """
        first = members[0] if members else cls(Kind.F, 0, 0)
        return cls(Kind.OVERLAP, first.stage, first.microbatch, members)

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read one cell, strictly: the whole text must be the cell.

        Args:
            text: such as `"2F0"` or `"(0F3;3B1)OVERLAP_F_B"`.

        Raises:
            PipelabError: anything else, also `"1F0junk"` (which torch's own parser accepts) and `"01F0"`.
        """
        if isinstance(text, str):
            match = _CELL.fullmatch(text)
            if match:
                return cls(Kind(match[2]), int(match[1]), int(match[3]))
            match = _OVERLAP.fullmatch(text)
            if match and ";" in match[1]:
                return cls.overlap(*(cls.parse(member) for member in match[1].split(";")))
        raise PipelabError(f"{_shorten(text)} is not an action. {_GRAMMAR}.")

    def __str__(self) -> str:
        if self.kind is Kind.OVERLAP:
            return f"({';'.join(map(str, self.members))}){self.kind.value}"
        return f"{self.stage}{self.kind.value}{self.microbatch}"

    def __repr__(self) -> str:
        return f"Action.parse({str(self)!r})"


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ActionTable:
    """Many actions as read-only numpy columns, one row for each plain action.

    Rows are sorted by rank, then by order on the rank. An overlap is one cell of several rows; every other
    cell is one row, so that `cell` counts the rows when there are no overlaps.

    Attributes:
        kind: shape (rows,), uint8, index into `KINDS`; never the code of `OVERLAP`.
        stage: shape (rows,), int32.
        microbatch: shape (rows,), int32.
        rank: shape (rows,), int32, ascending.
        cell: shape (rows,), int32, ascending without gaps.
    """

    kind: IntArray
    stage: IntArray
    microbatch: IntArray
    rank: IntArray
    cell: IntArray

    def __init__(
        self,
        kind: npt.ArrayLike,
        stage: npt.ArrayLike,
        microbatch: npt.ArrayLike,
        rank: npt.ArrayLike,
        cell: npt.ArrayLike | None = None,
    ) -> None:
        """Take copies of columns of integers.

        Args:
            kind: codes, indices into `KINDS`.
            stage: ids of stages.
            microbatch: numbers of micro-batches.
            rank: the rank of each row, ascending.
            cell: the cell of each row; None makes each row a cell of its own.

        Raises:
            PipelabError: columns of different lengths, more than `MAX_CELLS` rows, rows not sorted, or
                numbers out of range.
        """
        rows = len(np.asarray(kind))
        if rows > MAX_CELLS:
            raise PipelabError(
                f"A schedule of {rows:,} cells is refused: the limit is {MAX_CELLS:,} (2**22)."
            )
        columns = {
            "kind": kind,
            "stage": stage,
            "microbatch": microbatch,
            "rank": rank,
            "cell": np.arange(rows, dtype=np.int32) if cell is None else cell,
        }
        for name, values in columns.items():
            column = np.asarray(values)
            if column.shape != (rows,):
                raise PipelabError(f"Column {name} has shape {column.shape}, not ({rows},).")
            limit = len(KINDS) - 2 if name == "kind" else MAX_CELLS
            if rows and (column.dtype.kind not in "iu" or column.min() < 0 or column.max() > limit):
                raise PipelabError(f"Column {name} must hold integers from 0 to {limit:,}.")
            column = column.astype(np.uint8 if name == "kind" else np.int32)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        if rows and (np.diff(self.rank) < 0).any():
            raise PipelabError("Rows of an action table must be sorted by rank.")
        if rows and (self.cell[0] != 0 or not np.isin(np.diff(self.cell), (0, 1)).all()):
            raise PipelabError("Column cell must count from 0 without gaps.")

    @classmethod
    def from_orders(cls, orders: Sequence[Sequence[Action]]) -> ActionTable:
        """Lay out actions as columns.

        Args:
            orders: for each rank its actions in order.

        Raises:
            PipelabError: more than `MAX_CELLS` cells, or a stage or micro-batch number beyond it.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        cell = 0
        for rank, order in enumerate(orders):
            for action in order:
                for member in action.parts:
                    if member.stage > MAX_CELLS or member.microbatch > MAX_CELLS:
                        raise PipelabError(
                            f"{action} is refused: stages and micro-batches go up to {MAX_CELLS:,} (2**22)."
                        )
                    rows.append((CODES[member.kind], member.stage, member.microbatch, rank, cell))
                cell += 1
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        return cls(*columns)

    @property
    def num_rows(self) -> int:
        """How many plain actions there are."""
        return len(self.kind)

    @cached_property
    def num_cells(self) -> int:
        """How many cells there are: rows, with each overlap counted once."""
        return int(self.cell[-1]) + 1 if self.num_rows else 0

    @property
    def has_overlaps(self) -> bool:
        """Whether any cell has several members."""
        return self.num_cells != self.num_rows

    @cached_property
    def first_rows(self) -> IntArray:
        """Shape (cells,): the first row of each cell."""
        if not self.has_overlaps:
            return self.cell
        return np.flatnonzero(np.diff(self.cell, prepend=-1)).astype(np.int32)

    @cached_property
    def cell_kinds(self) -> IntArray:
        """Shape (cells,), uint8: the kind code of each cell; `OVERLAP` where it has several members."""
        if not self.has_overlaps:
            return self.kind
        kinds = self.kind[self.first_rows]
        kinds[np.bincount(self.cell) > 1] = CODES[Kind.OVERLAP]
        kinds.setflags(write=False)
        return kinds

    @cached_property
    def cell_ranks(self) -> IntArray:
        """Shape (cells,), int32: the rank of each cell."""
        return self._of_cells(self.rank)

    @cached_property
    def cell_stages(self) -> IntArray:
        """Shape (cells,), int32: the stage of each cell, of its first member where it has several."""
        return self._of_cells(self.stage)

    @cached_property
    def cell_microbatches(self) -> IntArray:
        """Shape (cells,), int32: the micro-batch of each cell, of its first member where it has several."""
        return self._of_cells(self.microbatch)

    def _of_cells(self, column: IntArray) -> IntArray:
        if not self.has_overlaps:
            return column
        chosen = column[self.first_rows]
        chosen.setflags(write=False)
        return chosen

    def action(self, cell: int) -> Action:
        """The action in one cell."""
        first = int(self.first_rows[cell])
        members = []
        while first < self.num_rows and self.cell[first] == cell:
            kind = KINDS[self.kind[first]]
            members.append(Action(kind, int(self.stage[first]), int(self.microbatch[first])))
            first += 1
        return members[0] if len(members) == 1 else Action.overlap(*members)

    def actions(self) -> tuple[Action, ...]:
        """Every cell as an `Action`, in table order."""
        columns = zip(self.kind.tolist(), self.stage.tolist(), self.microbatch.tolist(), strict=True)
        plain = [Action(KINDS[kind], stage, microbatch) for kind, stage, microbatch in columns]
        if not self.has_overlaps:
            return tuple(plain)
        stops = [*self.first_rows[1:].tolist(), self.num_rows]
        groups = (plain[a:b] for a, b in zip(self.first_rows.tolist(), stops, strict=True))
        return tuple(group[0] if len(group) == 1 else Action.overlap(*group) for group in groups)

    def texts(self) -> list[str]:
        """Every cell as text, such as "2F0", in table order."""
        if self.has_overlaps:
            return [str(action) for action in self.actions()]
        letters = [kind.value for kind in KINDS]
        columns = zip(self.stage.tolist(), self.kind.tolist(), self.microbatch.tolist(), strict=True)
        return [f"{stage}{letters[kind]}{microbatch}" for stage, kind, microbatch in columns]

    def __len__(self) -> int:
        return self.num_rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActionTable):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(self._columns(), other._columns(), strict=True))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(column.tobytes() for column in self._columns()))

    def _columns(self) -> tuple[IntArray, ...]:
        return self.kind, self.stage, self.microbatch, self.rank, self.cell

    def __repr__(self) -> str:
        return f"<ActionTable: {self.num_cells} cells, {self.num_rows} actions>"

    def __reduce__(self) -> tuple[type[ActionTable], tuple[IntArray, ...]]:
        return ActionTable, self._columns()  # a copy is read-only again


def as_index(name: str, value: object) -> int:
    """An integer of any kind (also numpy's) as an int.

    Args:
        name: of the argument, for the message.
        value: what was given.

    Raises:
        TypeError: no integer; True and False are none either.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {_shorten(value)}.") from None


def _shorten(value: object) -> str:
    text = repr(value) if not isinstance(value, str) or len(value) <= 60 else repr(value[:60]) + "..."
    return text if len(text) <= 80 else text[:80] + "..."


def as_actions(order: Iterable[Action | str], where: str) -> tuple[Action, ...]:
    """Read one rank's order of actions or cell strings.

    Args:
        order: actions, or strings such as `"0F0"`.
        where: what the order is, for the error message.

    Raises:
        PipelabError: something that is neither, or more than `MAX_CELLS` cells.
    """
    if isinstance(order, str):
        raise PipelabError(
            f"{where} must be a sequence of cells, not the text {_shorten(order)}. Split it first."
        )
    actions = []
    for number, item in enumerate(order):
        if number == MAX_CELLS:
            raise PipelabError(f"{where} has more than {MAX_CELLS:,} cells (2**22), the limit.")
        actions.append(item if isinstance(item, Action) else Action.parse(item))
    return tuple(actions)
