"""Seq1F1B: the order of slices, its closed form, and what its causal edges forbid."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.theory import closed_form
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 8), (1, 2, 3, 8), (1, 2, 3, 4)))


def make(p: int, m: int, k: int) -> Schedule:
    return schedule("seq-1f1b", num_ranks=p, num_microbatches=m, num_slices=k)


def cells(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


def test_backwards_take_the_slices_of_a_micro_batch_in_reverse():
    assert cells(make(2, 2, 2)) == [
        "0F0 0F1 0F2 0B1 0F3 0B0 0B3 0B2",
        "1F0 1F1 1B1 1F2 1B0 1F3 1B3 1B2",
    ]


@pytest.mark.parametrize(("p", "m", "k"), SIZES)
def test_slices_divide_the_bubble_by_k(p, m, k):
    """F = 1 and B = 2 of a whole micro-batch, slices equal (arXiv 2406.03488)."""
    found = simulate(make(p, m, k), Costs.uniform(p, 1 / k, 1 / k, 1 / k)).report()
    assert found.makespan == pytest.approx(m * 3 + (p - 1) * 3 / k, rel=1e-12)
    assert found.peak_in_flight == tuple(min(m * k, p - 1 - r + k) for r in range(p))


@pytest.mark.parametrize(("p", "m"), list(product((1, 2, 5), (1, 4, 9))))
def test_one_slice_is_1f1b(p, m):
    assert make(p, m, 1).orders == schedule("1f1b", num_ranks=p, num_microbatches=m).orders


def test_a_slice_waits_for_the_one_before_even_if_the_order_would_allow_it():
    one = make(3, 2, 3)
    with pytest.raises(PipelabError, match="0F1 but 0F0 never comes before it"):
        one.swap("0F0", "0F1")
    with pytest.raises(PipelabError, match="2B1 but 2B2 never comes before it"):
        one.swap("2B1", "2B2")
    Schedule(one.orders, name="without edges").swap("0F0", "0F1").swap("2B4", "2B3")  # no slices: both may be


def test_slices_are_at_least_one():
    with pytest.raises(
        PipelabError, match=r"num_slices is 0; it must be at least 1\. With 1 slice it is 1f1b"
    ):
        make(2, 2, 0)
    with pytest.raises(PipelabError, match="the limit is"):
        make(2, 2, 10**12)


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 1), (3, 5), (4, 4), (4, 9)])
def test_the_closed_form_is_what_the_simulator_finds(p, m):
    form, one = closed_form("seq-1f1b"), schedule("seq-1f1b", num_ranks=p, num_microbatches=m)
    found = simulate(one, Costs.uniform(p, 2, 1, 3)).report()
    assert form.makespan(p, m, F=2, I=1, W=3) == found.makespan
    assert form.peak_in_flight(p, m) == found.peak_in_flight
    assert "num_slices=2" in form.assumptions and "c = 0" in form.holds(p, m, c=1)
