from __future__ import annotations

import pytest

import pipelab as pp
from pipelab.planning.finer import cut_evenly

BYTES = pp.StageBytes((100, 300), (10, 20), (6, 8), optimizer=(200, 600))
COSTS = pp.Costs((1, 2), (3, 4), (5, 6), backward=(7, 8), update=(9, 10), overlap=(11, 12), bytes=BYTES)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_the_pieces_together_are_the_whole(parts, slices):
    fine = cut_evenly(COSTS, parts, slices)
    assert fine.num_stages == 2 * parts
    for name in ("forward", "input_grad", "weight_grad", "backward", "overlap"):
        assert sum(getattr(fine, name)) * slices == pytest.approx(sum(getattr(COSTS, name)))
    assert sum(fine.update) == pytest.approx(sum(COSTS.update)), (
        "weights are updated once, however they are fed"
    )
    assert sum(fine.bytes.parameters) == pytest.approx(400)
    assert sum(fine.bytes.optimizer) == pytest.approx(800)
    assert sum(fine.bytes.activations) * slices == pytest.approx(30)


def test_a_new_border_carries_what_the_old_one_does_and_a_slice_its_share():
    assert cut_evenly(COSTS, 2).bytes.outputs == (6, 6, 8, 8)
    assert cut_evenly(COSTS, 1, 2).bytes.outputs == (3, 4)


def test_what_is_not_known_stays_unknown():
    fine = cut_evenly(pp.Costs.uniform(2, latency=0.5), 2)
    assert (fine.bytes, fine.backward, fine.update, fine.overlap) == (None,) * 4
    assert fine.links.latency == 0.5
    assert cut_evenly(COSTS, 1) is COSTS
