"""Schedules of one stage a rank: the textbook's orders, torch's, and the numbers that tell them apart."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.simulation import simulate

SIZES = list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13)))


def test_naive_takes_one_micro_batch_at_a_time(make, cells):
    assert cells(make("naive", 2, 2)) == ["0F0 0B0 0F1 0B1", "1F0 1B0 1F1 1B1"]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_naive_takes_m_p_times_a_stage(report, p, m):
    assert report("naive", p, m).makespan == m * p * 3
    assert report("naive", p, m).peak_in_flight == (1,) * p


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_runs_all_forwards_then_all_backwards_ascending(make, cells, p, m):
    wanted = [" ".join([f"{r}F{i}" for i in range(m)] + [f"{r}B{i}" for i in range(m)]) for r in range(p)]
    assert cells(make("gpipe", p, m)) == wanted


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "eager-1f1b"])
def test_the_order_is_that_of_torch_or_of_the_textbook(equal_to_oracle, name):
    assert equal_to_oracle(name, ((p, m, 1) for p, m in SIZES)) == 36


def test_the_last_rank_of_1f1b_starts_with_micro_batch_0(make, cells):
    assert cells(make("1f1b", 4, 3))[-1] == "3F0 3B0 3F1 3B1 3F2 3B2"


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "eager-1f1b"])
@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize(("F", "B"), [(1, 2), (2, 2), (3, 1)])
def test_linear_schedules_idle_p_minus_1_stages_whatever_their_order(report, name, p, m, F, B):
    found = report(name, p, m, forward=F, input_grad=B / 2, weight_grad=B / 2)
    assert found.makespan == (m + p - 1) * (F + B)
    assert found.bubble_time == ((p - 1) * (F + B),) * p
    assert found.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), rel=1e-12)
    assert found.bubble_ratio == pytest.approx((p - 1) / m, rel=1e-12)
    assert found.span_bubble == pytest.approx(found.bubble_fraction, rel=1e-12)  # rank 0 spans the step


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_makespans_on_which_independent_tools_agree(report, name):
    found = tuple(report(name, p, m).makespan for p, m in ((4, 8), (8, 64), (16, 256)))
    assert found == (33, 213, 813)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_peaks_tell_the_linear_schedules_apart(make, p, m):
    assert make("gpipe", p, m).peak_in_flight == (m,) * p
    assert make("1f1b", p, m).peak_in_flight == tuple(min(m, p - r) for r in range(p))
    assert make("eager-1f1b", p, m).peak_in_flight == tuple(min(m, 2 * (p - 1 - r) + 1) for r in range(p))


@pytest.mark.parametrize(("name", "makespan"), [("gpipe", 36.0), ("1f1b", 41.0), ("eager-1f1b", 36.0)])
def test_latency_costs_1f1b_more(report, name, makespan):
    assert report(name, 4, 8, latency=0.5).makespan == makespan


@pytest.mark.parametrize("name", ["gpipe", "eager-1f1b"])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_latency_costs_gpipe_and_eager_1f1b_two_hops_a_rank_whatever_m(report, name, p, m):
    assert report(name, p, m, latency=0.25).makespan == (m + p - 1) * 3 + 2 * (p - 1) * 0.25


@pytest.mark.parametrize(
    ("p", "m", "hops"), [(4, 8, 16), (4, 16, 28), (8, 16, 40), (8, 32, 68), (8, 64, 124)]
)
def test_latency_costs_1f1b_more_with_every_micro_batch(report, p, m, hops):
    assert report("1f1b", p, m, latency=2**-6).makespan == (m + p - 1) * 3 + hops * 2**-6


def test_with_uneven_stages_1f1b_can_be_shorter_than_gpipe(make):
    costs = Costs((3, 1, 1), (1, 1, 3), (1, 1, 3))
    gpipe, one = (simulate(make(name, 3, 6), costs).makespan for name in ("gpipe", "1f1b"))
    assert one < gpipe
