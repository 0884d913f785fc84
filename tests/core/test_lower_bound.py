"""The lower bound: no order beats it, some reach it, and it is the formula written out by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipelab.core.costs import Costs
from pipelab.core.lower_bound import chains, lower_bound
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError


def bound_of(one: Schedule, costs: Costs) -> float:
    return lower_bound(one, simulate(one, costs).durations)


@pytest.mark.parametrize("seed", range(60))
def test_no_order_is_shorter(seed, random_schedule, random_costs):
    one = random_schedule(seed)
    trace = simulate(one, random_costs(seed, one))
    assert lower_bound(one, trace.durations[: one.table.num_cells]) <= trace.makespan + 1e-9


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_formula_written_out(seed, random_schedule, all_prerequisites):
    one = random_schedule(seed)
    cells = [action for order in one.orders for action in order]
    cell_of = {member: cell for cell in cells for member in cell.members or (cell,)}
    needs = {
        cell: {
            cell_of[a]
            for member in cell.members or (cell,)
            for need in all_prerequisites(member, one.placement)
            for a in need
            if a in cell_of
        }
        for cell in cells
    }
    wanted_by = {cell: {c for c in cells if cell in needs[c]} for cell in cells}
    took = dict(zip(cells, np.random.default_rng(seed).integers(0, 5, len(cells)).tolist(), strict=True))

    @cache
    def head(cell):
        return max((head(c) + took[c] for c in needs[cell]), default=0)

    @cache
    def tail(cell):
        return max((tail(c) + took[c] for c in wanted_by[cell]), default=0)

    durations = np.array([took[c] for c in cells], dtype=float)
    before, after = chains(one, durations)
    assert before.tolist() == [head(c) for c in cells]
    assert after.tolist() == [tail(c) for c in cells]
    assert lower_bound(one, durations) == max(
        sum(took[c] for c in order) + min(map(head, order)) + min(map(tail, order)) for order in one.orders
    )


@pytest.mark.parametrize("p", (1, 2, 3, 5))
@pytest.mark.parametrize("m", (1, 2, 5, 8))
@pytest.mark.parametrize("name", ("gpipe", "1f1b", "eager-1f1b"))
def test_equal_stages_with_full_backwards_reach_it(name, p, m):
    one = schedule(name, num_ranks=p, num_microbatches=m)
    assert bound_of(one, Costs.uniform(p)) == simulate(one, Costs.uniform(p)).makespan == (m + p - 1) * 3


def test_splitting_the_backward_lowers_it_to_the_first_fill():
    whole = Schedule([["0F0", "0B0"], ["1F0", "1B0"]])
    split = Schedule([["0F0", "0I0", "0W0"], ["1F0", "1I0", "1W0"]])
    assert (bound_of(whole, Costs.uniform(2)), bound_of(split, Costs.uniform(2))) == (6, 4)


def test_links_do_not_count():
    one = schedule("1f1b", num_ranks=3, num_microbatches=3)
    assert bound_of(one, Costs.uniform(3, latency=10)) == bound_of(one, Costs.uniform(3))


def test_a_stage_on_the_same_rank_makes_no_detour():
    orders = [["0F0", "3F0", "3B0", "0B0"], ["1F0", "2F0", "2B0", "1B0"]]
    one = Schedule(orders, Placement((0, 1, 1, 0)))
    assert (
        bound_of(one, Costs.uniform(4)) == 1 + 2 + 4 + 2
    )  # rank 1: F of stage 0, its own work, B of stage 0


def test_durations_of_another_shape_are_refused():
    one = schedule("1f1b", num_ranks=2, num_microbatches=2)
    with pytest.raises(
        PipelabError, match=r"durations must have shape \(8,\), one a cell of 1f1b; .* \(3,\)"
    ):
        lower_bound(one, np.zeros(3))


def test_what_a_rank_does_after_its_cells_is_part_of_every_tail():
    """By hand, F = 1 and B = 2 on two ranks: rank 1 works from 1 to 4, then rank 0 for 2 and goes on."""
    one = Schedule([["0F0", "0B0"], ["1F0", "1B0"]])
    durations = np.array([1.0, 2, 1, 2])
    assert [lower_bound(one, durations, np.array(after)) for after in ([0.0, 0], [5.0, 0], [0.0, 5])] == [
        6,
        11,
        9,
    ]
