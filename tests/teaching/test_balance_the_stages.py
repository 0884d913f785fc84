from __future__ import annotations

import itertools

import pytest

import pipelab as pp
from pipelab.teaching.balance_the_stages import (
    ALL_BUT_ONE,
    EQUAL_BYTES,
    EQUAL_COUNT,
    GPT,
    RANKS,
    UNCUT,
    best_step,
    step_milliseconds,
    unit_makespan,
)


def every_split() -> dict[tuple[str, ...], float]:
    """Milliseconds of a step under each of the splits into four stages."""
    cuts = itertools.combinations(GPT.layers[1:], RANKS - 1)
    return {each: step_milliseconds(GPT, pp.Split(each)) for each in cuts}


def test_a_step_is_as_slow_as_its_slowest_stage():
    equal = unit_makespan((1.0,) * RANKS)
    assert equal == 57
    assert unit_makespan(ALL_BUT_ONE) > 0.9 * equal
    for stage in range(RANKS):
        faster, slower = ([factor if n == stage else 1.0 for n in range(RANKS)] for factor in (0.5, 2.0))
        assert 0.95 * equal < unit_makespan(faster) < equal
        assert 1.7 * equal < unit_makespan(slower) < 1.9 * equal


def test_exactly_the_shortest_splits_are_right():
    times = every_split()
    least = min(times.values())
    for cuts, taken in times.items():
        verdict = pp.exercise("05.2").check(pp.Split(cuts))
        assert bool(verdict) is (taken <= least * 1.001), cuts
        assert f"a step {taken:.0f} ms" in verdict.message


def test_the_two_known_rules_are_what_their_names_say():
    counts = [part.stop - part.start for part in GPT.stages(EQUAL_COUNT)]
    assert max(counts) - min(counts) == 1
    assert len({sum(GPT.parameter_bytes[part]) for part in GPT.stages(EQUAL_BYTES)}) == 1


@pytest.mark.parametrize("num_ranks", range(1, UNCUT.num_layers + 1))
def test_exactly_the_least_number_of_ranks_is_right(num_ranks: int):
    shortest = best_step(UNCUT.num_layers)
    enough = best_step(num_ranks) == pytest.approx(shortest)
    fewer = num_ranks > 1 and best_step(num_ranks - 1) == pytest.approx(shortest)
    assert bool(pp.exercise("05.3").check(num_ranks)) is (enough and not fewer)
