"""Every model of the zoo, cut and run under several schedules, computes what the whole model computes."""

import pytest
import torch

import pipelab as pp
from tests.zoo.law import assert_law
from tests.zoo.models import ZOO


def schedule(name, stages, m=4):
    """The schedule for a model of so many stages, on as many ranks as it needs."""
    looped = {"interleaved-1f1b": 1, "interleaved-zb": 1, "hanayo": 1}
    ranks = stages // 2 if name in looped else stages
    options = {"stages_per_rank": 2} if name in looped else {}
    return pp.schedule(name, num_ranks=ranks, num_microbatches=m, **options)


@pytest.mark.parametrize("model", ZOO)
def test_1f1b_in_threads(model):
    torch.manual_seed(0)
    case = ZOO[model]()
    assert_law(case, schedule("1f1b", len(case.cuts) + 1))


@pytest.mark.parametrize("model", ZOO)
def test_gpipe_on_virtual_devices(model):
    torch.manual_seed(0)
    case = ZOO[model]()
    stages = len(case.cuts) + 1
    assert_law(case, schedule("gpipe", stages, m=5), devices=pp.virtual(stages))
