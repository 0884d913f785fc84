from __future__ import annotations

from dataclasses import replace

import pytest

from pipelab.plots.headline import comparison_headline, describe_timeline
from tests.plots.sizes import SIZES, trace


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_the_words_carry_the_numbers_of_the_report(ranks, microbatches):
    one = trace(ranks, microbatches)
    text = describe_timeline(one)
    assert f"bubble_fraction {100 * one.report().bubble_fraction:.1f} %" in text
    assert "simulated clock" in text
    assert all(f"Rank {rank}:" in text for rank in range(ranks))


def test_many_ranks_are_described_by_the_first_ones_and_the_last():
    text = describe_timeline(trace(64, 2))
    assert "Rank 6:" in text and "Rank 63:" in text and "Rank 30:" not in text
    assert "(56 ranks left out.)" in text
    assert len(text) < 1500


def test_notes_are_told():
    assert "ranks share" in describe_timeline(replace(trace(2, 2), notes=("2 ranks share one core",)))


def headline_of(*factors: float) -> str:
    one = trace(2, 2)
    traces = [
        replace(one, label=f"t{k}", start=one.start * factor, end=one.end * factor)
        for k, factor in enumerate(factors)
    ]
    return comparison_headline(traces, [each.report() for each in traces], same_plan=False).splitlines()[0]


def test_the_shortest_of_several_is_named_with_its_numbers():
    assert "shortest: t1," in headline_of(2, 1) and "bubble_fraction" in headline_of(2, 1)


def test_where_all_are_equally_long_none_is_called_the_shortest():
    assert "shortest" not in headline_of(1, 1) and "equally long: 12 s" in headline_of(1, 1)


def test_none_of_different_clocks_is_called_the_shortest():
    one = trace(2, 2)
    traces = [
        one,
        replace(trace(2, 3), clock="wall"),
        replace(one, label="slow", start=2 * one.start, end=2 * one.end),
    ]
    title = comparison_headline(traces, [each.report() for each in traces])
    assert title.startswith("3 timelines on one time axis, of different clocks\nclocks: simulated, wall")


def test_several_that_share_the_first_place_are_all_named():
    assert "shortest: t0, t2, 12 s" in headline_of(1, 2, 1)
