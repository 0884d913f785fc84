"""The law of execution and the clocks on NVIDIA GPUs: one GPU shared by ranks, or a GPU a rank where there are two."""

import pytest
import torch
import torch.nn.functional as F

import pipelab as pp
from tests.runtime.models import ZOO, gpt
from tests.runtime.test_kept import Recomputed

pytestmark = pytest.mark.gpu


def placements():
    """Rank devices to try: all on one GPU, GPU and CPU mixed, and a GPU per rank if there are two."""
    yield ["cuda:0", "cuda:0"]
    yield ["cuda:0", "cpu"]
    yield ["cpu", "cuda:0"]
    if torch.cuda.device_count() > 1:
        yield ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("interleaved-1f1b", {"stages_per_rank": 2}),
        ("zb-h1", {}),
        ("zb-v", {"stages_per_rank": 2}),
        ("chimera", {}),
    ],
)
def test_ranks_that_share_a_gpu_keep_the_law_under_every_kind_of_schedule(name, options):
    model, x, y, loss_fn = gpt(layers=6)
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=8, **options)
    cuts = ["blocks.1", "blocks.3", "blocks.5"][: schedule.num_model_stages - 1]
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=["cuda:0"] * 2) as pipe:
        for _ in range(3):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


class Masked(torch.nn.Module):
    """Masks and positions, without gradients, pass from stage to stage unseen; each is freed while others are made."""

    def __init__(self, width=256, layers=8):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))

    def forward(self, x):
        mask = (x.detach() > 0).double()
        for layer in self.layers:
            x = layer(x) * mask + x
            mask = mask.roll(1, 0) * 0.5 + 0.25
        return x


def test_memory_of_values_without_gradients_is_not_handed_out_while_another_rank_reads_it():
    torch.manual_seed(0)
    model = Masked().double()
    x, y = torch.randn(64, 256).double(), torch.randn(64, 256).double()
    schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=16)
    cuts = pp.Split(["layers.2", "layers.4", "layers.6"])
    loss_fn = torch.nn.functional.mse_loss
    with pp.Pipeline(model, cuts, schedule, loss_fn=loss_fn, devices=["cuda:0"] * 4) as pipe:
        for _ in range(10):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
            assert torch.allclose(pipe.forward(x).cpu(), model(x.cuda()).detach().cpu())


def test_how_often_a_step_waits_for_the_gpu_does_not_depend_on_the_micro_batches(monkeypatch):
    waits = []
    for kind, name in ((torch.cuda, "synchronize"), (torch.cuda.Stream, "synchronize")):
        plain = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *args, plain=plain: (waits.append(1), plain(*args))[1])
    counts = []
    for m in (2, 8):
        model, x, y, loss_fn = gpt()
        schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=m)
        with pp.Pipeline(
            model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cuda:0"] * 2
        ) as pipe:
            pipe.step(x, y)
            waits.clear()
            pipe.step(x, y)
            counts.append(len(waits))
    assert counts[0] == counts[1] > 0


def test_virtual_devices_on_a_gpu_run_one_action_at_a_time():
    model, x, y, loss_fn = gpt(layers=4, width=128, heads=4)
    schedule = pp.schedule("zb-h1", num_ranks=2, num_microbatches=8)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=pp.virtual(2, device="cuda:0")
    ) as pipe:
        assert pp.check_gradients(pipe, x, y)
        assert len({id(stream) for rank in pipe._runner.ranks for stream in rank._streams}) == 1
        assert pipe.step(x, y).trace.clock == "virtual"


def test_a_profile_of_ranks_that_share_a_gpu_is_refused():
    model, x, y, loss_fn = gpt()
    with pytest.raises(pp.PipelabError, match="only the CPU is shared"):
        pp.profile(model.cuda(), x.cuda(), y.cuda(), loss_fn=loss_fn, device="cuda:0", ranks=2)


def test_stages_that_run_again_in_the_backward_draw_the_same_numbers_and_count_statistics_once():
    for devices in placements():
        for model, x, y, loss_fn in (gpt(dropout=0.2), ZOO["resnet"][0]()):
            schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
            with pp.Pipeline(
                model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=devices, recompute="all"
            ) as pipe:
                for _ in range(3):
                    check = pp.check_gradients(pipe, x, y)
                    assert check, f"{devices}: {check}"
                assert all("again in the backward" in note for note in pipe.recompute_notes)


def test_a_second_forward_in_the_backward_reads_what_its_own_micro_batch_has_kept():
    for devices in placements():
        model, x, y = Recomputed().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
        schedule = pp.schedule("gpipe", num_ranks=2, num_microbatches=4)
        with pp.Pipeline(model, pp.Split(["c"]), schedule, loss_fn=F.mse_loss, devices=devices) as pipe:
            for _ in range(3):
                check = pp.check_gradients(pipe, x, y)
                assert check, f"{devices}: {check}"
