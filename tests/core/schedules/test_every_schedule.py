"""Laws that hold for every name in SCHEDULES, checked by counting and by a slow simulator that shares no code.

Whatever a family adds is under these laws at once. Sizes that a rule refuses are replaced by those that its message
names, so that a message which names sizes that do not work fails here too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from itertools import product

import pytest

from pipelab.core.actions import Action, Kind
from pipelab.core.costs import Costs, Links
from pipelab.core.lower_bound import lower_bound
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

SMALL = tuple(product((1, 2, 3, 4), (1, 2, 3, 5, 8)))
SIZES = (*SMALL, (2, 4), (4, 12), (5, 4), (6, 12), (6, 13), (8, 17))
FORWARD_ONLY = {"forward-only"}


Sizes = tuple[int, int, int]


@cache
def made(name: str, p: int, m: int, v: int) -> tuple[Schedule, Sizes]:
    """The schedule at these sizes, or at those that its refusal names; and which."""
    sizes = {"num_ranks": p, "num_microbatches": m, "stages_per_rank": v}
    try:
        return schedule(name, **sizes), (p, m, v)
    except PipelabError as refused:
        named = re.findall(r"(num_ranks|num_microbatches|stages_per_rank)=(\d+)", str(refused))
        assert named, f"{name} refuses {sizes} without naming sizes that work: {refused}"
        sizes |= {key: int(value) for key, value in named}
        return schedule(name, **sizes), tuple(sizes.values())


def make(name: str, p: int, m: int, v: int) -> Schedule:
    return made(name, p, m, v)[0]


def chunks(name: str) -> tuple[int, ...]:
    least, most = SCHEDULES[name].stages_per_rank
    return tuple(v for v in range(least, least + 3) if most is None or v <= most)


def every_made(sizes: tuple[tuple[int, int], ...], name: str) -> list[tuple[Schedule, Sizes]]:
    return list(
        {pair[1]: pair for p, m in sizes for v in chunks(name) for pair in [made(name, p, m, v)]}.values()
    )


def every(sizes: tuple[tuple[int, int], ...], name: str) -> list[Schedule]:
    return [one for one, _ in every_made(sizes, name)]


def actions(one: Schedule, rank: int) -> list[Action]:
    """Plain actions in the order in which memory sees them: in an overlap the forward comes first."""
    cells = [
        sorted(cell.members or (cell,), key=lambda action: action.kind is not Kind.F)
        for cell in one.orders[rank]
    ]
    return [action for cell in cells for action in cell]


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_stage_runs_F_alone_or_with_B_or_with_I_and_W_once_a_micro_batch(name):
    for one in every(SIZES, name):
        kinds: dict[tuple[int, int], list[str]] = {}
        for rank in range(one.num_ranks):
            for action in actions(one, rank):
                assert one.placement.ranks[action.stage] == rank
                kinds.setdefault((action.stage, action.microbatch), []).append(action.kind)
        total, place = one.num_microbatches, one.placement
        pairs = {
            (s, i)
            for s, i in product(range(one.num_stages), range(total))
            if place.chain_of(i, total) == place.chain_of_stage(s)
        }
        assert set(kinds) == pairs
        allowed = {"F"} if name in FORWARD_ONLY else {"FB", "FIW"}
        for found in kinds.values():
            assert "".join(kind for kind in found if kind != "U") in allowed  # also in this order
        updates = Counter(stage for (stage, _), found in kinds.items() for kind in found if kind == "U")
        assert set(updates.values()) <= {one.minibatches}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_sizes_are_those_asked_for(name):
    for one, (p, m, per_rank) in every_made(SIZES, name):
        v, chains = one.stages_per_rank, one.placement.chains
        assert (one.name, one.num_ranks, v) == (name, p, per_rank * chains)
        assert one.num_microbatches in (m, m * one.minibatches, m * one.slices)
        assert one.num_stages == p * v
        assert one.num_model_stages * chains == one.num_stages
        assert Counter(one.placement.ranks) == dict.fromkeys(range(p), v)


@pytest.mark.parametrize("name", SCHEDULES)
def test_peaks_are_those_of_counting_along_the_orders(name):
    for one in every(SIZES, name):
        for rank, peak in enumerate(one.peak_in_flight):
            held = most = 0
            for action in actions(one, rank):
                held += (action.kind is Kind.F) - (action.kind in (Kind.B, Kind.W))
                most = max(most, held)
                held *= one.has_backward
            assert peak == most and held == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_action_comes_before_what_it_needs_when_one_rank_at_a_time_runs_on(name, all_prerequisites):
    """A third way to see that no ranks wait for each other in a circle."""
    for one in every(((2, 3), (3, 5), (4, 8)), name):
        orders, done = [list(order) for order in one.orders], set()
        while any(orders):
            before = len(done)
            for order in orders:
                while order:
                    members = order[0].members or (order[0],)
                    wanted = [need for member in members for need in all_prerequisites(member, one.placement)]
                    if not all(need & done for need in wanted):
                        break
                    done.update(members)
                    del order[0]
            assert len(done) > before


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_simulation_equals_the_slow_one_under_random_costs(name, random_costs, slow_simulation):
    for seed, one in enumerate(every(((1, 2), (2, 1), (2, 4), (3, 5), (4, 8)), name)):
        costs = random_costs(seed, one)
        slow, trace = slow_simulation(one, costs), simulate(one, costs)
        found = zip(one.table.actions(), trace.start.tolist(), trace.end.tolist(), strict=False)
        assert {action: pytest.approx(times, abs=1e-9) for action, *times in found} == {
            action: list(times) for action, times in slow.items()
        }


def some_costs(one: Schedule, seed: int, latency: float = 0.0) -> Costs:
    rng = random.Random(seed)
    F, I, W = ([rng.choice((0.5, 1, 2, 3)) for _ in range(one.num_model_stages)] for _ in "FIW")  # noqa: E741
    return Costs(F, I, W, links=Links(latency))


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_makespan_is_below_what_must_be_done(name):
    """The longest way of one micro-batch, the work of one rank, and the bound of the library."""
    for seed, one in enumerate(every(SIZES, name)):
        costs = some_costs(one, seed)
        trace = simulate(one, costs)
        stages = range(one.num_model_stages)
        way = sum(costs.seconds(Kind.F, s) for s in stages)
        if one.has_backward:
            split = any(action.kind is Kind.I for order in one.orders for action in order)
            way += sum(costs.seconds(Kind.I if split else Kind.B, s) for s in stages)
        bound = lower_bound(one, trace.end - trace.start)
        assert trace.makespan >= max(way, *trace.report().busy) - 1e-9
        assert trace.makespan >= bound - 1e-9
        assert bound >= max(trace.report().busy) - 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
def test_latency_never_helps_and_seconds_have_no_scale(name):
    for seed, one in enumerate(every(SIZES, name)):
        spans = [simulate(one, some_costs(one, seed, c)).makespan for c in (0.0, 0.25, 1.0, 4.0)]
        assert spans == sorted(spans)
        costs = some_costs(one, seed, 0.25)
        double = Costs(
            *(tuple(2 * x for x in part) for part in (costs.forward, costs.input_grad, costs.weight_grad)),
            links=Links(0.5),
        )
        assert simulate(one, double).makespan == 2 * spans[1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_text_and_dict_bring_the_same_schedule_back(name):
    for one in every(SIZES, name):
        assert Schedule.from_text(one.to_text()) == one
        assert Schedule.from_dict(one.to_dict()) == one


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_sizes_give_the_same_table(name):
    for p, m in ((2, 4), (4, 8), (6, 13)):
        one = make(name, p, m, chunks(name)[0])
        made.cache_clear()
        assert make(name, p, m, chunks(name)[0]) == one


def some_terms(rng: random.Random) -> dict[str, float]:
    """Seconds as closed forms take them; often F = I or F = W, often without latency."""
    terms = {key: rng.choice((0, 0.5, 1, 1, 2, 3, 5)) for key in "FIW"}
    terms["I"] = rng.choice((terms["F"], terms["I"]))
    terms["W"] = rng.choice((terms["F"], terms["W"]))
    F, B = terms["F"], terms["I"] + terms["W"]
    return terms | {
        "c": rng.choice((0, 0, 0.125, 0.5, 2)),
        "overlap": rng.choice((F + B, F / 2 + B, max(F, B))),
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_where_its_assumptions_hold_the_closed_form_is_what_the_simulation_finds(name):
    form = SCHEDULES[name].form
    if form is None:
        return
    rng, unit = random.Random(name), {"F": 1, "I": 1, "W": 1, "c": 0, "overlap": 3}
    held = 0
    for (one, sizes), terms in product(
        every_made(SIZES, name), (unit, *(some_terms(rng) for _ in range(12)))
    ):
        if form.holds(*sizes, **terms):
            continue
        held += 1
        F, I, W, c, overlap = ((seconds,) * one.num_model_stages for seconds in terms.values())  # noqa: E741
        found = simulate(one, Costs(F, I, W, overlap=overlap, links=Links(c[0]))).report()
        assert max(found.bubble_time) == pytest.approx(form.bubble_time(*sizes, **terms), abs=1e-9)
        assert found.makespan == pytest.approx(form.makespan(*sizes, **terms), abs=1e-9)
        assert found.peak_in_flight == form.peak_in_flight(*sizes)
    assert held >= 10


@pytest.mark.parametrize("name", SCHEDULES)
def test_planted_errors_are_refused(name):
    """A lost action, one that is there twice, one on the wrong rank, one before what it needs."""
    one, rng = make(name, 4, 8, chunks(name)[0]), random.Random(name)
    lines = [[str(cell) for cell in order] for order in one.orders]

    def refused(changed: list[list[str]]) -> bool:
        try:
            Schedule(changed, one.placement, minibatches=one.minibatches, slices=one.slices)
        except PipelabError:
            return True
        return False

    assert not refused(lines)
    for _ in range(12):
        rank = rng.randrange(one.num_ranks)
        at = rng.randrange(len(lines[rank]))
        cell, other = lines[rank][at], lines[(rank + 1) % one.num_ranks]
        without = [line[:at] + line[at + 1 :] if r == rank else line for r, line in enumerate(lines)]
        assert refused(without) or "U" in cell  # a table may update at any time
        assert refused([[*line, cell] if r == rank else line for r, line in enumerate(lines)])
        moved = [[*line, cell] if line is other else without[r] for r, line in enumerate(lines)]
        assert refused(moved)
    for rank, order in enumerate(one.orders if one.has_backward else ()):
        last = str(order[-1])
        first = [[last, *line[:-1]] if r == rank else line for r, line in enumerate(lines)]
        assert refused(first)


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_says_what_it_is(name):
    info = SCHEDULES[name]
    assert info.name == name and info.family and info.formulas and info.description.endswith(".")
    assert name in str(SCHEDULES)
    if info.form is not None:
        assert info.form.assumptions
