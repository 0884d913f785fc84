"""Small changes to an order by hand."""

from __future__ import annotations

import pytest

from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.errors import PipelabError

ONE = schedule("1f1b", num_ranks=2, num_microbatches=3)


def line(one: Schedule, rank: int) -> str:
    return " ".join(map(str, one.orders[rank]))


def test_swapping_exchanges_two_cells_of_a_rank_and_leaves_the_rest():
    changed = ONE.swap("0F1", "0F2")
    assert line(ONE, 0) == "0F0 0F1 0B0 0F2 0B1 0B2"
    with_backwards = changed.swap("0F1", "0F2")
    assert with_backwards.with_name("1f1b") == ONE and line(changed, 0) == "0F0 0F2 0B0 0F1 0B1 0B2"
    assert changed.orders[1] == ONE.orders[1] and changed.name == with_backwards.name == "1f1b (edited)"


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ({"after": "0B0"}, "0F0 0B0 0F1 0F2 0B1 0B2"),
        ({"before": "0F0"}, "0F1 0F0 0B0 0F2 0B1 0B2"),
        ({"before": "0B0"}, "0F0 0F1 0B0 0F2 0B1 0B2"),
        ({"after": "0F1"}, "0F0 0F1 0B0 0F2 0B1 0B2"),
        ({"before": "0F1"}, "0F0 0F1 0B0 0F2 0B1 0B2"),
        ({"after": "0F2"}, "0F0 0B0 0F2 0F1 0B1 0B2"),
    ],
)
def test_moving_puts_a_cell_before_or_after_another(where, wanted):
    assert line(ONE.move("0F1", **where), 0) == wanted


def test_an_order_that_cannot_run_is_refused_with_the_reason():
    with pytest.raises(PipelabError, match="rank 0 wants to run 0B0 but 0F0 never comes before it"):
        ONE.swap("0F0", "0B0")
    with pytest.raises(
        PipelabError, match="rank 0 wants to run 0B0 but 1B0 never comes before it: 2 ranks wait"
    ):
        schedule("gpipe", num_ranks=2, num_microbatches=2).move("0B0", before="0F1")


def test_cells_of_two_ranks_or_of_none_are_refused():
    with pytest.raises(PipelabError, match="0F0 is on rank 0 and 1F0 on rank 1"):
        ONE.swap("0F0", "1F0")
    with pytest.raises(PipelabError, match="a cell stays on its rank"):
        ONE.move("0F0", before="1F0")
    with pytest.raises(PipelabError, match="0F9 is not in 1f1b"):
        ONE.swap("0F9", "0F0")
    with pytest.raises(PipelabError, match="'0F' is not an action"):
        ONE.swap("0F", "0F0")


def test_a_member_of_an_overlap_is_named_by_its_cell():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])
    with pytest.raises(PipelabError, match=r"0B0 is a member of .*; name the whole cell"):
        one.swap("0B0", "0B1")


def test_moving_says_where_to_in_one_way():
    for where in ({}, {"before": "0F0", "after": "0F0"}):
        with pytest.raises(TypeError, match="either before= or after="):
            ONE.move("0F1", **where)


def test_a_name_is_all_that_with_name_changes():
    other = ONE.with_name("mine")
    assert other.name == "mine" and other.table == ONE.table and other.placement == ONE.placement
