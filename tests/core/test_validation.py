"""Every way in which a schedule can be wrong, by the text of its message."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.errors import PipelabError


def refuse(orders, match, placement=None, name="1f1b"):
    with pytest.raises(PipelabError, match=match) as caught:
        Schedule(orders, placement, name=name)
    return str(caught.value)


def test_a_backward_before_its_forward_says_what_to_put_earlier_and_marks_the_cell():
    message = refuse(
        [["0B0", "0F0"]], r"^1f1b: rank 0 wants to run 0B0 but 0F0 never comes before it\. Put 0F0 earlier\."
    )
    assert "rank 0:   [0B0] 0F0" in message


def test_the_first_wrong_action_in_the_order_is_named():
    refuse(
        [["0F0", "0F1", "0W1", "0I1", "0W0", "0I0"]], "rank 0 wants to run 0W1 but 0I1 never comes before it"
    )


def test_an_update_before_the_backward_is_refused():
    refuse([["0F0", "0U0", "0B0"]], "wants to run 0U0 but 0B0 never comes before it")


def test_two_ranks_that_wait_for_each_other_are_named_with_the_chain_of_waits():
    message = refuse(
        [["0F0", "0B0", "0F1", "0B1"], ["1F0", "1F1", "1B0", "1B1"]],
        "^1f1b: rank 0 wants to run 0B0 but 1B0 never comes before it: 2 ranks wait for each other",
    )
    assert "rank 0: 0B0 waits for 1B0 of rank 1, which stands behind 1F1" in message
    assert "rank 1: 1F1 waits for 0F1 of rank 0, which stands behind 0B0" in message
    assert "Put 0F1 earlier." in message
    assert "0F0 [0B0] 0F1  0B1" in message


def test_ranks_outside_the_circle_are_not_blamed():
    stuck = [["0F0", "0B0", "0F1", "0B1"], ["1F0", "1F1", "1B0", "1B1"]]
    orders = [[*stuck[0]], [*stuck[1]], ["2F0", "2F1", "2B0", "2B1"]]
    message = refuse(orders, "2 ranks wait for each other")
    assert "rank 2: 2" not in message.split("Put")[0]


def test_a_long_circle_is_shortened():
    p = 30
    orders = [[f"{p + s}F0", f"{s}F0"] for s in range(p)]  # the second half of the model first, on every rank
    message = refuse(orders, "30 ranks wait for each other")
    assert "... and 22 more" in message and message.count("\n") < 20


def test_a_doubled_action_is_named():
    message = refuse([["0F0", "0F0", "0B0"]], "1f1b: rank 0 has 0F0 twice. Remove one")
    assert "0F0 [0F0] 0B0" in message


def test_an_action_on_the_wrong_rank_is_named():
    refuse(
        [["0F0", "1F0", "0B0"], ["1B0"]],
        r"1f1b: 1F0 is in the order of rank 0, but stage 1 is placed on rank 1. Move it there",
        Placement.linear(2),
    )


def test_orders_without_a_placement_may_not_scatter_a_stage():
    refuse([["0F0", "1F0", "0B0"], ["1B0"]], "1B0 is in the order of rank 1, but 1F0 in that of rank 0")


def test_a_missing_forward_is_named():
    refuse(
        [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1B1"]], "1F1 is missing. Every stage runs the forward"
    )


def test_a_missing_micro_batch_is_found_without_memory_for_all():
    began = time.perf_counter()
    refuse([["0F0", "0F4000000"]], "0F1 is missing")
    assert time.perf_counter() - began < 1


def test_a_missing_backward_is_compared_with_the_same_micro_batch():
    refuse(
        [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1"]],
        r"1B1 is missing .* though stage 0 has one for micro-batch 1",
    )


def test_a_missing_stage_is_named():
    refuse([["0F0"], ["2F0"]], "stage 1 has no action, though stage 2 has")
    refuse([["0F0"], []], "1F0 is missing", Placement.linear(2))


def test_a_stage_beyond_the_placement_is_named():
    refuse([["0F0", "0B0", "1F0"]], "1F0 names stage 1, but the placement has 1 stages", Placement.linear(1))


def test_more_orders_than_ranks_are_refused():
    refuse(
        [["0F0"], ["0B0"]], "an order for rank 1, but the placement gives it no stage", Placement.linear(1)
    )


def test_half_a_split_backward_is_named():
    refuse([["0F0", "0I0"]], "0I0 is there but 0W0 is missing. Add it, or use 0B0")
    refuse([["0F0", "0W0"]], "0W0 is there but 0I0 is missing")


def test_both_forms_of_a_backward_are_refused():
    refuse([["0F0", "0B0", "0W0"]], "both 0B0 and 0W0 are there. B is I and W in one")
    refuse([["0F0", "0B0", "0I0"]], "both 0B0 and 0I0 are there")


def test_a_missing_backward_is_named():
    refuse([["0F0", "0F1", "0B0"]], "0B1 is missing .* though stage 0 has one for micro-batch 0")
    refuse(
        [["0F0", "0B0"], ["1F0"]], "1B0 is missing .* Give every stage and micro-batch a backward, or none"
    )


def test_an_update_without_a_backward_is_refused():
    refuse([["0F0", "0U0"]], "0U0 updates stage 0 after micro-batch 0, which has no backward there")


def test_a_micro_batch_in_the_wrong_chain_is_refused():
    two = Placement((0, 0), chains=2)
    refuse([["0F0", "1F1", "1F0"]], "1F0 runs in chain 1, which takes micro-batches 1 to 1", two)


def test_an_overlap_of_an_action_with_what_it_needs_is_refused():
    message = refuse(
        [["(0F0;0B0)OVERLAP_F_B"]],
        "rank 0 overlaps 0B0 with 0F0, which it needs first. Put 0F0 into an earlier cell",
    )
    assert "[(0F0;0B0)OVERLAP_F_B]" in message


def test_two_members_of_overlaps_that_wait_for_each_other_are_a_deadlock():
    orders = [["(0F0;0F1)OVERLAP_F_B", "0B0", "0B1"], ["(1F0;1F1)OVERLAP_F_B", "1B0", "1B1"]]
    Schedule(orders)
    orders = [["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"], ["1F0", "(1F1;1B0)OVERLAP_F_B", "1B1"]]
    refuse(orders, "2 ranks wait for each other")


def test_no_actions_at_all_are_refused():
    refuse([], "there are no actions")
    refuse([[], []], "there are no actions", Placement.linear(2))


def test_wrong_cells_are_refused():
    refuse([["0F0", "1F0junk"]], "'1F0junk' is not an action")
    refuse(["0F0 0B0"], "must be a sequence of cells, not the text '0F0 0B0'")
    refuse("0F0", "use Schedule.from_text")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201])
def test_names_that_would_not_print_are_refused(name):
    refuse([["0F0"]], "it must be 1 to 200 printable characters", name=name)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_schedules_that_can_run_are_accepted(random_schedule, seed):
    one = random_schedule(seed)
    place = np.argsort(one.topological_order)
    found = one.predecessors
    assert sorted(one.topological_order.tolist()) == list(range(one.table.num_cells))
    assert (place[found.needed] < place[found.cell]).all()
    same_rank = np.diff(one.table.cell_ranks) == 0
    assert (np.diff(place)[same_rank] > 0).all()


def can_run(orders, one, all_prerequisites):
    """Run the orders as far as they go."""
    done, at = set(), [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                members = order[at[rank]].members or (order[at[rank]],)
                needs = [need for m in members for need in all_prerequisites(m, one.placement)]
                if not all(need & done for need in needs):
                    break
                done.update(members)
                at[rank] += 1
                moved = True
    return at == [len(order) for order in orders]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=120, deadline=None)
def test_a_swap_of_two_cells_is_accepted_exactly_when_it_can_run(
    random_schedule, all_prerequisites, seed, a, b
):
    one = random_schedule(seed)
    orders = [list(order) for order in one.orders]
    order = orders[a % len(orders)]
    if len(order) < 2:
        return
    j, k = a % len(order), b % len(order)
    order[j], order[k] = order[k], order[j]
    try:
        Schedule(orders, one.placement)
        accepted = True
    except PipelabError as error:
        accepted = False
        assert "never comes before it" in str(error)
    assert accepted == can_run(orders, one, all_prerequisites)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_schedule_without_one_of_its_cells_is_refused_unless_it_was_an_update(
    random_schedule, seed, choice
):
    one = random_schedule(seed)
    orders = [list(order) for order in one.orders]
    rank = choice % len(orders)
    if not orders[rank] or one.num_stages == one.placement.chains:
        return  # a single stage without its last micro-batch is a shorter schedule
    removed = orders[rank].pop(choice % len(orders[rank]))
    if all(member.kind == "U" for member in removed.members or (removed,)):
        Schedule(orders, one.placement)
    elif any(orders):
        with pytest.raises(PipelabError):
            Schedule(orders, one.placement)


def test_an_error_in_a_large_schedule_is_found_and_shown_shortly():
    orders = [list(order) for order in schedule("1f1b", num_ranks=16, num_microbatches=256).orders]
    orders[7][100], orders[7][300] = orders[7][300], orders[7][100]
    with pytest.raises(PipelabError) as caught:
        Schedule(orders)
    assert len(str(caught.value)) < 1500 and "[" in str(caught.value)
    assert isinstance(orders[7][100], Action)
