"""Versions of the weights: a count written out by hand, the papers' numbers, and what has no versions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pipelab.core.actions import Kind
from pipelab.core.costs import StageBytes
from pipelab.core.memory import peaks
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.versions import WeightVersions
from pipelab.errors import PipelabError


def pipedream(p: int, m: int) -> Schedule:
    return schedule("pipedream", num_ranks=p, num_microbatches=m)


def two_buffered(p: int, m: int, n: int) -> Schedule:
    return schedule("pipedream-2bw", num_ranks=p, num_microbatches=m, num_minibatches=n)


def by_walking(one: Schedule, consistent: bool) -> tuple[np.ndarray, list[int]]:
    """Walk each rank's order: count updates, note the version at each first forward, hold versions until used up."""
    per = one.num_microbatches // one.minibatches
    version = np.full((one.num_stages, one.minibatches), -1)
    for order in one.orders:
        made = 0
        for action in order:
            if action.kind is Kind.U:
                made += 1
            elif action.kind is Kind.F and version[action.stage, action.microbatch // per] < 0:
                version[action.stage, action.microbatch // per] = made
    if consistent:
        version[:] = version[0]
    kept = []
    for stage, order in enumerate(one.orders):
        made, most = 0, 1
        for position, action in enumerate(order):
            made += action.kind is Kind.U
            later = {
                version[stage, a.microbatch // per] for a in order[position + 1 :] if a.kind is not Kind.U
            }
            most = max(most, len({v for v in later if v <= made} | {made}))
        kept.append(most)
    return version, kept


@pytest.mark.parametrize(("p", "m"), list(product((1, 2, 3, 5), (2, 3, 5, 9, 14))))
def test_pipedream_stashes_p_minus_s_versions(p, m):
    found = pipedream(p, m).weight_versions()
    version, kept = by_walking(pipedream(p, m), consistent=False)
    assert np.array_equal(found.version, version) and found.kept.tolist() == kept
    for s in range(p):  # the steady state is reached when the last of the first p - s has been updated
        assert found.kept[s] == p - s or m < 2 * (p - s) - 1
    for s in range(p):
        assert found.staleness[s].tolist() == [min(n, p - 1 - s) for n in range(m)]
    assert not found.is_consistent


@pytest.mark.parametrize(("p", "extra", "n"), list(product((2, 3, 5), (0, 1, 4), (2, 3, 6))))
def test_2bw_keeps_two_versions_and_is_one_update_late(p, extra, n):
    one = two_buffered(p, p + extra, n)
    found = one.weight_versions()
    version, kept = by_walking(one, consistent=True)
    assert np.array_equal(found.version, version) and found.kept.tolist() == kept == [2] * p
    assert found.version.tolist() == [[max(0, k - 1) for k in range(n)]] * p
    assert found.staleness[:, 1:].max() == found.staleness[:, 1:].min() == 1
    assert found.is_consistent


def test_one_rank_is_never_stale():
    assert pipedream(1, 4).weight_versions().staleness.max() == 0
    assert two_buffered(1, 2, 3).weight_versions().kept.tolist() == [1]


def test_consistency_can_be_asked_for():
    found = pipedream(3, 6).weight_versions(consistent=True)  # PipeDream's vertical sync
    assert (found.version == found.version[0]).all() and found.is_consistent
    assert found.kept.tolist() == by_walking(pipedream(3, 6), consistent=True)[1] == [3, 3, 3]


def test_a_version_that_is_not_made_in_time_is_named():
    orders = [["0F0", "0B0", "0U0", "0F1", "0B1", "0U1"], ["1F0", "1B0", "1F1", "1U0", "1B1", "1U1"]]
    late = Schedule(orders, minibatches=2)
    assert late.weight_versions().version.tolist() == [[0, 1], [0, 0]]
    with pytest.raises(PipelabError, match=r"mini-batch 1 enters stage 1 after 0 updates there.*version 1"):
        late.weight_versions(consistent=True)


def test_a_schedule_without_updates_has_no_versions():
    with pytest.raises(PipelabError, match="gpipe has no update"):
        schedule("gpipe", num_ranks=2, num_microbatches=2).weight_versions()


def test_versions_are_a_value_that_prints():
    found = pipedream(2, 20).weight_versions()
    assert found == pipedream(2, 20).weight_versions() != pipedream(2, 21).weight_versions()
    assert hash(found) == hash(pipedream(2, 20).weight_versions())
    assert "versions kept" in str(found) and "..." in str(found) and "<table" in found._repr_html_()
    assert repr(found) == "<WeightVersions: 2 stages, 20 mini-batches, at most 2 kept>"
    frame = found.to_frame()
    assert list(frame.columns) == ["stage", "mini-batch", "version", "staleness"] and len(frame) == 40
    assert isinstance(found, WeightVersions)


def test_a_rank_holds_as_many_versions_of_its_weights_as_it_keeps():
    bytes_held = StageBytes(parameters=(10.0,) * 4, activations=(1.0,) * 4, outputs=(0.0,) * 4)
    for one, kept in ((pipedream(4, 8), (4, 3, 2, 1)), (two_buffered(4, 4, 3), (2, 2, 2, 2))):
        in_flight = (4, 3, 2, 1)
        wanted = [10 * versions + 10 + n for versions, n in zip(kept, in_flight, strict=True)]
        assert peaks(one, bytes_held).tolist() == wanted
