"""Explaining why a table cannot run: who waits for whom, and where in the table that is."""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import KINDS, Action, ActionTable

__all__ = ["action_of", "explain_deadlock", "show_around"]


_SHOWN = 8


def explain_deadlock(name: str, table: ActionTable, heads: dict[int, tuple[int, int]]) -> str:
    """Say who waits for whom.

    Args:
        name: of the schedule.
        table: its actions.
        heads: for each stuck rank the cell that it cannot run and the cell that this one waits for.
    """
    circle = _circle(table, heads)
    action, need = (table.action(cell) for cell in heads[circle[0]])
    lines = [
        f"{name}: rank {circle[0]} wants to run {action} but {need} never comes before it: "
        f"{len(circle)} ranks wait for each other."
    ]
    remedy = need
    for rank in circle[:_SHOWN]:
        cell, needed = heads[rank]
        other = int(table.cell_ranks[needed])
        behind = heads[other][0]
        lines.append(f"  rank {rank}: {table.action(cell)} waits for {table.action(needed)} of rank {other}")
        if behind != needed:
            lines[-1] += f", which stands behind {table.action(behind)}"
            remedy = table.action(needed)
    if len(circle) > _SHOWN:
        lines.append(f"  ... and {len(circle) - _SHOWN} more")
    first_row = int(table.first_rows[heads[circle[0]][0]])
    return "\n".join([*lines, f"Put {remedy} earlier.", show_around(table, first_row)])


def _circle(table: ActionTable, heads: dict[int, tuple[int, int]]) -> list[int]:
    """Follow who waits for whom until a rank comes again; from there on it is a circle, lowest rank first."""
    path: dict[int, None] = {}
    rank = min(heads)
    while rank not in path:
        path[rank] = None
        rank = int(table.cell_ranks[heads[rank][1]])
    ranks = list(path)
    circle = ranks[ranks.index(rank) :]
    lowest = circle.index(min(circle))
    return circle[lowest:] + circle[:lowest]


def action_of(table: ActionTable, row: int) -> Action:
    """The plain action in one row."""
    return Action(KINDS[table.kind[row]], int(table.stage[row]), int(table.microbatch[row]))


def show_around(table: ActionTable, row: int, margin: int = 4) -> str:
    """The orders around one cell, with the cell in brackets: each rank's cells at about the same position."""
    cell, rank = int(table.cell[row]), int(table.rank[row])
    rank_of = table.cell_ranks
    position = cell - int(np.searchsorted(rank_of, rank))
    num_ranks = int(rank_of[-1]) + 1
    low = max(0, min(rank - _SHOWN // 2, num_ranks - _SHOWN))
    lines = []
    for r in range(low, min(num_ranks, low + _SHOWN)):
        start, stop = np.searchsorted(rank_of, [r, r + 1])
        window = range(max(start, start + position - margin), min(stop, start + position + margin + 1))
        cells = [f"[{table.action(c)}]" if c == cell else f" {table.action(c)} " for c in window]
        before = "..." if window and window.start > start else "   "
        after = "..." if window and window.stop < stop else ""
        lines.append(f"  rank {r}:{before}{''.join(cells)}{after}")
    return "\n".join(lines)
