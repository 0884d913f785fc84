"""Schedules from rules: the textbook's orders from one line each, caps that hold, and never a dead end."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from pipelab.core.actions import Action, Kind
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.list_schedule import PRIORITIES, list_schedule
from pipelab.core.memory import peaks
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 7), (1, 2, 3, 5, 8)))
PLACES = {
    "linear": Placement.linear(3),
    "looped": Placement.looped(2, 3),
    "V": Placement.v(3),
    "wave": Placement.wave(2, 4),
    "two chains": Placement.bidirectional(4),
    "ensemble": Placement.ensemble(2, 2),
    "branches": Placement((0, 1, 0, 1), edges=((0, 1), (0, 2), (1, 3), (2, 3))),
    "any": Placement((1, 0, 2, 0, 1, 1)),
}


def least_cap(placement: Placement) -> list[int]:
    """What one micro-batch needs on each rank."""
    return [
        max(
            sum(
                placement.ranks[s] == rank and placement.chain_of_stage(s) == chain
                for s in range(placement.num_stages)
            )
            for chain in range(placement.chains)
        )
        for rank in range(placement.num_ranks)
    ]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_backwards_first_under_the_cap_p_minus_r_is_1f1b(p, m):
    rule = list_schedule(Placement.linear(p), num_microbatches=m, max_in_flight=range(p, 0, -1))
    assert rule.orders == schedule("1f1b", num_ranks=p, num_microbatches=m).orders


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_forwards_first_is_gpipe(p, m):
    rule = list_schedule(Placement.linear(p), num_microbatches=m, priority="forward-first")
    assert rule.orders == schedule("gpipe", num_ranks=p, num_microbatches=m).orders


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_one_at_a_time_is_naive(p, m):
    rule = list_schedule(Placement.linear(p), num_microbatches=m, max_in_flight=1)
    times = simulate(rule, Costs.uniform(p))
    assert rule.peak_in_flight == (1,) * p
    assert times.makespan <= m * p * 3


@pytest.mark.parametrize("seed", range(8))
def test_tenths_give_the_same_order_as_whole_numbers(seed):
    rng = random.Random(seed)
    whole = [[rng.randint(1, 4) for _ in range(3)] for _ in range(3)]
    orders = [
        list_schedule(
            Placement.linear(3),
            num_microbatches=8,
            split_backward=True,
            max_in_flight=4,
            costs=Costs(*(tuple(x * scale for x in column) for column in whole)),
        ).orders
        for scale in (1.0, 0.1)
    ]
    assert orders[0] == orders[1]


def test_a_rule_may_be_a_function_of_the_action():
    seen: list[Action] = []

    def mine(action: Action) -> tuple[bool, int]:
        seen.append(action)
        return action.kind is not Kind.F, action.microbatch

    rule = list_schedule(Placement.linear(3), num_microbatches=4, priority=mine)
    assert rule.orders == schedule("gpipe", num_ranks=3, num_microbatches=4).orders
    assert len(seen) == len(set(seen)) == 2 * 3 * 4


def test_a_function_that_prefers_the_last_micro_batch_gets_it():
    rule = list_schedule(Placement.linear(1), num_microbatches=3, priority=lambda a: -a.microbatch)
    assert " ".join(map(str, rule.orders[0])) == "0F2 0B2 0F1 0B1 0F0 0B0"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("priority", [*PRIORITIES, "random"])
@pytest.mark.parametrize("split", (False, True))
def test_every_cap_with_room_for_one_micro_batch_works_and_holds(place, priority, split):
    placement = PLACES[place]
    least = least_cap(placement)
    for extra, m, seed in product((0, 1, 3), (2, 5), (0, 1)):
        rng = random.Random(seed)
        keys: dict[Action, float] = {}
        rule = (lambda a: keys.setdefault(a, rng.random())) if priority == "random" else priority  # noqa: B023
        found = list_schedule(
            placement,
            num_microbatches=m,
            priority=rule,
            split_backward=split,
            max_in_flight=[cap + extra for cap in least],
            patience=float(seed),
        )
        assert all(peak <= cap + extra for peak, cap in zip(found.peak_in_flight, least, strict=True))
        assert found.table.num_cells == m * (3 if split else 2) * placement.num_stages // placement.chains


@pytest.mark.parametrize("place", PLACES)
def test_a_cap_without_room_for_one_micro_batch_says_which_would_do(place):
    least = least_cap(PLACES[place])
    rank = least.index(max(least))
    given = max(least) - 1
    first = next(r for r, cap in enumerate(least) if given < cap)
    message = (
        f"max_in_flight is {given} on rank {first}, which needs at least {least[first]} in flight for one "
        f"micro-batch. max_in_flight={least[rank]} would do"
    )
    with pytest.raises(PipelabError, match=message):
        list_schedule(PLACES[place], num_microbatches=4, max_in_flight=given)


def bytes_of(stages: int, seed: int) -> Costs:
    rng = random.Random(seed)
    held = [tuple(float(rng.randint(1, 9)) for _ in range(stages)) for _ in range(3)]
    return Costs((1.0,) * stages, (1.0,) * stages, (1.0,) * stages, bytes=StageBytes(*held))


@pytest.mark.parametrize("place", PLACES)
def test_the_least_bytes_work_and_one_less_is_refused_with_them(place):
    placement = PLACES[place]
    for seed in range(4):
        costs = bytes_of(placement.num_model_stages, seed)
        with pytest.raises(PipelabError, match=r"max_bytes=.* would do for every rank") as refused:
            list_schedule(placement, num_microbatches=4, costs=costs, max_bytes=0)
        least = float(str(refused.value).split("max_bytes=")[1].split()[0].replace(",", ""))
        for cap in (least, least + 3, least + 20):
            found = list_schedule(
                placement, num_microbatches=4, costs=costs, max_bytes=cap, split_backward=True
            )
            assert peaks(found, costs.bytes).max() <= cap
        with pytest.raises(PipelabError, match="max_bytes"):
            list_schedule(placement, num_microbatches=4, costs=costs, max_bytes=least - 1)


def test_costs_and_links_decide_who_is_free():
    line, uneven = Placement.linear(2), Costs((5.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    even = list_schedule(line, num_microbatches=3)
    slow = list_schedule(line, num_microbatches=3, costs=uneven)
    assert " ".join(map(str, even.orders[0])) == "0F0 0F1 0F2 0B0 0B1 0B2"
    assert " ".join(map(str, slow.orders[0])) == "0F0 0F1 0B0 0F2 0B1 0B2"
    far = list_schedule(line, num_microbatches=6, costs=Costs.uniform(2, latency=4))
    assert " ".join(map(str, far.orders[0])) == "0F0 0F1 0F2 0F3 0F4 0F5 0B0 0B1 0B2 0B3 0B4 0B5"
    one_way = Costs((1, 1), (1, 1), (1, 1), links=Links(((0, 4), (0, 0))))
    assert simulate(list_schedule(line, num_microbatches=3, costs=one_way), one_way).makespan == 1 + 4 + 9 + 2


def test_a_patient_rank_waits_for_what_is_more_urgent():
    def weights_first(action: Action) -> tuple[bool, bool, int]:
        return action.kind is Kind.W, action.kind is Kind.F, action.microbatch

    costs = Costs((1.0, 0.5), (1.0, 1.5), (3.0, 3.0))

    def order(patience: float) -> Schedule:
        return list_schedule(
            Placement.linear(2),
            num_microbatches=2,
            priority=weights_first,
            split_backward=True,
            costs=costs,
            patience=patience,
        )

    hasty, patient = order(0), order(1)
    assert " ".join(map(str, hasty.orders[0])) == "0F0 0F1 0I0 0W0 0I1 0W1"
    assert " ".join(map(str, patient.orders[0])) == "0F0 0F1 0I0 0I1 0W0 0W1"


def test_the_same_arguments_give_the_same_order():
    one, other = (
        list_schedule(Placement.v(3), num_microbatches=7, max_in_flight=4, split_backward=True, patience=0.5)
        for _ in range(2)
    )
    assert one == other and one.name == "list"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"priority": "backwards-first"}, PipelabError, "did you mean 'backward-first'"),
        ({"num_microbatches": 0}, PipelabError, "num_microbatches is 0; it must be at least 1"),
        ({"num_microbatches": 2**30}, PipelabError, "cells; the limit is"),
        ({"max_in_flight": (1, 2, 3)}, PipelabError, "max_in_flight has 3 numbers for 2 ranks"),
        ({"max_in_flight": 1.5}, TypeError, "max_in_flight must be an integer, not 1.5"),
        ({"max_in_flight": "ab"}, TypeError, "max_in_flight must be a number, or one a rank"),
        ({"max_bytes": 5}, PipelabError, "max_bytes needs costs with bytes"),
        ({"costs": Costs.uniform(3)}, PipelabError, "costs are for 3 stages, but the placement has 2"),
        ({"costs": 3}, TypeError, "costs must be Costs, not int"),
        ({"patience": -1}, PipelabError, "patience is -1"),
        (
            {"costs": Costs((1, 1), (1, 1), (1, 1), links=Links(((0,),)))},
            PipelabError,
            "links are for 1 ranks",
        ),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        list_schedule(Placement.linear(2), **{"num_microbatches": 4, **arguments})


def test_a_placement_is_a_placement():
    with pytest.raises(TypeError, match=r"placement must be a Placement, such as .*linear.4., not int"):
        list_schedule(4, num_microbatches=4)


def test_two_chains_need_two_micro_batches():
    with pytest.raises(PipelabError, match="at least 2, one for each chain"):
        list_schedule(Placement.bidirectional(2), num_microbatches=1)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            lambda a: None,
            "priority returned None for 0F1 and None for 0F0, .* must return a number for every",
        ),
        (lambda a: "x" if str(a) == "1B1" else a.microbatch, "'x' for 1B1"),
        (lambda a: np.zeros(2), r"array\(\[0., 0.\]\) for 0F0, which cannot be compared"),
    ],
)
def test_a_rule_whose_keys_cannot_be_compared_is_refused_with_them(rule, said):
    with pytest.raises(TypeError, match=said):
        list_schedule(Placement.linear(2), num_microbatches=2, priority=rule)


def test_an_error_within_a_rule_keeps_its_type_and_names_the_action():
    with pytest.raises(KeyError) as found:
        list_schedule(Placement.linear(2), num_microbatches=2, priority=lambda a: {"0F0": 1}[str(a)])
    assert "for action 0F1" in found.value.__notes__[0]


def test_the_help_names_every_rule():
    assert all(f'"{name}"' in list_schedule.__doc__ for name in PRIORITIES)
