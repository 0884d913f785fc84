"""The law of execution and the clocks on NVIDIA GPUs: one GPU shared by ranks, or a GPU a rank where there are two."""

import pytest
import torch

import pipelab as pp
from tests.runtime.models import ZOO, gpt

pytestmark = pytest.mark.gpu


def placements():
    """Rank devices to try: all on one GPU, GPU and CPU mixed, and a GPU per rank if there are two."""
    yield ["cuda:0", "cuda:0"]
    yield ["cuda:0", "cpu"]
    yield ["cpu", "cuda:0"]
    if torch.cuda.device_count() > 1:
        yield ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_loss_outputs_and_gradients_equal_the_whole_models(model_name, name):
    for devices in placements():
        make, cuts = ZOO[model_name]
        model, x, y, loss_fn = make()
        schedule = pp.schedule(name, num_ranks=2, num_microbatches=4)
        with pp.Pipeline(model, pp.Split(cuts[1:2]), schedule, loss_fn=loss_fn, devices=devices) as pipe:
            for _ in range(2):
                check = pp.check_gradients(pipe, x, y)
                assert check, f"{devices}: {check}"


def test_weights_lie_where_their_stage_runs():
    model, x, y, loss_fn = gpt()
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cuda:0", "cpu"]
    ) as pipe:
        pipe.step(x, y)
        optimizer.step()
        assert model.blocks[0].mlp[0].weight.device.type == "cuda"
        assert model.blocks[3].mlp[0].weight.device.type == "cpu"
        assert pipe.forward(x).shape == (8, 6, 12)


def test_events_give_a_trace_in_which_needs_come_first():
    model, x, y, loss_fn = gpt(layers=4, width=256, heads=4)
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cuda:0", "cuda:0"]
    ) as pipe:
        pipe.step(x, y)
        trace = pipe.step(x, y).trace
    assert trace.clock == "wall" and any("share 1 GPU" in note for note in trace.notes)
    flat = [action for order in schedule.orders for action in order]
    end = {action: trace.end[i] for i, action in enumerate(flat)}
    slack = 50e-6  # events of two streams are read against one anchor each
    for i, action in enumerate(flat):
        assert trace.end[i] >= trace.start[i]
        assert all(trace.start[i] >= end[need] - slack for need in schedule.needs(action))


def test_a_gpu_is_profiled_and_serves_virtual_devices():
    model, x, y, loss_fn = gpt()
    model.cuda()
    profile = pp.profile(model, x.cuda(), y.cuda(), loss_fn=loss_fn, device="cuda:0", progress=False)
    assert profile.device == "cuda:0" and profile.seconds().min() >= 0
    schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=4)
    split = pp.balance(profile, num_stages=4)
    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=pp.virtual(4, device="cuda:0")) as pipe:
        assert pp.check_gradients(pipe, x, y)
        assert pipe.step(x, y).trace.clock == "virtual"
