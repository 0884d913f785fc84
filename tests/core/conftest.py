"""Random schedules, and a slow simulator that shares no code with the fast one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipelab.core.actions import Action, Kind
from pipelab.core.costs import Costs
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule


def prerequisites(action: Action, placement: Placement) -> list[set[Action]]:
    """The table of the docstring of `dependencies`, written out once more: one of each set must have run."""
    s, i = action.stage, action.microbatch

    def forward(stage: int) -> set[Action]:
        return {Action(Kind.F, stage, i)}

    def backward(stage: int) -> set[Action]:
        return {Action(Kind.B, stage, i), Action(Kind.I, stage, i)}

    edges = placement.stage_edges
    match action.kind:
        case Kind.F:
            return [forward(a) for a, b in edges if b == s]
        case Kind.B | Kind.I:
            return [forward(s)] + [backward(b) for a, b in edges if a == s]
        case Kind.W:
            return [{Action(Kind.I, s, i)}]
        case Kind.U:
            return [{Action(Kind.B, s, i), Action(Kind.W, s, i)}]
    raise AssertionError(action)


def random_placement(rng: random.Random) -> Placement:
    p, v = rng.randint(1, 4), rng.randint(1, 3)
    shape = rng.choice(["looped", "folded", "any", "two chains", "branches"])
    if shape == "looped":
        return Placement.looped(p, v)
    if shape == "folded":
        return Placement(tuple(range(p)) + tuple(reversed(range(p))))
    if shape == "two chains":
        return Placement(tuple(range(p)) + tuple(reversed(range(p))), 2, {p + s: s for s in range(p)})
    ranks = list(range(p)) + [rng.randrange(p) for _ in range(p * (v - 1))]
    rng.shuffle(ranks)
    if shape == "any":
        return Placement(tuple(ranks))
    pairs = [(a, b) for b in range(len(ranks)) for a in range(b) if rng.random() < 0.4]
    return Placement(tuple(ranks), edges=tuple(pairs))


def make_random_schedule(seed: int) -> Schedule:
    """Repeat: run some action whose needs are met. Sometimes two of one rank at once, as an overlap."""
    rng = random.Random(seed)
    placement, m = random_placement(rng), rng.randint(1, 5)
    backward, overlap, update = rng.random() < 0.8, rng.random() < 0.4, rng.random() < 0.3
    left: list[Action] = []
    for stage in range(placement.num_stages):
        for i in range(m):
            if placement.chain_of(i, m) != placement.chain_of_stage(stage):
                continue
            kinds = [Kind.F]
            if backward:
                kinds += [Kind.B] if rng.random() < 0.5 else [Kind.I, Kind.W]
                kinds += [Kind.U] if update and rng.random() < 0.3 else []
            left += [Action(kind, stage, i) for kind in kinds]
    done: set[Action] = set()
    orders: list[list[Action]] = [[] for _ in range(placement.num_ranks)]
    while left:
        ready = [a for a in left if all(need & done for need in prerequisites(a, placement))]
        chosen = [rng.choice(ready)]
        rank = placement.ranks[chosen[0].stage]
        others = [a for a in ready if a != chosen[0] and placement.ranks[a.stage] == rank]
        if overlap and others and rng.random() < 0.5:
            chosen.append(rng.choice(others))
        orders[rank].append(chosen[0] if len(chosen) == 1 else Action.overlap(*chosen))
        done.update(chosen)
        left = [a for a in left if a not in done]
    return Schedule(orders, placement, name=f"random {seed}")


def make_random_costs(seed: int, schedule: Schedule) -> Costs:
    from pipelab.core.costs import Links, StageBytes

    rng = random.Random(seed)
    count, p = schedule.num_model_stages, schedule.num_ranks

    def some() -> tuple[float, ...]:
        return tuple(rng.choice([0.0, 0.5, 1.0, rng.random() * 3]) for _ in range(count))

    table = tuple(tuple(rng.choice([0.0, rng.random()]) for _ in range(p)) for _ in range(p))
    bandwidth = tuple(tuple(rng.choice([1e3, 2e3, float("inf")]) for _ in range(p)) for _ in range(p))
    held = rng.choice([None, StageBytes(some(), some(), tuple(1e3 * x for x in some()))])
    latency = rng.choice([0.0, 0.25, table])
    slow = rng.choice([1e3, float("inf"), bandwidth])  # a bandwidth needs bytes
    return Costs(
        some(),
        some(),
        some(),
        backward=rng.choice([None, some()]),
        update=rng.choice([None, some()]),
        overlap=rng.choice([None, some()]),
        bytes=held,
        links=Links(latency, float("inf") if held is None else slow),
    )


def slow_times(schedule: Schedule, costs: Costs) -> dict[Action, tuple[float, float]]:
    """Start and end of each cell, by trying again until all have run."""
    placement = schedule.placement
    end: dict[Action, float] = {}
    times: dict[Action, tuple[float, float]] = {}
    free = [0.0] * schedule.num_ranks
    at = [0] * schedule.num_ranks

    def arrival(need: set[Action], waiting: Action) -> float:
        given = next(a for a in need if a in end)
        source, target = placement.ranks[given.stage], placement.ranks[waiting.stage]
        if source == target:
            return end[given]
        sender = given.stage if given.kind is Kind.F else waiting.stage
        held = costs.bytes.outputs[placement.model_stages[sender]] if costs.bytes else 0.0
        return end[given] + costs.links.seconds(source, target, held)

    while sum(at) < sum(map(len, schedule.orders)):
        for rank, order in enumerate(schedule.orders):
            while at[rank] < len(order):
                cell = order[at[rank]]
                members = cell.members or (cell,)
                needs = [(need, member) for member in members for need in prerequisites(member, placement)]
                if not all(any(a in end for a in need) for need, _ in needs):
                    break
                start = max([free[rank]] + [arrival(need, member) for need, member in needs])
                work = [(member.kind, placement.model_stages[member.stage]) for member in members]
                if len(work) > 1 and costs.overlap is not None:
                    took = costs.overlap[work[0][1]]
                else:
                    took = sum(costs.seconds(kind, stage) for kind, stage in work)
                free[rank] = start + took
                end.update((member, free[rank]) for member in members)
                times[cell] = (start, free[rank])
                at[rank] += 1
    return times


@pytest.fixture(scope="session")
def random_schedule() -> Callable[[int], Schedule]:
    return make_random_schedule


@pytest.fixture(scope="session")
def random_costs() -> Callable[[int, Schedule], Costs]:
    return make_random_costs


@pytest.fixture(scope="session")
def slow_simulation() -> Callable[[Schedule, Costs], dict[Action, tuple[float, float]]]:
    return slow_times


@pytest.fixture(scope="session")
def all_prerequisites() -> Callable[[Action, Placement], list[set[Action]]]:
    return prerequisites
