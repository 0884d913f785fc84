"""Zero-bubble schedules: their rules written out once more, torch's tables, and where the published formulas end."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.theory import closed_form

SIZES = list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13)))


def test_interleaved_zb_is_torchs_wherever_torch_takes_the_sizes(equal_to_oracle):
    sizes = [(p, m, v) for p, v in product((1, 2, 3, 4, 8), (1, 2, 3)) for m in range(1, 4 * p + 2)]
    assert equal_to_oracle("interleaved-zb", sizes) >= 150


def test_interleaved_zb_also_runs_sizes_that_torch_refuses(oracles, report):
    for p, m, v in ((4, 9, 2), (4, 11, 3), (3, 7, 2), (8, 17, 2)):
        assert oracles["interleaved-zb"](p, m, v) is None
        whole = -(-m // p) * p
        assert report("interleaved-zb", p, m, v).makespan <= report("interleaved-zb", p, whole, v).makespan


def test_interleaved_zb_over_one_chunk_is_zb_h1(make):
    for p, m in SIZES:
        assert make("interleaved-zb", p, m, 1).orders == make("zb-h1", p, m).orders


@pytest.mark.parametrize("name", ["zb-h1", "zb-h2"])
def test_the_order_follows_the_papers_rule(equal_to_oracle, name):
    assert equal_to_oracle(name, ((p, m, 1) for p, m in SIZES)) == 36


def test_makespans_on_which_independent_tools_agree(report):
    found = tuple(report("zb-h1", p, m).makespan for p, m in ((4, 8), (8, 64), (16, 256)))
    assert found == (27, 199, 783)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_zb_h1_holds_p_micro_batches_on_every_rank_and_zb_h2_2p_minus_1(make, p):
    for m in range(1, 3 * p):
        assert make("zb-h1", p, m).peak_in_flight == (min(m, p),) * p
        assert make("zb-h2", p, m).peak_in_flight == (min(m, 2 * p - 1),) * p


def seconds(F: float, I: float, W: float) -> dict[str, float]:  # noqa: E741
    return {"forward": F, "input_grad": I, "weight_grad": W}


@pytest.mark.parametrize("p", [2, 3, 4, 6])
@pytest.mark.parametrize(("F", "I", "W"), [(1, 1, 1), (1, 2, 1), (2, 3, 1), (3, 3, 2)])
def test_the_published_idle_time_of_zb_h1_holds_where_W_is_short(report, p, F, I, W):  # noqa: E741
    for m in (p, 2 * p, 3 * p + 1):
        assert report("zb-h1", p, m, **seconds(F, I, W)).bubble_time == ((p - 1) * (F + I - W),) * p


@pytest.mark.parametrize(
    ("F", "I", "W", "idle"), [(1, 1, 2, 1), (3, 1, 2, 3), (1, 1, 5, 1), (1, 3, 2, 3), (2, 5, 4, 5)]
)
def test_where_W_is_long_zb_h1_idles_more_than_published(report, F, I, W, idle):  # noqa: E741
    """Nobody works before the first forward arrives, nor while the first gradient travels up: (p-1) F and (p-1) I."""
    for p in (2, 4):
        found = report("zb-h1", p, 2 * p, **seconds(F, I, W))
        assert found.bubble_time[0] == (p - 1) * idle > (p - 1) * (F + I - W)
        assert found.bubble_time[0] == closed_form("zb-h1").bubble_time(p, 2 * p, F=F, I=I, W=W)


def test_with_fewer_micro_batches_than_ranks_zb_h1_idles_more_than_its_formula(report):
    form = closed_form("zb-h1")
    for p, m in ((4, 2), (4, 3), (8, 5)):
        assert "m >= p" in form.holds(p, m)
        assert report("zb-h1", p, m).bubble_time[0] > form.bubble_time(p, m)


def test_latency_costs_zb_h1_four_hops_a_rank_from_p_plus_1_micro_batches_on(report):
    for p in (2, 3, 4, 8):
        for m in (p, p + 1, 2 * p, 3 * p, 4 * p + 1):
            for c in (2**-6, 0.5):
                free, slow = (report("zb-h1", p, m, latency=latency).makespan for latency in (0, c))
                assert slow - free == (4 * (p - 1) - 2 * (m == p)) * c


def test_zb_h1_has_a_third_of_1f1bs_bubble_where_F_I_and_W_are_equal_only(report):
    for p in (2, 4, 8):
        for m in (p, 3 * p):
            zero, one = (report(name, p, m).bubble_time[0] for name in ("zb-h1", "1f1b"))
            assert 3 * zero == one
            longer = seconds(1, 2, 1)
            zero, one = (report(name, p, m, **longer).bubble_time[0] for name in ("zb-h1", "1f1b"))
            assert 3 * zero > one


def test_zb_h2_has_no_bubble_in_span_but_one_in_the_makespan(report):
    found = report("zb-h2", 4, 8)
    assert (found.span_bubble, found.makespan, found.busy[0]) == (0, 27, 24)
    for p in (2, 3, 6):
        for m in (2 * p - 1, 2 * p, 4 * p):
            found = report("zb-h2", p, m)
            assert found.span_bubble == 0 and found.bubble_time == (p - 1,) * p


@pytest.mark.parametrize(("F", "I", "W"), [(1, 1, 1), (1, 2, 1), (2, 3, 1), (3, 1, 2), (4, 4, 1)])
def test_the_longest_span_of_zb_h2_idles_as_published(report, F, I, W):  # noqa: E741
    for p in (2, 3, 4):
        for m in (2 * p - 1, 3 * p):
            work, found = m * (F + I + W), report("zb-h2", p, m, **seconds(F, I, W))
            assert found.span_bubble == pytest.approx(1 - work / (work + (p - 1) * (F + I - 2 * W)))


def test_where_I_is_longer_than_F_and_W_too_zb_h2_idles_more_than_published(report):
    found = report("zb-h2", 4, 8, **seconds(1, 3, 2))
    assert found.bubble_time[0] == 3 * (3 - 1) > 3 * max(1, 1 + 3 - 4)
