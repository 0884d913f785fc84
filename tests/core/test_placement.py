"""Placements: ranks, chains, replicas and the stage graph."""

from __future__ import annotations

import json

import pytest

from pipelab.core.placement import MAX_STAGES, Placement
from pipelab.errors import PipelabError


def test_linear_puts_stage_s_on_rank_s():
    assert Placement.linear(4).ranks == (0, 1, 2, 3)


@pytest.mark.parametrize("p", [1, 2, 5])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_looped_puts_stage_s_on_rank_s_mod_p(p, v):
    placement = Placement.looped(p, v)
    assert placement.ranks == tuple(s % p for s in range(p * v))
    assert (placement.num_ranks, placement.num_stages, placement.num_model_stages) == (p, p * v, p * v)
    assert placement.stages_of(p - 1) == tuple(range(p - 1, p * v, p))


def test_the_edges_of_a_chain_join_neighbours():
    assert Placement.linear(3).stage_edges == ((0, 1), (1, 2))


def test_two_chains_are_not_joined():
    placement = Placement((0, 1, 1, 0), chains=2)
    assert placement.stage_edges == ((0, 1), (2, 3))
    assert [placement.chain_of_stage(s) for s in range(4)] == [0, 0, 1, 1]


def test_the_first_half_of_the_micro_batches_runs_in_chain_0():
    placement = Placement((0, 1, 1, 0), chains=2)
    assert [placement.chain_of(i, 6) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [placement.chain_of(i, 3) for i in range(3)] == [0, 0, 1]
    assert [placement.chain_of(i, 1) for i in range(1)] == [0]


def test_replicas_share_the_model_stage_of_their_original():
    placement = Placement((0, 1, 1, 0), chains=2, tied={2: 0, 3: 1})
    assert placement.tied == ((2, 0), (3, 1))
    assert [placement.original(s) for s in range(4)] == [0, 1, 0, 1]
    assert placement.model_stages == (0, 1, 0, 1) and placement.num_model_stages == 2


def test_an_ensemble_is_chains_without_ties():
    assert Placement((0, 1, 0, 1), chains=2).model_stages == (0, 1, 2, 3)


def test_ties_may_be_pairs_in_any_order():
    assert Placement((0, 1, 1, 0), 2, ((3, 1), (2, 0))) == Placement((0, 1, 1, 0), 2, {2: 0, 3: 1})


def test_edges_that_say_what_the_chains_say_are_the_same_placement():
    assert Placement((0, 1, 2), edges=((1, 2), (0, 1))) == Placement.linear(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "at least one stage"),
        (((0, 2),), "Rank 1 holds no stage, though rank 2 is used. Leave no gap"),
        (((0, 10**15),), "Rank 1 holds no stage"),
        (((0, -1),), "Rank -1 is out of range"),
        (((0, 1, 2), 2), "3 stages cannot form 2 chains"),
        (((0, 1), 0), "cannot form 0 chains"),
        (((0, 1), 1, {1: 1}), "1 is a replica of 1"),
        (((0, 1, 2), 1, {1: 0, 2: 1}), "2 is a replica of 1"),
        (((0, 1, 2), 1, ((2, 0), (2, 1))), "2 is a replica of"),
        (((0, 1), 1, {5: 0}), r"tied names \(5, 0\); stage ids go from 0 to 1"),
        (((0, 1), 1, (7,)), "tied must be pairs"),
        (((0, 1), 1, (), ((0, 1), (1, 0))), "has a cycle"),
        (((0, 1), 1, (), ((1, 1),)), "has a cycle"),
        (((0, 1, 1, 0), 2, (), ((1, 2),)), r"Edge \(1, 2\) leaves its chain"),
        (((0, 1), 1, (), ((0, 9),)), r"edges names \(0, 9\)"),
        (((0,) * (MAX_STAGES + 1),), "65,537 stages are refused: the limit is 65,536"),
    ],
)
def test_an_impossible_placement_is_refused(arguments, message):
    with pytest.raises(PipelabError, match=message):
        Placement(*arguments)


def test_a_cycle_behind_a_chain_is_found():
    with pytest.raises(PipelabError, match="has a cycle"):
        Placement((0, 0, 0, 0), edges=((0, 1), (1, 2), (2, 3), (3, 2)))


def test_a_huge_loop_is_refused_at_once():
    with pytest.raises(PipelabError, match="limit"):
        Placement.looped(10**12, 1)


def test_questions_about_stages_and_ranks_that_are_not_there_are_refused():
    placement = Placement.linear(2)
    for ask in (placement.original, placement.chain_of_stage, placement.stages_of):
        with pytest.raises(PipelabError, match="is 2; there are 2, counted from 0"):
            ask(2)
    with pytest.raises(PipelabError, match="microbatch is 3; there are 3"):
        placement.chain_of(3, 3)


@pytest.mark.parametrize(
    "placement",
    [
        Placement.linear(3),
        Placement.looped(2, 2),
        Placement((0, 1, 1, 0), chains=2, tied={2: 0, 3: 1}),
        Placement((0, 0, 1), edges=((0, 2), (1, 2))),
        Placement((0, 0), edges=()),
    ],
)
def test_placements_round_trip(placement):
    assert Placement.from_dict(json.loads(json.dumps(placement.to_dict()))) == placement
    assert eval(repr(placement)) == placement
    assert len({placement, Placement.from_dict(placement.to_dict())}) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "placement.ranks is missing"),
        ({"ranks": [0], "rnks": 1}, "placement has the unknown key 'rnks'"),
        ({"ranks": 0}, "placement.ranks must be a list, not 0"),
        ({"ranks": [0.0]}, r"placement.ranks\[0\] must be an integer"),
        ({"ranks": [True]}, r"placement.ranks\[0\] must be an integer, not true or false"),
        ({"ranks": [0], "tied": [[0]]}, r"placement.tied\[0\] must be a pair"),
        ({"ranks": [0], "chains": "1"}, "placement.chains must be an integer, not text"),
        ([], "placement must be an object"),
    ],
)
def test_wrong_fields_are_named(data, message):
    with pytest.raises(PipelabError, match=message):
        Placement.from_dict(data)


@pytest.mark.parametrize(
    ("placement", "ranks"),
    [
        (Placement.wave(3, 1), (0, 1, 2)),
        (Placement.wave(2, 4), (0, 1, 1, 0, 0, 1, 1, 0)),
        (Placement.wave(2, 3), (0, 1, 1, 0, 0, 1)),
        (Placement.v(3), (0, 1, 2, 2, 1, 0)),
        (Placement.v(1), (0, 0)),
        (Placement.bidirectional(3), (0, 1, 2, 2, 1, 0)),
        (Placement.ensemble(2, 2), (0, 1, 2, 3)),
    ],
)
def test_named_placements_hold_these_stages(placement, ranks):
    assert placement.ranks == ranks


def test_a_bidirectional_placement_holds_the_model_twice():
    both = Placement.bidirectional(4)
    assert (both.num_stages, both.num_model_stages, both.chains) == (8, 4, 2)
    assert both.tied == ((4, 0), (5, 1), (6, 2), (7, 3))
    assert both.model_stages == (0, 1, 2, 3, 0, 1, 2, 3)
    assert [both.stages_of(r) for r in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]


def test_the_members_of_an_ensemble_share_nothing():
    three = Placement.ensemble(3, 2)
    assert three.stage_edges == ((0, 1), (2, 3), (4, 5))
    assert (three.num_model_stages, three.num_ranks, three.chains) == (6, 6, 3)


@pytest.mark.parametrize("make", [Placement.wave, Placement.ensemble, Placement.looped])
def test_named_placements_refuse_sizes_that_are_none(make):
    with pytest.raises(PipelabError, match="both are at least 1"):
        make(0, 2)
    with pytest.raises(PipelabError, match="limit is 65,536"):
        make(2**9, 2**9)
    with pytest.raises(TypeError, match="must be an integer"):
        make(2, 1.5)


@pytest.mark.parametrize(
    ("ranks", "chains", "tied"),
    [((0, 1), 1, {1: 0}), ((0, 1, 1, 0), 2, {2: 1, 3: 0}), ((0, 1, 1, 0), 2, {1: 0})],
)
def test_a_replica_stands_at_the_same_place_of_another_chain(ranks, chains, tied):
    with pytest.raises(PipelabError, match="a replica stands at the same place of another chain"):
        Placement(ranks, chains, tied)
