"""What an action needs, stated once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.errors import PipelabError


def test_the_needs_of_each_kind_in_a_chain():
    orders = [["0F0", "0I0", "0W0", "0U0"], ["1F0", "1B0", "1U0"]]
    one = Schedule(orders)
    wanted = {
        "0F0": [],
        "1F0": ["0F0"],
        "1B0": ["1F0"],
        "0I0": ["0F0", "1B0"],
        "0W0": ["0I0"],
        "0U0": ["0W0"],
        "1U0": ["1B0"],
    }
    for cell, needs in wanted.items():
        assert [str(action) for action in one.needs(Action.parse(cell))] == needs


def test_a_stage_that_combines_two_branches_needs_both():
    placement = Placement((0, 1, 2), edges=((0, 2), (1, 2)))
    one = Schedule([["0F0", "0B0"], ["1F0", "1B0"], ["2F0", "2B0"]], placement)
    assert set(map(str, one.needs(Action.parse("2F0")))) == {"0F0", "1F0"}
    assert set(map(str, one.needs(Action.parse("0B0")))) == {"0F0", "2B0"}


def test_an_overlap_needs_what_its_members_need():
    orders = [["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"], ["1F0", "1B0", "1F1", "1B1"]]
    one = Schedule(orders)
    assert list(map(str, one.needs(Action.parse("(0F1;0B0)OVERLAP_F_B")))) == ["0F0", "1B0"]
    assert list(map(str, one.needs(Action.parse("0B0")))) == ["0F0", "1B0"]


def test_a_backward_that_was_split_is_needed_as_its_input_gradient():
    one = Schedule([["0F0", "0B0"], ["1F0", "1I0", "1W0"]])
    assert list(map(str, one.needs(Action.parse("0B0")))) == ["0F0", "1I0"]


def test_an_action_that_is_not_there_is_refused():
    with pytest.raises(PipelabError, match="0F9 is not in gpipe"):
        schedule("gpipe", num_ranks=2, num_microbatches=2).needs(Action.parse("0F9"))


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_needs_agree_with_the_table_written_out(random_schedule, all_prerequisites, seed):
    one = random_schedule(seed)
    present = {m for order in one.orders for a in order for m in (a.members or (a,))}
    for action in present:
        wanted = {next(iter(need & present)) for need in all_prerequisites(action, one.placement)}
        assert set(one.needs(action)) == wanted


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_predecessors_are_the_needs_from_other_ranks(random_schedule, seed):
    one = random_schedule(seed)
    table, found = one.table, one.predecessors
    cell_of = {m: c for c, a in enumerate(table.actions()) for m in (a.members or (a,))}
    wanted = sorted(
        (cell_of[action], cell_of[need])
        for action in cell_of
        for need in one.needs(action)
        if table.cell_ranks[cell_of[action]] != table.cell_ranks[cell_of[need]]
    )
    assert sorted(zip(found.cell.tolist(), found.needed.tolist(), strict=True)) == wanted


def test_a_causal_slice_needs_the_slice_before_and_its_gradient_the_slice_after():
    orders = [["0F0", "0F1", "0F2", "0F3", "0B3", "0B2", "0B1", "0B0"], ["1F0", "1F1", "1B1", "1B0"]]
    orders[1] += ["1F2", "1F3", "1I3", "1W3", "1B2"]
    orders[0] = ["0F0", "0F1", "0F2", "0F3", "0B1", "0B0", "0B3", "0B2"]
    one = Schedule(orders, slices=2)
    wanted = {
        "0F0": [],
        "0F1": ["0F0"],
        "0F2": [],
        "1F3": ["0F3", "1F2"],
        "0B0": ["0F0", "1B0", "0B1"],
        "0B1": ["0F1", "1B1"],
        "1B2": ["1F2", "1I3"],
        "1W3": ["1I3"],
    }
    for cell, needs in wanted.items():
        assert list(map(str, one.needs(Action.parse(cell)))) == needs


def test_slices_out_of_order_are_refused():
    with pytest.raises(PipelabError, match="rank 0 wants to run 0F1 but 0F0 never comes before it"):
        Schedule([["0F1", "0F0", "0B1", "0B0"]], slices=2)
    with pytest.raises(PipelabError, match="rank 0 wants to run 0B0 but 0B1 never comes before it"):
        Schedule([["0F0", "0F1", "0B0", "0B1"]], slices=2)
