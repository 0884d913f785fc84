"""Orders written as phases: how actions are numbered, placed, and left out."""

from __future__ import annotations

import numpy as np

from pipelab.core.placement import Placement
from pipelab.core.schedules.phases import Phase, Rows, lay_out

PLACEMENT = Placement.v(2)


def texts(phases: list[Phase], num_microbatches: int) -> list[str]:
    rows, _ = lay_out(phases, 2, num_microbatches)
    table = rows.table(PLACEMENT)
    actions = table.actions()
    return [
        " ".join(str(a) for a, r in zip(actions, table.cell_ranks, strict=True) if r == rank)
        for rank in (0, 1)
    ]


def test_each_kind_of_each_chunk_takes_micro_batches_in_order():
    phases = [Phase("F0", np.array([2, 1])), Phase("F1 I1 W1", np.array([1, 2]))]
    assert texts(phases, 9) == ["0F0 0F1 3F0 3I0 3W0", "1F0 2F0 2I0 2W0 2F1 2I1 2W1"]


def test_a_whole_backward_counts_as_both_of_its_halves():
    phases = [Phase("B0", np.array([1, 2])), Phase("I0 W0", np.array([2, 1]))]
    assert texts(phases, 9) == ["0B0 0I1 0W1 0I2 0W2", "1B0 1B1 1I2 1W2"]


def test_actions_that_overlap_share_a_cell():
    assert texts([Phase("F0;B1 F1", np.array([2, 0])), Phase("F0", np.array([0, 1]))], 9) == [
        "(0F0;3B0)OVERLAP_F_B 3F0 (0F1;3B1)OVERLAP_F_B 3F1",
        "1F0",
    ]


def test_what_belongs_to_no_micro_batch_is_left_out_also_of_an_overlap():
    phases = [Phase("B1", np.array([1, 1])), Phase("F0;B1", np.array([3, 2]))]
    assert texts(phases, 2) == ["3B0 (0F0;3B1)OVERLAP_F_B 0F1", "2B0 (1F0;2B1)OVERLAP_F_B 1F1"]


def test_free_cells_are_room_for_other_rows():
    rows, begins = lay_out([Phase("F0 .", np.array([2, 1])), Phase("I0", np.array([2, 1]))], 2, 2)
    assert [begin.tolist() for begin in begins] == [[0, 0], [4, 2]]
    one, zero = np.array([1]), np.array([0])
    more = Rows(np.array([2]), one, zero, zero, np.array([3]), zero)
    order = (rows + more).table(PLACEMENT).texts()
    assert order == ["0F0", "0F1", "3W0", "0I0", "0I1", "1F0", "1I0"]
