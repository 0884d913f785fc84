"""Closed forms against the simulator, over a grid of sizes, costs and latencies: exact where their assumptions hold."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate, simulate_many
from pipelab.core.theory import FORMS, Terms, closed_form
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 6), (1, 2, 3, 4, 5, 6, 8, 12)))
SECONDS = [
    dict(zip("FIW", seconds, strict=True)) | {"c": c}
    for seconds, c in product(
        ((1, 1, 1), (2, 2, 1), (2, 3, 1), (1, 3, 2), (3, 1, 1), (1, 1, 3)), (0, 1 / 16, 1 / 2, 2)
    )
]
SECONDS += [{"F": 1, "I": 1, "W": 1, "overlap": 3 * part} for part in (0.9375, 0.75, 0.5)]
SECONDS += [{"F": 1, "I": 1, "W": 1, "B": 3, "overlap": 4}]
STEPS = [name for name in FORMS if SCHEDULES[name].is_step]


@cache
def make(name: str, p: int, m: int, v: int) -> Schedule | None:
    try:
        return schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
    except PipelabError:
        return None  # sizes that this rule does not take


def costs(count: int, terms: Terms) -> Costs:
    made = Costs.uniform(count, terms.F, terms.I, terms.W, latency=terms.c)
    return replace(made, backward=(terms.B,) * count, overlap=(terms.overlap,) * count)


@cache
def simulated(name: str) -> list[tuple[tuple[int, int, int], dict[str, float], float | None]]:
    """Sizes, seconds and makespan of every case of the grid; None for sizes that are refused."""
    least, most = SCHEDULES[name].stages_per_rank
    found = []
    for p, m in SIZES:
        for v in range(max(1, least - 1), (least + 2 if most is None else most + 1) + 1):
            one = make(name, p, m, v)
            if one is None:
                found.append(((p, m, v), {}, None))
                continue
            many = [costs(one.num_model_stages, Terms.of(p, m, v, **seconds)) for seconds in SECONDS]
            spans = simulate_many(one, many).tolist()
            found += [((p, m, v), seconds, span) for seconds, span in zip(SECONDS, spans, strict=True)]
    return found


@pytest.mark.parametrize("name", STEPS)
def test_forms_are_exact_where_their_assumptions_hold(name):
    form, checked = FORMS[name], set()
    for sizes, seconds, makespan in simulated(name):
        if makespan is not None and not form.holds(*sizes, **seconds):
            assert form.makespan(*sizes, **seconds) == pytest.approx(makespan, rel=1e-12), (sizes, seconds)
            checked.add(sizes)
    assert len(checked) >= 7


@pytest.mark.parametrize("name", STEPS)
def test_every_assumption_is_needed(name):
    """For each there is a case in which it alone is broken, and the formula is wrong or the sizes are refused.

    What is wrong with a v may be said twice: 1 is below 2, and it is odd.
    """
    form = FORMS[name]
    needed = set()
    for sizes, seconds, makespan in simulated(name):
        broken = [a.words for a in form.conditions if not a.test(Terms.of(*sizes, **seconds))]
        wrong = makespan is None or form.makespan(*sizes, **seconds) != pytest.approx(makespan, rel=1e-6)
        if wrong and (len(broken) == 1 or all(re.search(r"\bv\b", words) for words in broken)):
            needed.update(broken)
    assert needed == {assumption.words for assumption in form.conditions}


@pytest.mark.parametrize("name", STEPS)
def test_idle_times_are_of_the_worst_rank_and_peaks_of_each(name):
    form, checked, least = FORMS[name], 0, SCHEDULES[name].stages_per_rank[0]
    for p, m in SIZES:
        one = make(name, p, m, least)
        for seconds in ({}, {"F": 1, "I": 1, "W": 1, "overlap": 2.5}):
            if one is None or form.holds(p, m, least, **seconds):
                continue
            found = simulate(one, costs(one.num_model_stages, Terms.of(p, m, least, **seconds))).report()
            assert form.bubble_time(p, m, least, **seconds) == pytest.approx(max(found.bubble_time))
            assert form.peak_in_flight(p, m, least) == found.peak_in_flight
            if len(set(found.bubble_time)) == 1:
                assert form.bubble_fraction(p, m, least, **seconds) == pytest.approx(found.bubble_fraction)
                assert form.bubble_ratio(p, m, least, **seconds) == pytest.approx(found.bubble_ratio)
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("name", FORMS)
def test_sizes_that_a_schedule_refuses_break_an_assumption(name):
    refused = 0
    for (p, m), v in product(SIZES, range(1, 6)):
        if make(name, p, m, v) is None:
            assert FORMS[name].holds(p, m, v), (p, m, v)
            refused += 1
    assert refused or SCHEDULES[name].stages_per_rank == (1, None)


@pytest.mark.parametrize(
    ("name", "v", "words"), [("1f1b", 3, "v = 1"), ("zb-v", 1, "v = 2"), ("hanayo", 1, "v >= 2")]
)
def test_a_number_of_stages_that_a_schedule_does_not_take_is_named(name, v, words):
    assert closed_form(name).holds(4, 8, v) == f"The formula assumes {words}; here v={v}. Simulate it."
    assert words in closed_form(name).assumptions


@pytest.mark.parametrize("name", FORMS)
def test_where_v_is_left_out_it_is_the_least_that_the_schedule_takes(name):
    form, least = FORMS[name], SCHEDULES[name].stages_per_rank[0]
    assert form.stages_per_rank == SCHEDULES[name].stages_per_rank
    assert form.makespan(4, 16) == form.makespan(4, 16, least) and form.busy(4, 16) == form.busy(4, 16, least)
    assert form.peak_in_flight(4, 16) == form.peak_in_flight(4, 16, least) and form.holds(4, 16) == ""


def test_forms_of_one_number_of_slices_or_mini_batches_say_so():
    assert "num_slices=2" in closed_form("seq-1f1b").assumptions
    assert "num_minibatches=3" in closed_form("pipedream-2bw").assumptions
    for name, option in (("seq-1f1b", "num_slices"), ("pipedream-2bw", "num_minibatches")):
        one = schedule(name, num_ranks=4, num_microbatches=8)
        made_with_it = schedule(
            name, num_ranks=4, num_microbatches=8, **{option: one.slices * one.minibatches}
        )
        assert one == made_with_it
        assert simulate(one, costs(4, Terms.of(4, 8))).makespan == closed_form(name).makespan(4, 8)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.timeout(20)
def test_forms_of_the_largest_sizes_take_no_time_and_larger_ones_are_refused(name):
    form = FORMS[name]
    for p, m in ((1, 2**22), (2, 2**22), (2**11, 2**22), (2**16, 8)):
        assert len(form.peak_in_flight(p, m)) == p and form.makespan(p, m) > 0
    for p, m in ((4, 10**9), (10**9, 8), (4, 10**400), (10**5000, 8)):
        for method in (form.makespan, form.peak_in_flight, form.holds):
            with pytest.raises(PipelabError, match=r"is too large; the limit is [\d,]+ \(2\*\*"):
                method(p, m)


@pytest.mark.parametrize("name", FORMS)
def test_rounding_breaks_no_assumption(name):
    """0.1 + 0.2 and 0.3 are the same seconds."""
    sums, decimals = {"F": 0.3, "I": 0.1 + 0.2, "W": 0.3}, {"F": 0.1 + 0.2, "I": 0.3, "W": 0.1 + 0.2}
    form = FORMS[name]
    assert form.holds(4, 16, **sums) == form.holds(4, 16, **decimals) == ""
    assert form.makespan(4, 16, **sums) == pytest.approx(form.makespan(4, 16, **decimals), rel=1e-12)
    assert form.holds(4, 16, F=0.2, B=0.3, I=0.2, W=0.1) == form.holds(4, 16, F=2, B=3, I=2, W=1).replace(
        "=2", "=0.2"
    ).replace("=1", "=0.1")


def test_every_form_is_of_a_schedule_and_says_its_assumptions():
    assert set(FORMS) == {name for name, info in SCHEDULES.items() if info.form is not None}
    for name, form in FORMS.items():
        assert closed_form(name) is form is SCHEDULES[name].form
        assert form.assumptions and SCHEDULES[name].formulas
        for assumption in form.conditions:
            assert assumption.words in form.assumptions


def test_published_numbers():
    assert closed_form("gpipe").bubble_fraction(4, 8) == 3 / 11
    assert closed_form("1f1b").bubble_ratio(4, 8) == 3 / 8
    assert closed_form("interleaved-1f1b").bubble_ratio(4, 8, 2) == 3 / 16


@pytest.mark.parametrize(
    ("name", "v", "makespans"),
    [
        ("gpipe", 1, (33, 213, 813)),
        ("1f1b", 1, (33, 213, 813)),
        ("zb-h1", 1, (27, 199, 783)),
        ("interleaved-1f1b", 2, (57, 405, 1581)),
        ("zb-v", 2, (51, 391, 1551)),
        ("dualpipev", 2, (54, 398, 1566)),
    ],
)
def test_makespans_on_which_independent_tools_agree(name, v, makespans):
    sizes = ((4, 8, v), (8, 64, v), (16, 256, v))
    assert tuple(closed_form(name).makespan(*size) for size in sizes) == makespans
    assert [closed_form(name).holds(*size) for size in sizes] == [""] * 3
    found = tuple(simulate(make(name, *size), Costs.uniform(size[0] * v)).makespan for size in sizes)
    assert found == makespans


@pytest.mark.parametrize(
    ("p", "m", "hops"), [(4, 8, 16), (4, 16, 28), (8, 16, 40), (8, 32, 68), (8, 64, 124)]
)
def test_latency_costs_1f1b_more_with_every_micro_batch(p, m, hops):
    form = closed_form("1f1b")
    assert form.makespan(p, m, c=0.5) - form.makespan(p, m) == hops * 0.5


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(PipelabError, match=r"closed form is 'gpip'; did you mean 'gpipe'\?"):
        closed_form("gpip")
