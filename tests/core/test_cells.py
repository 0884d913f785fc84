"""Cells read by the line are the cells read one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action, ActionTable
from pipelab.core.cells import read_cells
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
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


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "0F1", "1B1"]],
         r"x: 0F1 is in the order of rank 1, but 0F0 in that of rank 0.*Move it there.*\[0F1\]"),
        ([["0F0", "0B0"], [], ["1F0", "1B0"]], "x: rank 1 has no actions, so its stage cannot be read"),
        ([["0F0", "0B0"], []], "x: rank 1 has no actions"),
        ([["0F0", "2F0"]], "x: stage 1 has no action, though stage 2 has"),
        ([], "x: there are no actions"),
    ],
)  # fmt: skip
def test_where_stages_are_is_read_from_the_cells_or_said_to_be_unclear(orders, message):
    with pytest.raises(PipelabError, match=f"(?s){message}"):
        Schedule(orders, name="x")


def test_a_blank_line_in_a_table_is_a_rank_without_actions():
    with pytest.raises(PipelabError, match="rank 1 has no actions"):
        Schedule.from_csv("0F0,0B0\r\n\r\n1F0,1B0\r\n")
    with pytest.raises(PipelabError, match="0F0 is in the order of rank 1, but 0F0 in that of rank 0"):
        Schedule.from_csv("0F0,0B0\r\n1F0,1B0,0F0\r\n")


@pytest.mark.parametrize("make", [lambda p: Schedule([["0F0"]], p), lambda p: Schedule.from_csv("0F0", p)])
def test_a_placement_is_a_placement(make):
    with pytest.raises(TypeError, match="placement must be a Placement or None, not list"):
        make([0])


def test_a_schedule_of_one_chain_prints_as_code_and_another_does_not():
    assert repr(Schedule([["0F0"]])) == "Schedule([['0F0']], name='custom')"
    assert repr(Schedule([["0F0"], []], Placement((0, 1), chains=2))).startswith("<Schedule")
