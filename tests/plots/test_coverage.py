from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.plots.coverage import coverage

times = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), min_size=1, max_size=40)


def covered(
    actions: list[tuple[float, float]], width: int, begin: float = 0.0, stop: float = 13.0
) -> np.ndarray:
    start = np.array([a for a, _ in actions])
    end = start + np.array([d for _, d in actions])
    slot = np.zeros(len(start), dtype=int)
    return coverage(slot, start, end, num_slots=1, width=width, begin=begin, stop=stop)[0]


@given(times, st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_pixels_sum_to_busy_time_at_any_width(actions, width):
    per_pixel = 13.0 / width
    assert covered(actions, width).sum() * per_pixel == pytest.approx(sum(d for _, d in actions), abs=1e-9)


@given(times, st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_each_pixel_is_what_adding_up_by_hand_gives(actions, width):
    edges = np.linspace(0, 13, width + 1)
    by_hand = [
        sum(max(0.0, min(s + d, b) - max(s, a)) for s, d in actions) / (b - a)
        for a, b in itertools.pairwise(edges)
    ]
    assert covered(actions, width) == pytest.approx(by_hand, abs=1e-9)


def test_one_long_action_fills_every_pixel_exactly():
    assert covered([(0.0, 13.0)], 5).tolist() == pytest.approx([1.0] * 5)


def test_what_lies_outside_the_view_is_left_out():
    assert covered([(0.0, 2.0), (3.0, 1.0)], 2, begin=1.0, stop=3.0).tolist() == pytest.approx([1.0, 0.0])


def test_slots_do_not_run_into_each_other():
    slot = np.array([0, 1, 2])
    start, end = np.array([9.0, 0.0, 9.5]), np.array([10.0, 0.5, 10.0])
    found = coverage(slot, start, end, num_slots=3, width=10, begin=0.0, stop=10.0)
    assert found[0].tolist() == pytest.approx([0.0] * 9 + [1.0])
    assert found[1].tolist() == pytest.approx([0.5] + [0.0] * 9)
    assert found[2].tolist() == pytest.approx([0.0] * 9 + [0.5])


def test_an_action_of_no_length_covers_nothing():
    assert covered([(4.0, 0.0)], 10).sum() == 0.0
