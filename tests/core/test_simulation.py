"""Simulation: against a slow one that shares no code, and against what one can see by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core import recurrence
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate, simulate_many
from pipelab.errors import PipelabError

TWO = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])


def times(one, costs):
    trace = simulate(one, costs)
    return dict(
        zip(one.table.texts(), zip(trace.start.tolist(), trace.end.tolist(), strict=True), strict=True)
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_times_agree_with_the_slow_simulator(random_schedule, random_costs, slow_simulation, seed, other):
    one = random_schedule(seed)
    costs = random_costs(other, one)
    trace, wanted = simulate(one, costs), slow_simulation(one, costs)
    for cell, action in enumerate(one.table.actions()):
        assert (trace.start[cell], trace.end[cell]) == wanted[action], action


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_many_costs_at_once_give_what_each_gives_alone(random_schedule, random_costs, seed):
    one = random_schedule(seed)
    many = [random_costs(seed + k, one) for k in range(7)]
    assert simulate_many(one, many).tolist() == [simulate(one, costs).end.max() for costs in many]


def test_many_costs_are_cut_into_pieces_that_fit(monkeypatch):
    costs = [Costs.uniform(2, forward=k) for k in range(10)]
    wanted = simulate_many(TWO, costs)
    monkeypatch.setattr(recurrence, "_MANY", 3 * 8)
    assert simulate_many(TWO, iter(costs)).tolist() == wanted.tolist()


def test_no_costs_at_all_give_no_makespans():
    assert simulate_many(TWO, []).shape == (0,)


def test_a_transfer_takes_latency_and_bytes_over_bandwidth_in_both_directions():
    held = StageBytes((0, 0), (0, 0), (100, 7777))
    costs = Costs.uniform(2)
    costs = Costs(costs.forward, costs.input_grad, costs.weight_grad, bytes=held, links=Links(0.5, 50))
    found = times(TWO, costs)
    assert found["1F0"] == (1 + 0.5 + 2, 4.5)  # the output of stage 0
    assert found["0B0"][0] == found["1B0"][1] + 0.5 + 2  # its gradient is as large


def test_links_may_differ_by_pair_and_direction():
    links = Links(((0, 1), (10, 0)))
    found = times(TWO, Costs((1, 1), (1, 1), (1, 1), links=links))
    assert found["1F0"][0] == 2 and found["0B0"][0] == found["1B0"][1] + 10


def test_stages_of_one_rank_exchange_for_free():
    one = Schedule([["0F0", "1F0", "1B0", "0B0"]])
    assert simulate(one, Costs.uniform(2, latency=100)).makespan == 6


def test_the_backward_costs_its_own_time_or_that_of_its_halves():
    one = Schedule([["0F0", "0B0"]])
    assert simulate(one, Costs((1,), (2,), (4,))).makespan == 7
    assert simulate(one, Costs((1,), (2,), (4,), backward=(5,))).makespan == 6


def test_an_update_costs_nothing_unless_said():
    one = Schedule([["0F0", "0B0", "0U0"]])
    assert simulate(one, Costs.uniform(1)).makespan == 3
    assert simulate(one, Costs((1,), (1,), (1,), update=(4,))).makespan == 7


def test_an_overlap_costs_its_own_time_or_the_sum_of_its_members():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]])
    assert simulate(one, Costs.uniform(1)).makespan == 1 + 3 + 2
    assert simulate(one, Costs((1,), (1,), (1,), overlap=(2.5,))).makespan == 1 + 2.5 + 2


def test_replicas_cost_what_their_original_costs():
    both = Placement((0, 1, 1, 0), chains=2, tied={2: 0, 3: 1})
    one = Schedule([["0F0", "3F1"], ["2F1", "1F0"]], both)
    found = times(one, Costs((1, 10), (0, 0), (0, 0)))
    assert found == {"0F0": (0, 1), "3F1": (1, 11), "2F1": (0, 1), "1F0": (1, 11)}


def test_costs_for_another_number_of_stages_are_refused():
    with pytest.raises(
        PipelabError, match=r"custom has 2 model stages, but the costs are for 3.*num_model_stages = 2"
    ):
        simulate(TWO, Costs.uniform(3))
    with pytest.raises(PipelabError, match="costs are for 1"):
        simulate_many(TWO, [Costs.uniform(2), Costs.uniform(1)])


def test_links_for_another_number_of_ranks_are_refused():
    links = Links(tuple((0.0,) * 3 for _ in range(3)))
    with pytest.raises(PipelabError, match="custom has 2 ranks, but links are for 3"):
        simulate(TWO, Costs((1, 1), (1, 1), (1, 1), links=links))


def test_things_that_are_no_schedule_or_no_costs_are_type_errors():
    with pytest.raises(TypeError, match=r"takes a Schedule and Costs, in this order, not str"):
        simulate("1f1b", Costs.uniform(2))
    with pytest.raises(TypeError, match=r"in this order, not Schedule and float"):
        simulate(TWO, 1.0)


@pytest.mark.parametrize("many", [Costs.uniform(2), 3, "costs", None])
def test_many_costs_are_a_list(many):
    said = rf"simulate_many\(\) takes a Schedule and a list of Costs.*{type(many).__name__}\. For one Costs"
    with pytest.raises(TypeError, match=said):
        simulate_many(TWO, many)
    with pytest.raises(TypeError, match=r"simulate_many\(\) takes a Schedule"):
        simulate_many(Costs.uniform(2), [])
    with pytest.raises(
        TypeError, match=r"simulate_many\(\) takes a Schedule and Costs, .* not Schedule and int"
    ):
        simulate_many(TWO, [3])


def test_free_actions_take_no_time():
    assert simulate(TWO, Costs.uniform(2, 0, 0, 0)).makespan == 0


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved-1f1b"])
def test_costs_scale_times(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    small, large = simulate(one, Costs.uniform(4)), simulate(one, Costs.uniform(4, 8, 8, 8))
    assert np.array_equal(large.start, 8 * small.start)


def test_a_prediction_does_not_depend_on_earlier_ones():
    one = schedule("1f1b", num_ranks=4, num_microbatches=8)
    first = simulate(one, Costs.uniform(4))
    simulate(one, Costs.uniform(4, latency=3))
    assert simulate(one, Costs.uniform(4)) == first
