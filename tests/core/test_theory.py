"""Closed forms against the simulator, over a grid of sizes and costs."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.theory import FORMS, closed_form
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 8), (1, 2, 3, 4, 6, 8, 12), (1, 2, 3)))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("F", "B"), [(1, 2), (2, 3), (3, 1)])
def test_forms_agree_with_the_simulator(name, F, B):
    form, checked = closed_form(name), 0
    for p, m, v in SIZES:
        if v > 1 and (SCHEDULES[name].stages_per_rank[1] is not None or m % p):
            continue
        one = schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
        found = simulate(one, Costs.uniform(p * v, F, B / 2, B / 2)).report()
        assert form.makespan(p, m, v, F, B) == found.makespan
        assert form.bubble_time(p, m, v, F, B) == found.bubble_time[0]
        assert form.bubble_fraction(p, m, v, F, B) == pytest.approx(found.bubble_fraction)
        assert form.bubble_ratio(p, m, v, F, B) == pytest.approx(found.bubble_ratio)
        assert form.peak_in_flight(p, m, v) == found.peak_in_flight
        checked += 1
    assert checked >= 35


def test_every_form_is_of_a_schedule_and_says_its_paper_and_assumptions():
    assert set(FORMS) <= set(SCHEDULES)
    for name, form in FORMS.items():
        assert form.name == name and form.assumptions and form.paper == SCHEDULES[name].paper
        assert form.formulas == SCHEDULES[name].formulas


def test_published_numbers():
    assert closed_form("gpipe").bubble_fraction(4, 8) == 3 / 11
    assert closed_form("1f1b").bubble_ratio(4, 8) == 3 / 8
    assert closed_form("interleaved-1f1b").bubble_ratio(4, 8, 2) == 3 / 16


def test_sizes_for_which_a_form_does_not_hold_are_refused():
    with pytest.raises(
        PipelabError, match=r"interleaved-1f1b needs m mod p = 0, not m=6 at p=4. Simulate it"
    ):
        closed_form("interleaved-1f1b").makespan(4, 6, 2)
    with pytest.raises(PipelabError, match="p=0, m=1, v=1; all are at least 1"):
        closed_form("gpipe").bubble_time(0, 1)
    with pytest.raises(PipelabError, match=r"closed form is 'gpip'; did you mean 'gpipe'\?"):
        closed_form("gpip")
