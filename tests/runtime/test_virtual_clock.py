"""Placing actions that were timed alone on ideal devices."""

import numpy as np
import pytest

import pipelab as pp
from pipelab.runtime.virtual_clock import placed


def durations(schedule, forward, backward):
    is_forward = np.array([a.kind == "F" for order in schedule.orders for a in order])
    return np.where(is_forward, forward, backward)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "naive"])
def test_equal_durations_give_the_schedules_own_picture(name):
    schedule = pp.schedule(name, num_ranks=4, num_microbatches=8)
    start, end = placed(schedule, durations(schedule, 1.0, 2.0))
    trace = pp.simulate(schedule, pp.Costs.uniform(4))
    assert np.allclose(start, trace.start) and np.allclose(end, trace.end)


def test_one_late_action_does_not_change_the_picture():
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=8)
    times = durations(schedule, 1.0, 2.0)
    calm = placed(schedule, times)
    times[3] *= 50
    assert np.allclose(placed(schedule, times), calm)


def test_links_delay_what_crosses_them():
    schedule = pp.schedule("gpipe", num_ranks=4, num_microbatches=8)
    times = durations(schedule, 1.0, 2.0)
    assert placed(schedule, times, pp.Links(latency=0.5))[1].max() == pytest.approx(36.0)


def test_stages_of_one_rank_keep_costs_of_their_own():
    schedule = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
    flat = [a for order in schedule.orders for a in order]
    times = np.array([1.0 + a.stage if a.kind == "F" else 2.0 for a in flat])
    start, end = placed(schedule, times)
    assert np.allclose(end - start, times)


def test_a_bandwidth_delays_by_what_the_stages_send():
    schedule = pp.schedule("gpipe", num_ranks=4, num_microbatches=8)
    times, held = durations(schedule, 1.0, 2.0), pp.StageBytes((0,) * 4, (0,) * 4, (50,) * 4)
    assert placed(schedule, times, pp.Links(bandwidth=100), held)[1].max() == pytest.approx(36.0)


def test_i_and_w_take_their_own_time():
    schedule = pp.schedule("zb-h1", num_ranks=3, num_microbatches=6)
    seconds = {"F": 1.0, "I": 1.25, "W": 0.5}
    times = np.array([seconds[a.kind] for order in schedule.orders for a in order])
    start, end = placed(schedule, times)
    trace = pp.simulate(schedule, pp.Costs.uniform(3, 1.0, 1.25, 0.5))
    assert np.allclose(start, trace.start) and np.allclose(end, trace.end)


def test_the_median_is_over_the_actions_of_all_steps():
    schedule = pp.schedule("gpipe", num_ranks=1, num_microbatches=1)
    start, end = placed(schedule, np.array([[1.0, 2.0], [9.0, 2.5], [1.5, 8.0]]))
    assert (end - start).tolist() == [1.5, 2.5]


def test_replicas_of_a_stage_share_their_samples():
    schedule = pp.schedule("chimera", num_ranks=2, num_microbatches=4)
    flat = [a for order in schedule.orders for a in order]
    times = np.array(
        [1.0 + (a.stage >= 2) if a.kind == "F" else 4.0 for a in flat]
    )  # ids 2 and 3 are replicas
    start, end = placed(schedule, times)
    assert np.allclose((end - start)[times < 4], 1.5)


def test_what_a_cell_overlaps_is_timed_as_one():
    orders = [["0F0", "0F1", "(0F2;0B0)OVERLAP_F_B", "0B1", "0B2"]]
    times = np.array([1.0, 1.0, 2.5, 2.0, 2.0])
    start, end = placed(pp.Schedule(orders), times)
    assert np.allclose(end - start, times)
