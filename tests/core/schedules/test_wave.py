"""Hanayo: the paper's picture, the closed form at every size, and whom it beats."""

from __future__ import annotations

from itertools import product

import pytest

from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.theory import closed_form
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13, 24), (2, 4, 6)))


def make(p: int, m: int, v: int) -> Schedule:
    return schedule("hanayo", num_ranks=p, num_microbatches=m, stages_per_rank=v)


def run(one: Schedule, F: float = 1, B: float = 2, latency: float = 0) -> Trace:
    return simulate(one, Costs.uniform(one.num_stages, F, B / 2, B / 2, latency))


def cells(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


def test_one_wave_is_the_papers_picture():
    assert cells(make(4, 4, 2)) == [
        "0F0 0F1 0F2 0F3 7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 0B0 0B1 0B2 0B3",
        "1F0 1F1 1F2 6F0 1F3 6F1 6B0 6F2 6B1 6F3 6B2 1B0 6B3 1B1 1B2 1B3",
        "2F0 2F1 5F0 2F2 5F1 2F3 5F2 5B0 5F3 5B1 2B0 5B2 2B1 5B3 2B2 2B3",
        "3F0 4F0 3F1 4F1 3F2 4F2 3F3 4F3 4B0 3B0 4B1 3B1 4B2 3B2 4B3 3B3",
    ]


def test_two_waves_follow_each_other_without_a_gap():
    assert cells(make(2, 2, 4)) == [
        "0F0 0F1 3F0 4F0 3F1 4F1 7F0 7B0 7F1 7B1 4B0 3B0 4B1 3B1 0B0 0B1",
        "1F0 2F0 1F1 2F1 5F0 6F0 5F1 6F1 6B0 5B0 6B1 5B1 2B0 1B0 2B1 1B1",
    ]


@pytest.mark.parametrize(("p", "m", "v"), SIZES)
def test_it_idles_as_the_closed_form_says_at_every_size_and_cost(p, m, v):
    one, form = make(p, m, v), closed_form("hanayo")
    for F, B in ((1, 1), (1, 2), (2, 1), (2, 3), (1, 0), (0, 1)):
        wanted = 2 * (p - 1) * max(F, B) + max(0, p - m) * (2 * min(F, B) + (v - 2) * (F + B))
        found = run(one, F, B).report()
        assert found.bubble_time == (wanted,) * p
        assert form.bubble_time(p, m, v, F=F, B=B) == wanted
        assert form.holds(p, m, v, F=F, B=B) == ""


@pytest.mark.parametrize(("p", "m", "v"), SIZES)
def test_its_peaks_are_those_of_the_closed_form(p, m, v):
    assert make(p, m, v).peak_in_flight == closed_form("hanayo").peak_in_flight(p, m, v)


@pytest.mark.parametrize(("p", "k", "v"), list(product((2, 3, 4, 8), (2, 3, 4), (2, 4, 6))))
def test_in_whole_groups_it_holds_p_micro_batches_on_every_rank(p, k, v):
    """1F1B's highest peak; interleaved 1F1B holds p - 1 chunks more on rank 0."""
    one = make(p, k * p, v)
    other = schedule("interleaved-1f1b", num_ranks=p, num_microbatches=k * p, stages_per_rank=v)
    assert one.peak_in_flight == (p * v,) * p
    assert max(other.peak_in_flight) == (v + 1) * p - 1


def test_a_rank_runs_one_forward_and_one_backward_in_turn():
    """Between its warm-up and its cool-down, at sizes that fill every step."""
    for p, m, v in ((3, 12, 2), (4, 12, 4)):
        for order in make(p, m, v).orders:
            kinds = "".join(action.kind for action in order)
            steady = kinds[p * (v + 2) : -p * (v + 2)]
            assert len(steady) >= m and "FF" not in steady and "BB" not in steady


@pytest.mark.parametrize(("p", "m", "v"), [size for size in SIZES if size[0] > 1])
@pytest.mark.parametrize("B", [1, 2, 3])
def test_it_beats_1f1b_and_at_F_B_meets_interleaved(p, m, v, B):
    """The same model: a stage of 1F1B is v chunks."""
    wave = run(make(p, m, v), 1, B).makespan
    one = schedule("1f1b", num_ranks=p, num_microbatches=m)
    plain = run(one, v, B * v).makespan
    looped = schedule("interleaved-1f1b", num_ranks=p, num_microbatches=m, stages_per_rank=v)
    assert wave < plain or m == 1
    if m >= p:
        extra = wave - run(looped, 1, B).makespan
        assert extra == (p - 1) * (B - 1)  # interleaved fills F and B, a wave twice the longer of the two


@pytest.mark.parametrize(
    ("p", "m", "v", "latency", "wave", "looped"), [(4, 4, 4, 0.5, 52, 53), (4, 16, 4, 2, 228, 242)]
)
def test_with_slow_links_it_can_beat_interleaved_since_it_turns_without_sending(
    p, m, v, latency, wave, looped
):
    other = schedule("interleaved-1f1b", num_ranks=p, num_microbatches=m, stages_per_rank=v)
    assert run(make(p, m, v), 1, 1, latency).makespan == wave
    assert run(other, 1, 1, latency).makespan == looped


@pytest.mark.parametrize(("p", "k", "v"), list(product((2, 3, 4, 8), (1, 2, 3, 6), (2, 4, 6))))
@pytest.mark.parametrize("B", [1, 2])
def test_a_small_latency_costs_the_same_from_two_groups_of_micro_batches_on(p, k, v, B):
    """v+1 ways through the ranks there and back, where 1F1B pays for every micro-batch; one group is two hops less."""
    one, c = make(p, k * p, v), 2**-8
    hops = 2 * (v + 1) * (p - 1) - 2 * (k == 1)
    assert run(one, 1, B, c).makespan - run(one, 1, B).makespan == hops * c


def test_at_other_numbers_of_micro_batches_a_small_latency_can_cost_more():
    one, c = make(4, 7, 4), 2**-8
    assert run(one, latency=c).makespan - run(one).makespan > 2 * 5 * 3 * c


@pytest.mark.parametrize(("v", "options"), [(3, (2, 4)), (5, (4, 6))])
def test_an_odd_number_of_passes_is_refused_with_its_neighbours(v, options):
    wanted = " and ".join(f"stages_per_rank={n}" for n in options)
    with pytest.raises(
        PipelabError, match=rf"even stages_per_rank .*, not {v}\. Nearest that work: {wanted}\."
    ):
        make(4, 8, v)
    assert [make(4, 8, n).stages_per_rank for n in options] == list(options)


def test_one_rank_runs_its_stages_one_after_the_other():
    assert cells(make(1, 2, 2)) == ["0F0 1F0 1B0 0F1 0B0 1F1 1B1 0B1"]
