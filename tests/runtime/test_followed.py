"""Memory measured while a step runs, beside what was predicted."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.runtime.models import ZOO, gpt, mlp, token_loss
from tests.runtime.test_memory import Checkpointed, Functional


def the_tours_gpt():
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=8, width=64, heads=4, vocab=128, context=32)
    ids = torch.randint(0, 128, (16, 32))
    return model, ids, ids, token_loss, ["blocks.2", "blocks.4", "blocks.6"]


def a_chain():
    torch.manual_seed(0)
    x = torch.randn(64, 128)
    return pp.zoo.mlp(layers=12, width=128), x, x, F.mse_loss, ["6", "12", "18"]


def a_resnet():
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))
    return pp.zoo.resnet(blocks=16), x, y, F.cross_entropy, ["blocks.4", "blocks.8", "blocks.12"]


def measured(
    model, x, y, loss_fn, cuts, name="1f1b", devices=None, outputs=False, num_microbatches=8, recompute="none"
):
    """The step of a pipeline that has learnt, with its memory."""
    v = 2 if name == "interleaved-1f1b" else 1
    ranks = (len(cuts) + 1) // v
    options = {"stages_per_rank": v} if v > 1 else {}
    schedule = pp.schedule(name, num_ranks=ranks, num_microbatches=num_microbatches, **options)
    devices = devices or pp.virtual(ranks)
    with pp.Pipeline(
        model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices, recompute=recompute
    ) as pipe:
        pipe.step(x, y)
        return pipe.step(x, y, memory=True, outputs=outputs)


@pytest.mark.parametrize("make", [the_tours_gpt, a_chain, a_resnet])
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved-1f1b", "zb-h1"])
def test_the_measured_peak_of_every_rank_is_within_five_percent_of_the_predicted(make, name):
    step = measured(*make(), name=name)
    assert max(map(abs, step.memory.error)) < 0.05, str(step.memory)
    assert step.memory.notes == ()
    assert any("memory" in note for note in step.trace.notes) or step.trace.clock == "virtual"


@pytest.mark.parametrize("make", [the_tours_gpt, a_chain, a_resnet])
def test_a_profile_predicts_it_before_any_step(make):
    model, x, y, loss_fn, cuts = make()
    profile = pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=1, progress=False)
    schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    predicted = pp.simulate(schedule, profile.costs(pp.Split(cuts), len(x) // 8)).report().peak_bytes
    found = measured(model, x, y, loss_fn, cuts).memory
    for peak, bytes in zip(found.rank_peaks, predicted, strict=True):
        assert peak.bytes == pytest.approx(bytes, rel=0.05)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_what_is_recomputed_is_neither_predicted_nor_held(name):
    model, x, y, loss_fn, cuts = the_tours_gpt()
    kept = measured(model, x, y, loss_fn, cuts, name=name).memory
    again = measured(model, x, y, loss_fn, cuts, name=name, recompute="all").memory
    assert again.stage_peaks[0].bytes < kept.stage_peaks[0].bytes / (5 if name == "1f1b" else 2)
    assert max(map(abs, again.error)) < 0.05, str(again)


def test_activations_come_with_forwards_and_go_with_backwards():
    model, x, y, loss_fn = mlp()
    memory = measured(model, x, y, loss_fn, ["4"], name="gpipe", num_microbatches=4).memory
    rows = memory.to_frame()
    first = rows[rows["stage"] == 0]["activations [bytes]"].tolist()
    one = first[0]
    assert first == [one, 2 * one, 3 * one, 4 * one, 3 * one, 2 * one, one, 0]
    assert one == memory.trace.bytes.activations[0]


BAG = None


class Leaky(nn.Module):
    """Keeps what it should not: a tensor of every forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        x = self.a(x)
        if BAG is not None:
            BAG.append(x.detach() * 2)
        return self.b(x)


def test_a_tensor_that_is_kept_on_purpose_is_seen(monkeypatch):
    x = torch.randn(32, 64)
    model = Leaky()
    monkeypatch.setitem(globals(), "BAG", [])
    (kept,) = measured(model, x, x, F.mse_loss, ["b"]).memory.notes
    assert kept.startswith("8 KiB that stage 0 made are still alive after the step")
    monkeypatch.setitem(globals(), "BAG", None)
    clean = measured(model, x, x, F.mse_loss, ["b"]).memory
    assert clean.notes == () and clean.left == (0, 0)


def test_following_changes_no_gradient_and_keeps_nothing_alive():
    for name in ("mlp", "gpt", "resnet", "awkward"):
        make, cuts = ZOO[name]
        model, x, y, loss_fn = make()
        again = copy.deepcopy(model)
        schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=4)
        for one, memory in ((model, False), (again, True)):
            with pp.Pipeline(one, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=["cpu"] * 4) as pipe:
                loss = [pipe.step(x, y, memory=memory).loss for _ in range(2)]
        for p, q in zip(model.parameters(), again.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad))
        assert torch.isfinite(loss[0])


def test_a_step_that_was_followed_leaves_no_tensor_behind():
    model, x, y, loss_fn = gpt()

    def alive():
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    with pp.Pipeline(model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=pp.virtual(2)) as pipe:
        pipe.step(x, y, memory=True)
        gc.collect()
        before = alive()
        memory = [pipe.step(x, y, memory=True).memory for _ in range(3)]
        gc.collect()
        assert alive() <= before and len(memory) == 3


def test_the_first_step_can_be_followed_too():
    model, x, y, loss_fn, cuts = the_tours_gpt()
    schedule = pp.schedule("zb-h1", num_ranks=4, num_microbatches=8)
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=["cpu"] * 4) as pipe:
        step = pipe.step(x, y, memory=True, outputs=False)
    assert max(map(abs, step.memory.error)) < 0.05
    assert any("memory" in note for note in step.trace.notes)


def test_outputs_that_the_caller_wants_are_told_from_activations():
    step = measured(*the_tours_gpt(), outputs=True)
    memory = step.memory
    size = step.outputs.numel() * 4
    assert memory.outputs[:, 3].max() == size and not memory.outputs[:, :3].any() and memory.left[3] == 0
    assert any("outputs are kept for the caller" in note for note in memory.notes)


def test_an_output_that_the_backward_needs_counts_as_an_activation_until_then():
    model, x, y, loss_fn, cuts = a_chain()  # mse_loss keeps the model's output
    with_outputs, without = (measured(model, x, y, loss_fn, cuts, outputs=o).memory for o in (True, False))
    assert with_outputs.stage_peaks[3].bytes == without.stage_peaks[3].bytes
    assert with_outputs.outputs[:, 3].max() == x.numel() * 4


@pytest.mark.parametrize("model", [Functional(), Checkpointed(False), Checkpointed(True)])
def test_scripted_functional_and_checkpointed_code_can_be_followed(model):
    x = torch.randn(8, 4)
    assert measured(model, x, x, F.mse_loss, ["last"], num_microbatches=4).memory.stage_peaks[0].bytes > 0


def test_in_an_overlap_it_is_looked_after_each_member():
    model, x, y, loss_fn, _ = the_tours_gpt()
    schedule = pp.schedule("dualpipev", num_ranks=4, num_microbatches=8)
    split = pp.Split([f"blocks.{n}" for n in range(1, 8)])
    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=pp.virtual(4)) as pipe:
        pipe.step(x, y)
        memory = pipe.step(x, y, memory=True, outputs=False).memory
    assert schedule.table.has_overlaps and len(memory.cell) > schedule.table.num_cells
    assert max(map(abs, memory.error)) < 0.05, str(memory)


def test_two_tied_chains_are_followed_each_by_itself():
    torch.manual_seed(0)
    x = torch.randn(16, 16)
    schedule = pp.schedule("chimera", num_ranks=4, num_microbatches=8)
    model, cuts = pp.zoo.mlp(layers=8, width=16), ["4", "8", "12"]
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=F.mse_loss, devices=pp.virtual(4)) as pipe:
        pipe.step(x, x)
        memory = pipe.step(x, x, memory=True, outputs=False).memory
    assert len(memory.stage_peaks) == 8 and min(peak.bytes for peak in memory.stage_peaks) > 0
    assert max(map(abs, memory.error)) < 0.1


def test_a_step_that_fails_while_it_is_followed_leaves_a_pipeline_that_works():
    model, x, y, loss_fn = mlp()
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)

    def fail(module, args):
        raise RuntimeError("planted")

    with pp.Pipeline(model, pp.Split(["4"]), schedule, loss_fn=loss_fn, devices=["cpu"] * 2) as pipe:
        handle = model[5].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="planted"):
            pipe.step(x, y, memory=True)
        handle.remove()
        assert pp.check_gradients(pipe, x, y)
        assert pipe.step(x, y, memory=True).memory is not None and pipe.step(x, y).memory is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
def test_on_a_gpu_the_allocator_agrees_with_what_was_followed(name):
    model, x, y, loss_fn, cuts = the_tours_gpt()
    model = model.cuda()
    step = measured(model, x.cuda(), y.cuda(), loss_fn, cuts, name=name, devices=["cuda:0"] * 4)
    (gpu,) = step.memory.allocators
    assert max(map(abs, step.memory.error)) < 0.05
    rows = step.memory.to_frame().sort_values("time [s]", kind="stable")
    assert gpu.peak >= gpu.value.max() > 0
    most = sum(peak.bytes for peak in step.memory.stage_peaks)
    assert gpu.value.max() <= 1.1 * most and len(rows) == len(gpu.value)
