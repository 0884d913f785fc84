"""What an action needs and what needs it, and why it started when it did."""

from __future__ import annotations

import pytest

from pipelab.core.waits import neighbours, reason
from tests.widgets.test_timeline_columns import TRACES, simulated, with_lanes


@pytest.mark.parametrize("name", TRACES)
def test_neighbours_agree_with_the_schedules_needs(name):
    trace = TRACES[name]()
    table, schedule = trace.schedule.table, trace.schedule
    cells = [table.action(cell) for cell in range(table.num_cells)]
    member = {part: cell for cell, action in enumerate(cells) for part in action.parts}
    for cell in range(0, len(cells), 3):
        before, after = neighbours(trace, cell)
        needed = {member[need] for need in schedule.needs(cells[cell])} - {cell}
        assert set(before) == needed
        assert all(cell in neighbours(trace, later)[0] for later in after)
    assert neighbours(trace, -1) == neighbours(trace, len(trace.start) + 5) == ([], [])


def test_after_a_gap_the_gap_is_explained_and_else_the_action():
    trace = simulated()
    names = trace.schedule.table.texts()
    assert reason(trace, names.index("2B0")).startswith(
        "Rank 2 waits 2 s for 2B0, from 4 s to 6 s: it needs 3B0"
    )
    assert reason(trace, names.index("0F1")) == "It comes after 0F0 on its rank."
    assert reason(trace, names.index("0F0")) == "It waits for nothing."


def test_of_what_is_no_work_nothing_is_said():
    trace = with_lanes()
    copies = trace.rows_of("copy").tolist()
    assert copies and {reason(trace, row) for row in copies} == {""}
