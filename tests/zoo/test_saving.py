"""A model is saved, copied and loaded while a Pipeline on it is open, as if there were none."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import pipelab as pp
from tests.zoo.models import ZOO

MODELS = ["gpt, tied", "resnet, cut inside a residual block", "checkpoint in the forward"]


def opened(case):
    schedule = pp.schedule("1f1b", num_ranks=len(case.cuts) + 1, num_microbatches=4)
    devices = ["cpu"] * schedule.num_ranks
    return pp.Pipeline(case.model, pp.Split(case.cuts), schedule, loss_fn=case.loss_fn, devices=devices)


def through_a_file(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda model: through_a_file(model, weights_only=False)]
)
def test_a_copy_made_between_steps_trains_on_in_a_pipeline_of_its_own(name, make_copy):
    torch.manual_seed(0)
    case = ZOO[name]()
    with opened(case) as pipe:
        pipe.step(case.inputs, case.target)
        pipe.forward(case.inputs)
        copied = make_copy(case.model)
        other = copy.copy(case)
        other.model = copied
        for model in (case.model, copied):
            model.zero_grad()
        with opened(other) as second:
            torch.manual_seed(5)
            ours = pipe.step(case.inputs, case.target)
            torch.manual_seed(5)
            theirs = second.step(case.inputs, case.target)
    assert torch.equal(ours.loss, theirs.loss)
    for p, q in zip(case.model.parameters(), copied.parameters(), strict=True):
        assert p is not q
        assert torch.equal(p.grad, q.grad)


def test_weights_saved_between_steps_and_loaded_back_give_the_same_step_again():
    torch.manual_seed(0)
    case = ZOO["gpt, tied"]()
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = pipe.step(case.inputs, case.target).loss
        optimizer.step()
        return loss

    with opened(case) as pipe:
        step()
        saved = through_a_file({"model": case.model.state_dict(), "optimizer": optimizer.state_dict()})
        first = [step() for _ in range(2)]
        case.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        again = [step() for _ in range(2)]
    assert first == again
    assert first[0] != first[1]


def test_a_copy_of_the_model_runs_without_a_pipeline_while_one_is_open():
    torch.manual_seed(0)
    case = ZOO["sequential"]()
    with opened(case) as pipe:
        ours = pipe.step(case.inputs, case.target)
        copied = copy.deepcopy(case.model)
        assert F.mse_loss(copied(case.inputs), case.target).item() == pytest.approx(
            ours.loss.item(), rel=1e-12
        )
        assert F.mse_loss(case.model(case.inputs), case.target).item() == pytest.approx(
            ours.loss.item(), rel=1e-12
        )
