"""Cells read by the line are the cells read one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action, ActionTable
from pipelab.core.cells import read_cells
from pipelab.errors import PipelabError

plain = st.builds(
    lambda s, k, i: f"{s}{k}{i}", st.integers(0, 4_194_304), st.sampled_from("FIWBU"), st.integers(0, 99)
)
overlap = st.lists(plain, min_size=2, max_size=3).map(lambda members: f"({';'.join(members)})OVERLAP_F_B")


def read(*lines):
    return read_cells(lines, [f"rank {r}" for r in range(len(lines))])


@given(st.lists(st.lists(st.one_of(plain, plain, plain, overlap), max_size=6), max_size=4))
@settings(max_examples=80)
def test_a_line_gives_what_its_cells_give(orders):
    wanted = ActionTable.from_orders([[Action.parse(cell) for cell in order] for order in orders])
    assert read(*(" ".join(order) for order in orders)) == wanted


def test_spaces_do_not_matter():
    assert read("  0F0   0B0 ") == read("0F0 0B0") == read("0F0\t0B0")


@pytest.mark.parametrize(
    "line", ["0F0 0F", "0F0 1", "0F00", "0F0,0B0", "00F0", "-1F0", "0F0 F0", "0F0 0F0x", "0F0;", "٠F٠"]
)
def test_a_wrong_cell_is_refused_with_its_line(line):
    with pytest.raises(PipelabError, match=r"rank 1: .* is not an action"):
        read("0F0", line)


@pytest.mark.parametrize(
    "cell", ["0F4194305", "4194305F0", "0F9999999", "0F1000000000000", "(0F0;0F5000000)OVERLAP_F_B"]
)
def test_numbers_beyond_the_limit_are_refused(cell):
    with pytest.raises(PipelabError, match=r"4,194,304"):
        read(cell)


def test_the_first_wrong_cell_of_a_long_line_ends_the_reading():
    with pytest.raises(PipelabError, match="'nonsense' is not an action"):
        read("0F0 nonsense " + "0F1 " * 1_000_000)
