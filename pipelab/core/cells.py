"""Reading the cells of a whole schedule at once, straight into columns.

A file of 5 MB holds about a million cells. Made into one `Action` each they would take some seconds and
hundreds of megabytes; a line of plain cells is checked by one regular expression and read by numpy. A line
with overlaps, or with something wrong in it, is read cell by cell.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy as np

from pipelab.core.actions import CODES, MAX_CELLS, Action, ActionTable, IntArray
from pipelab.core.deadlock import action_of, show_around
from pipelab.core.placement import Placement
from pipelab.errors import PipelabError

__all__ = ["placement_of", "read_cells"]

_NUMBER = "(?:0|[1-9][0-9]{0,6})"
_PLAIN_LINE = re.compile(f"(?:{_NUMBER}[FIWBU]{_NUMBER}(?: |$))++")
_NUMBERS_ONLY = str.maketrans("FIWBU", "     ")
_CODE_OF_BYTE = np.zeros(256, dtype=np.uint8)
for _kind, _code in CODES.items():
    _CODE_OF_BYTE[ord(_kind.value[0])] = _code


def read_cells(lines: Sequence[str], names: Sequence[str]) -> ActionTable:
    """Read cells such as "0F0 0F1 0B0", one line a rank.

    Args:
        lines: for each rank its cells with one or more spaces between.
        names: what each line is, for messages.

    Raises:
        PipelabError: something that is no cell, or too many cells.
    """
    parts: list[IntArray] = []
    next_cell = 0
    for rank, (line, name) in enumerate(zip(lines, names, strict=True)):
        try:
            columns = _read_plain(line) if _PLAIN_LINE.fullmatch(line) else _read_any(line)
        except PipelabError as error:
            raise PipelabError(f"{name}: {error}") from None
        columns[3] = rank
        columns[4] += next_cell
        next_cell = int(columns[4, -1]) + 1 if columns.shape[1] else next_cell
        if next_cell > MAX_CELLS:
            raise PipelabError(f"The orders have more than {MAX_CELLS:,} cells (2**22), the limit.")
        parts.append(columns)
    kind, stage, microbatch, on_rank, cell = (
        np.concatenate(parts, axis=1) if parts else np.empty((5, 0), np.int32)
    )
    return ActionTable(kind, stage, microbatch, on_rank, cell)


def _read_plain(line: str) -> IntArray:
    """Shape (5, cells): kind, stage, micro-batch, rank (not yet), cell."""
    letters = np.frombuffer(line.encode(), dtype=np.uint8)
    kinds = _CODE_OF_BYTE[letters[letters >= ord("A")]]
    columns = np.empty((5, len(kinds)), dtype=np.int32)
    numbers = np.fromstring(line.translate(_NUMBERS_ONLY), dtype=np.int32, sep=" ")
    columns[0], columns[1], columns[2] = kinds, numbers[::2], numbers[1::2]
    columns[4] = np.arange(len(kinds))
    return columns


def _read_any(line: str) -> IntArray:
    """The same, cell by cell, with overlaps; it stops at the first cell that is wrong."""
    values = array("i")
    for cell, match in enumerate(re.finditer(r"\S+", line)):
        action = Action.parse(match[0])
        for member in action.parts:
            if member.stage > MAX_CELLS or member.microbatch > MAX_CELLS:
                raise PipelabError(
                    f"{action} is refused: stages and micro-batches go up to {MAX_CELLS:,} (2**22)."
                )
            values.extend((CODES[member.kind], member.stage, member.microbatch, 0, cell))
    return np.array(values, dtype=np.int32).reshape(-1, 5).T.copy()


def placement_of(table: ActionTable, name: str, num_ranks: int) -> Placement:
    """Read where the stages of one chain are from where their actions are.

    Args:
        table: a whole schedule.
        name: the schedule's name, which begins every message.
        num_ranks: how many orders were given; the last ones may be empty.

    Raises:
        PipelabError: a stage or a rank without an action, or a stage with actions on two ranks.
    """
    if not table.num_rows:
        raise PipelabError(f"{name}: there are no actions. A schedule has at least one forward, such as 0F0.")
    stages, first = np.unique(table.stage, return_index=True)
    if stages[-1] >= len(stages):
        lost = int(np.flatnonzero(stages != np.arange(len(stages)))[0])
        raise PipelabError(
            f"{name}: stage {lost} has no action, though stage {stages[-1]} has. Leave no gap."
        )
    ranks = table.rank[first]
    astray = np.flatnonzero(table.rank != ranks[table.stage])
    if len(astray):
        row = int(astray[0])
        stage = int(table.stage[row])
        raise PipelabError(
            f"{name}: {action_of(table, row)} is in the order of rank {table.rank[row]}, but "
            f"{action_of(table, int(first[stage]))} in that of rank {ranks[stage]}; a stage lives on one rank. Move it "
            f"there.\n{show_around(table, row)}"
        )
    idle = np.setdiff1d(np.arange(num_ranks), table.rank)
    if len(idle):
        raise PipelabError(
            f"{name}: rank {idle[0]} has no actions, so its stage cannot be read from them. Leave the rank out, give "
            f"it a stage, or give the placement."
        )
    return Placement(tuple(ranks.tolist()))
