"""One action of a trace among others: what it needs, what needs it, and why it started when it did."""

from __future__ import annotations

import numpy as np

from pipelab.core.dependencies import Slots, StageGraph, needs
from pipelab.core.trace import COMPUTE, Trace

__all__ = ["neighbours", "reason"]

_ROUNDING = 1e-12
"""What is less than this fraction of the step is a rounded nothing."""


def neighbours(trace: Trace, row: int) -> tuple[list[int], list[int]]:
    """What a cell directly needs, and what directly needs it, as rows of the trace.

    Args:
        trace: simulated or measured.
        row: of the trace; a row of another lane than "compute" has none.
    """
    schedule, table = trace.schedule, trace.schedule.table
    if not 0 <= row < table.num_cells:
        return [], []
    wanted = needs(table.kind, table.stage, table.microbatch, StageGraph(schedule.placement), schedule.slices)
    slots = Slots(schedule.placement, schedule.num_microbatches)
    slots.fill(table)
    giver = table.cell[slots.givers(wanted.result, wanted.stage, wanted.microbatch)]
    taker = table.cell[wanted.row]
    before, after = np.unique(giver[taker == row]), np.unique(taker[giver == row])
    return before[before != row].tolist(), after[after != row].tolist()


def reason(trace: Trace, row: int) -> str:
    """Why a cell started when it did; after a gap, what the rank waited for, as over the gap itself."""
    rank, start = int(trace.rank[row]), float(trace.start[row])
    if trace.lanes[trace.lane[row]] != COMPUTE or start == trace.end[row]:
        return ""
    work = trace.working_rows
    ended = trace.end[work][(trace.rank[work] == rank) & (trace.end[work] <= start)]
    gap = start - float(ended.max(initial=0.0))
    if gap > _ROUNDING * trace.makespan:
        return trace.why(rank, start - gap / 2).sentence
    return f"It {trace.why(rank, start).why[0]}."
