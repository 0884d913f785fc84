"""Every model of the zoo, cut in four and run under several schedules, computes what the whole model computes."""

import pytest
import torch
from torch import nn

import pipelab as pp
from tests.zoo.law import assert_law
from tests.zoo.models import ZOO

SCHEDULES = {
    "1f1b": pp.schedule("1f1b", num_ranks=4, num_microbatches=4),
    "gpipe": pp.schedule("gpipe", num_ranks=4, num_microbatches=5),
    "zb-h1": pp.schedule("zb-h1", num_ranks=4, num_microbatches=5),
    "zb-v": pp.schedule("zb-v", num_ranks=2, num_microbatches=5),
    "hanayo": pp.schedule("hanayo", num_ranks=2, num_microbatches=4),
    "chimera": pp.schedule("chimera", num_ranks=4, num_microbatches=4),
}
VIRTUAL = {"gpipe", "zb-v"}  # on the virtual clock, the others in threads
# A state goes from one micro-batch to the next, or the loss reads what the forward left on the model.
IN_ORDER = {"root parameters and buffers", "values kept on self"}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", ZOO)
def test_a_step_computes_what_the_whole_model_computes(model, schedule):
    torch.manual_seed(0)
    case, chosen = ZOO[model](), SCHEDULES[schedule]
    assert len(case.cuts) == 3
    devices = pp.virtual(chosen.num_ranks) if schedule in VIRTUAL else ["cpu"] * chosen.num_ranks
    if schedule == "chimera" and must_be_in_order(model, case.model):
        with (
            pytest.raises(pp.PipelabError),
            pp.Pipeline(
                case.model, pp.Split(case.cuts), chosen, loss_fn=case.loss_fn, devices=devices
            ) as pipe,
        ):
            pipe.step(case.inputs, case.target)
        return
    assert_law(case, chosen, devices=devices)


def must_be_in_order(name, model):
    """Whether two chains at a time are refused."""
    return name in IN_ORDER or any(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules())
