"""PipeDream and 2BW: the order, one update a mini-batch, a bubble that is paid once."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.theory import closed_form
from pipelab.errors import PipelabError


def cells(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


def make(name: str, p: int, m: int, **options: int) -> Schedule:
    return schedule(name, num_ranks=p, num_microbatches=m, **options)


def test_pipedream_is_1f1b_with_an_update_after_each_backward():
    assert cells(make("pipedream", 2, 3)) == [
        "0F0 0F1 0B0 0U0 0F2 0B1 0U1 0B2 0U2",
        "1F0 1B0 1U0 1F1 1B1 1U1 1F2 1B2 1U2",
    ]


def test_2bw_is_1f1b_with_an_update_after_each_mini_batch():
    assert cells(make("pipedream-2bw", 2, 2, num_minibatches=2)) == [
        "0F0 0F1 0B0 0F2 0B1 0U1 0F3 0B2 0B3 0U3",
        "1F0 1B0 1F1 1B1 1U1 1F2 1B2 1F3 1B3 1U3",
    ]


@pytest.mark.parametrize(("p", "m"), list(product((1, 2, 3, 4, 8), (1, 2, 5, 8, 13))))
def test_without_its_updates_pipedream_is_1f1b(p, m):
    plain = [" ".join(c for c in line.split() if "U" not in c) for line in cells(make("pipedream", p, m))]
    assert plain == cells(make("1f1b", p, m))
    one = make("pipedream", p, m)
    assert one.minibatches == m and one.peak_in_flight == tuple(min(m, p - r) for r in range(p))


@pytest.mark.parametrize(("p", "extra", "n"), list(product((1, 2, 4), (0, 3), (1, 2, 5))))
def test_the_bubble_is_paid_once_however_many_mini_batches(p, extra, n):
    one = make("pipedream-2bw", p, p + extra, num_minibatches=n)
    report = simulate(one, Costs.uniform(p)).report()
    assert report.bubble_time == ((p - 1) * 3.0,) * p
    assert report.makespan == n * (p + extra) * 3 + (p - 1) * 3
    assert (one.minibatches, one.num_microbatches) == (n, n * (p + extra))


def test_2bw_refuses_fewer_micro_batches_than_ranks_and_says_how_many_it_takes():
    with pytest.raises(PipelabError, match="num_microbatches=4 or more, or use pipedream"):
        make("pipedream-2bw", 4, 3)
    with pytest.raises(PipelabError, match="num_minibatches is 0"):
        make("pipedream-2bw", 2, 2, num_minibatches=0)
    with pytest.raises(TypeError, match="num_minibatches must be an integer"):
        make("pipedream-2bw", 2, 2, num_minibatches="3")


def test_huge_numbers_are_refused_before_memory_is_taken():
    with pytest.raises(PipelabError, match="the limit is"):
        make("pipedream-2bw", 4, 8, num_minibatches=10**12)


@pytest.mark.parametrize("name", ["pipedream", "pipedream-2bw"])
@pytest.mark.parametrize("change", ["a missing update", "a swapped pair", "an early update"])
def test_a_planted_error_is_caught(name, change):
    one = make(name, 2, 2)
    orders = [list(map(str, order)) for order in one.orders]
    last = orders[1]
    first_update = next(k for k, cell in enumerate(last) if "U" in cell)
    if change == "a missing update":
        del last[first_update]
    elif change == "a swapped pair":
        last[0], last[1] = last[1], last[0]
    else:
        last[first_update - 1], last[first_update] = last[first_update], last[first_update - 1]
    with pytest.raises(PipelabError):
        Schedule(orders, one.placement, minibatches=one.minibatches)


@pytest.mark.parametrize("name", ["pipedream", "pipedream-2bw"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 2), (3, 5), (4, 4), (4, 9)])
def test_the_closed_form_is_what_the_simulator_finds(name, p, m):
    form, one = closed_form(name), make(name, p, m)
    found = simulate(one, Costs.uniform(p, 2, 1, 3)).report()
    assert form.holds(p, m, F=2, I=1, W=3) == ""
    assert form.makespan(p, m, F=2, I=1, W=3) == found.makespan
    assert form.bubble_time(p, m, F=2, I=1, W=3) == found.bubble_time[0]
    assert form.peak_in_flight(p, m) == found.peak_in_flight


def test_latency_breaks_what_2bw_assumes():
    assert "c = 0" in closed_form("pipedream-2bw").holds(4, 8, c=0.5)
