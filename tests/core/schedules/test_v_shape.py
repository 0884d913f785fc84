"""Schedules on a V: torch's tables cell by cell, the published numbers, and where they end."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.actions import Kind
from pipelab.core.theory import closed_form


@pytest.mark.parametrize(("name", "least"), [("zb-v", 150), ("dualpipev", 80)])
def test_the_order_is_torchs_wherever_torch_takes_the_sizes(equal_to_oracle, name, least):
    sizes = ((p, m, 2) for p in range(1, 9) for m in range(1, 4 * p + 3))
    assert equal_to_oracle(name, sizes) >= least


def test_dualpipev_also_runs_with_fewer_micro_batches_than_stages(make, oracles):
    """The order of 2p micro-batches without those that there are not."""
    for p in (1, 2, 3, 4, 7):
        whole = make("dualpipev", p, 2 * p)
        for m in range(1, 2 * p):
            assert oracles["dualpipev"](p, m, 2) is None
            one = make("dualpipev", p, m)
            for mine, theirs in zip(one.orders, whole.orders, strict=True):
                plain = [a for cell in theirs for a in (cell.members or (cell,)) if a.microbatch < m]
                assert [a for cell in mine for a in (cell.members or (cell,))] == plain


@pytest.mark.parametrize(("name", "makespans"), [("zb-v", (51, 391, 1551)), ("dualpipev", (54, 398, 1566))])
def test_makespans_on_which_independent_tools_agree(report, name, makespans):
    assert tuple(report(name, p, m).makespan for p, m in ((4, 8), (8, 64), (16, 256))) == makespans


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_every_rank_holds_2p_chunks_in_zb_v_and_2p_plus_1_in_dualpipev(make, p):
    for m in range(2 * p, 4 * p):
        assert make("zb-v", p, m).peak_in_flight == (2 * p,) * p
        assert make("dualpipev", p, m).peak_in_flight == (2 * p + 1,) * p


def test_zb_v_has_no_bubble_in_span_but_one_in_the_makespan(report):
    found = report("zb-v", 4, 8)
    assert (found.span_bubble, found.makespan, found.busy[0]) == (0, 51, 48)
    for p in (2, 3, 6):
        for m in (2 * p - 1, 2 * p, 3 * p + 1):
            found = report("zb-v", p, m)
            assert found.span_bubble == 0 and found.bubble_time == (p - 1,) * p


@pytest.mark.parametrize(("F", "I", "W"), [(2, 3, 1), (1, 3, 1), (4, 1, 1), (1, 2, 1)])
def test_zb_v_has_a_bubble_in_span_where_F_I_and_W_differ(report, F, I, W):  # noqa: E741
    found = report("zb-v", 4, 8, forward=F, input_grad=I, weight_grad=W)
    assert found.span_bubble > 0
    assert found.bubble_time[0] > closed_form("zb-v").bubble_time(4, 8, F=F, I=I, W=W) == 3 * F
    assert "F = I = W" in closed_form("zb-v").holds(4, 8, F=F, I=I, W=W)


def test_with_fewer_micro_batches_than_2p_minus_1_zb_v_has_a_bubble_in_span(report):
    for p, m in ((3, 4), (4, 4), (4, 6)):
        assert report("zb-v", p, m).span_bubble > 0


def idle(p: int, F: float, I: float, W: float, overlap: float) -> float:  # noqa: E741
    return (p - 1) * (overlap + I + W - 3 * W)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("F", "I", "W"), [(1, 1, 1), (2, 2, 1), (3, 3, 2)])
def test_dualpipev_idles_as_published_where_F_equals_I(report, p, F, I, W):  # noqa: E741
    for m in (2 * p, 2 * p + 1, 4 * p):
        found = report("dualpipev", p, m, forward=F, input_grad=I, weight_grad=W)
        assert found.bubble_time == (idle(p, F, I, W, F + I + W),) * p


def test_where_overlapping_saves_time_dualpipevs_formula_is_of_the_worst_rank_only(report):
    for p, overlap in product((3, 4, 6), (2.75, 2.5, 2.25)):
        found = report("dualpipev", p, 3 * p, overlap=overlap)
        assert max(found.bubble_time) == pytest.approx(idle(p, 1, 1, 1, overlap))
        assert min(found.bubble_time) < max(found.bubble_time) - 0.1


@pytest.mark.parametrize(("F", "I", "W"), [(1, 3, 1), (3, 1, 2), (1, 1, 3)])
def test_where_F_differs_from_I_or_W_is_long_dualpipevs_formula_is_off(report, F, I, W):  # noqa: E741
    found = report("dualpipev", 4, 8, forward=F, input_grad=I, weight_grad=W)
    assert max(found.bubble_time) != pytest.approx(idle(4, F, I, W, F + I + W))
    assert closed_form("dualpipev").holds(4, 8, F=F, I=I, W=W)


def test_an_overlap_that_is_shorter_than_its_longer_half_breaks_the_formula(report):
    assert max(report("dualpipev", 4, 8, overlap=1.5).bubble_time) > idle(4, 1, 1, 1, 1.5)
    assert "F&B >= B" in closed_form("dualpipev").holds(4, 8, overlap=1.5)


def test_the_last_two_ranks_of_dualpipev_overlap_most(make):
    for p, m in ((1, 2), (2, 4), (4, 8), (4, 11), (5, 13)):
        counts = [sum(a.kind is Kind.OVERLAP for a in order) for order in make("dualpipev", p, m).orders]
        assert max(counts) == 2 * (m - p) - 1
        assert [rank for rank, n in enumerate(counts) if n == max(counts)] == list(range(max(0, p - 2), p))
