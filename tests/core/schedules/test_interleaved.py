"""Looped schedules: torch's orders, the bubble divided by v, and what latency and uneven groups do."""

from __future__ import annotations

from itertools import product

import pytest

SIZES = list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13)))
CHUNKED = [(p, m, v) for p, m in SIZES for v in (1, 2, 3)]


@pytest.mark.parametrize(("p", "k", "v"), list(product((1, 2, 3, 4, 8), (1, 2, 3), (1, 2, 3, 4))))
def test_interleaving_divides_the_bubble_by_v(report, p, k, v):
    m = k * p
    found = report("interleaved-1f1b", p, m, v)
    assert found.makespan == m * v * 3 + (p - 1) * 3
    assert found.bubble_ratio == pytest.approx((p - 1) / (m * v), rel=1e-12)
    assert found.peak_in_flight == tuple(min(m * v, (v - 1) * p + 2 * (p - 1 - r) + 1) for r in range(p))


def test_makespans_on_which_independent_tools_agree(report):
    found = tuple(report("interleaved-1f1b", p, m, 2).makespan for p, m in ((4, 8), (8, 64), (16, 256)))
    assert found == (57, 405, 1581)


@pytest.mark.parametrize(("p", "k", "v"), list(product((2, 4), (1, 2, 3), (2, 3))))
def test_latency_costs_interleaving_two_hops_a_stage(report, p, k, v):
    free, slow = (report("interleaved-1f1b", p, k * p, v, latency=c).makespan for c in (0, 2**-6))
    assert slow - free == 2 * (p * v - 1) * 2**-6


def test_interleaving_over_one_chunk_is_eager_1f1b(make):
    for p, m in SIZES:
        assert make("interleaved-1f1b", p, m).orders == make("eager-1f1b", p, m).orders


@pytest.mark.parametrize(("p", "m", "v"), CHUNKED)
def test_interleaving_any_number_of_micro_batches_takes_at_most_the_time_of_the_next_multiple(
    report, p, m, v
):
    whole = -(-m // p) * p
    assert report("interleaved-1f1b", p, m, v).makespan <= whole * v * 3 + (p - 1) * 3


@pytest.mark.parametrize("name", ["interleaved-1f1b", "forward-only"])
@pytest.mark.parametrize(("p", "v"), list(product((1, 2, 3, 4, 8), (1, 2, 3))))
def test_the_order_is_torchs_wherever_torch_takes_the_sizes(equal_to_oracle, name, p, v):
    taken = equal_to_oracle(name, ((p, m, v) for m in range(1, 4 * p + 2)))
    assert taken >= 2 * p + 1  # also sizes with m mod p != 0


def test_looped_bfs_is_torchs_for_every_size(equal_to_oracle):
    assert equal_to_oracle("looped-bfs", CHUNKED) == 108


def test_looped_bfs_takes_whole_chunks_up_and_back_down(make, cells):
    assert cells(make("looped-bfs", 1, 2, 3)) == ["0F0 0F1 1F0 1F1 2F0 2F1 2B1 2B0 1B1 1B0 0B1 0B0"]


@pytest.mark.parametrize(("p", "m", "v"), [(p, m, v) for p, m, v in CHUNKED if m >= p])
def test_looped_bfs_has_the_bubble_of_interleaving_and_holds_everything(report, p, m, v):
    found = report("looped-bfs", p, m, v)
    assert found.makespan == m * v * 3 + (p - 1) * 3
    assert found.peak_in_flight == (m * v,) * p


def test_latency_costs_looped_bfs_two_hops_a_rank_once_there_are_more_micro_batches_than_ranks(report):
    for p, v in product((2, 3, 4), (1, 2, 3)):
        for m in (p + 1, 2 * p, 3 * p + 1):
            free, slow = (report("looped-bfs", p, m, v, latency=c).makespan for c in (0, 2**-6))
            assert slow - free == 2 * (p - 1) * 2**-6


def test_breadth_first_over_one_chunk_is_gpipe_with_its_backwards_descending(make, report):
    for p, m in SIZES:
        one, gpipe = make("looped-bfs", p, m, 1), make("gpipe", p, m)
        for rank in range(p):
            assert one.orders[rank][:m] == gpipe.orders[rank][:m]
            assert one.orders[rank][m:] == gpipe.orders[rank][m:][::-1]
        assert report("looped-bfs", p, m, 1).makespan == report("gpipe", p, m).makespan


@pytest.mark.parametrize(("p", "k", "v"), list(product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3))))
def test_forward_only_idles_p_minus_1_forwards(make, report, p, k, v):
    found = report("forward-only", p, k * p, v)
    assert found.makespan == k * p * v + p - 1
    assert found.peak_in_flight == (1,) * p
    assert not make("forward-only", p, k * p, v).has_backward
