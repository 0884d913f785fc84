"""The table that torch.distributed.pipelining reads and writes: one line a rank, one cell an action.

    0F0,0F1,0B0,0B1
    1F0,1B0,1F1,1B1

This is the compute-only form of `_PipelineScheduleRuntime._load_csv` and `_dump_csv` (torch 2.13): sends and receives
are not in it, torch adds them. torch's own parser is looser than the one here: it reads `1F0junk` as `1F0`.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

import numpy as np

from pipelab.core.actions import CODES, ActionTable, Kind
from pipelab.core.cells import read_cells
from pipelab.core.deadlock import action_of
from pipelab.core.strict_json import MAX_BYTES
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.schedule import Schedule

__all__ = ["dump", "load"]

_LINE_END = "\r\n"  # what Python's csv module ends a line with, and so torch
_FOREIGN = re.compile("[0-9]+(UNSHARD|RESHARD|REDUCE_GRAD|SEND_F|RECV_F|SEND_B|RECV_B)[0-9]*")
_UPDATE = re.compile("[0-9]+U[0-9]+")


def dump(schedule: Schedule) -> str:
    """Write a schedule as torch's table.

    Raises:
        PipelabError: an update (U), mini-batches or slices, which such a table cannot hold.
    """
    table = schedule.table
    updates = np.flatnonzero(table.kind == CODES[Kind.U])
    remedy = "Carry it with to_text() or save()."
    if len(updates):
        raise PipelabError(
            f"{schedule.name}: {action_of(table, int(updates[0]))} updates weights, and torch's table has no cell "
            f"for that. {remedy}"
        )
    for count, things in ((schedule.minibatches, "mini-batches"), (schedule.slices, "slices a micro-batch")):
        if count != 1:
            raise PipelabError(
                f"{schedule.name} runs {count} {things}, which torch's table cannot say. {remedy}"
            )
    return "".join(line.replace(" ", ",") + _LINE_END for line in schedule.lines)


def load(text: str) -> ActionTable:
    """Read torch's table. Empty cells are idle time, which an order does not hold; they are left out.

    Args:
        text: as `_dump_csv(path, format="compute_only")` writes it; lines may end in any way, cells may be quoted.

    Raises:
        PipelabError: names the line, and the first cell that is none.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}.")
    if len(text) > MAX_BYTES:
        raise PipelabError(f"The text has {len(text):,} characters; the limit is {MAX_BYTES:,}.")
    if text.strip().lower().endswith(".csv") and "," not in text:
        raise PipelabError(
            f"{text.strip()[:60]!r} looks like the name of a file; from_csv takes the table itself: "
            f"Schedule.from_csv(open(path).read())."
        )
    lines: list[str] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            lines.append(_line(row, len(lines)))
    except csv.Error as error:
        raise PipelabError(f"{_name(len(lines))} is no line of comma-separated cells: {error}.") from None
    while lines and not lines[-1]:
        lines.pop()
    return read_cells(lines, [_name(rank) for rank in range(len(lines))])


def _name(rank: int) -> str:
    return f"Line {rank + 1} (rank {rank})"


def _line(row: list[str], rank: int) -> str:
    """The cells of one rank with spaces between, once it is sure that none of them is something else."""
    cells = [cell for cell in map(str.strip, row) if cell]
    line = " ".join(cells)
    if len(line.split()) == len(cells) and "U" not in line and "_" not in line.replace("OVERLAP_F_B", ""):
        return line
    for cell in cells:
        if len(cell.split()) != 1:
            raise PipelabError(f"{_name(rank)}: {cell[:60]!r} is not one action. Put commas between cells.")
        if _FOREIGN.fullmatch(cell):
            raise PipelabError(
                f"{_name(rank)}: {cell[:60]!r} is a cell of torch's lowered table, which holds sends and receives. "
                f'Write the plain one with _dump_csv(path, format="compute_only").'
            )
        if _UPDATE.fullmatch(cell):
            raise PipelabError(f"{_name(rank)}: {cell[:60]!r} is an update, and torch's table has none.")
    return line
