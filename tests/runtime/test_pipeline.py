"""The law of execution: whatever the model, split and schedule, the pipeline computes what the whole model does."""

import copy
import gc
import threading
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.runtime.models import ZOO, awkward, gpt, mlp, resnet, token_loss

SCHEDULES = {
    "naive": {},
    "gpipe": {},
    "1f1b": {},
    "eager-1f1b": {},
    "interleaved-1f1b": {"stages_per_rank": 2},
    "looped-bfs": {"stages_per_rank": 2},
    "hanayo": {"stages_per_rank": 2},
}


def schedule_for(name, num_stages, num_microbatches):
    v = SCHEDULES[name].get("stages_per_rank", 1)
    return pp.schedule(name, num_ranks=num_stages // v, num_microbatches=num_microbatches, **SCHEDULES[name])


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def run(model, cuts, schedule, x, y, loss_fn, devices, steps=1):
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        for _ in range(steps):
            model.zero_grad()
            step = pipe.step(x, y)
    return step, gradients(model)


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_microbatches", [1, 3, 8])
def test_loss_outputs_and_gradients_equal_the_whole_models(model_name, name, num_microbatches):
    make, cuts = ZOO[model_name]
    model, x, y, loss_fn = make()
    schedule = schedule_for(name, 4, num_microbatches)
    devices = ["cpu"] * schedule.num_ranks
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        for _ in range(2):  # the step that learns, and one that knows
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
            assert not pipe.leaks


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", SCHEDULES)
def test_threaded_equals_virtual_bit_for_bit(model_name, name):
    make, cuts = ZOO[model_name]
    results = []
    for virtual in (False, True):
        model, x, y, loss_fn = make()
        schedule = schedule_for(name, 4, 4)
        devices = pp.virtual(schedule.num_ranks) if virtual else ["cpu"] * schedule.num_ranks
        step, found = run(model, cuts, schedule, x, y, loss_fn, devices, steps=2)
        results.append((step.loss, step.outputs, found, dict(model.named_buffers())))
    (loss_a, out_a, grad_a, buffers_a), (loss_b, out_b, grad_b, buffers_b) = results
    assert torch.equal(loss_a, loss_b) and torch.equal(out_a, out_b)
    for name in grad_a:
        assert (grad_a[name] is None) == (grad_b[name] is None)
        assert grad_a[name] is None or torch.equal(grad_a[name], grad_b[name]), name
    assert all(torch.equal(value, buffers_b[name]) for name, value in buffers_a.items())


def test_batchnorm_statistics_are_those_of_plain_accumulation():
    model, x, y, loss_fn = resnet()
    plain = copy.deepcopy(model)
    for part, goal in zip(x.split(2), y.split(2), strict=True):
        (loss_fn(plain(part), goal) * 0.25).backward()
    run(model, ["blocks.2"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_dropout_does_not_depend_on_schedule_or_clock(name):
    found = []
    for schedule, devices in (
        (schedule_for("gpipe", 4, 4), pp.virtual(4)),
        (schedule_for(name, 4, 4), ["cpu"] * schedule_for(name, 4, 4).num_ranks),
    ):
        model, x, y, loss_fn = gpt(dropout=0.3)
        torch.manual_seed(7)
        found.append(
            run(model, ["blocks.1", "blocks.2", "norm"], schedule, x, y, loss_fn, devices, steps=2)[1]
        )
    # bit for bit, unless the micro-batches' gradients are summed in another order
    rtol, atol = (1e-5, 1e-7) if name == "looped-bfs" else (0, 0)
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=rtol, atol=atol)


def test_dropout_equals_plain_accumulation_with_the_same_random_state_and_differs_from_step_to_step():
    model, x, y, loss_fn = gpt(dropout=0.3)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        for _ in range(2):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
            assert "dropout" in check.reference
        assert pipe.step(x, y).loss != pipe.step(x, y).loss


def test_a_model_without_dropout_leaves_the_random_state_alone():
    model, x, y, loss_fn = mlp()
    before = torch.get_rng_state()
    run(model, ["2"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"], steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_switched_on_after_an_evaluation_is_noticed():
    model, x, y, loss_fn = gpt(dropout=0.5)
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        model.eval()
        assert torch.equal(pipe.step(x, y).loss, pipe.step(x, y).loss)
        model.train()
        check = pp.check_gradients(pipe, x, y)
        assert check and "dropout" in check.reference


def test_gradients_accumulate_until_they_are_zeroed():
    model, x, y, loss_fn = mlp()
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        pipe.step(x, y)
        once = gradients(model)
        pipe.step(x, y)
    assert all(torch.allclose(p.grad, 2 * once[name], rtol=1e-12) for name, p in model.named_parameters())


def test_training_with_optimizer_and_clipping_follows_the_whole_model():
    model, x, y, loss_fn = gpt()
    plain = copy.deepcopy(model)
    mine, theirs = (
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        torch.optim.AdamW(plain.parameters(), lr=1e-3),
    )
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        for _ in range(3):
            mine.zero_grad()
            theirs.zero_grad()
            step, loss = pipe.step(x, y), loss_fn(plain(x), y)
            loss.backward()
            assert torch.allclose(step.loss, loss.detach(), rtol=1e-9)
            for parameters, optimizer in ((model.parameters(), mine), (plain.parameters(), theirs)):
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-9), name


def test_scale_reaches_the_gradients_but_not_the_loss():
    model, x, y, loss_fn = mlp()
    step, plain = run(model, ["4"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    model.zero_grad()
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        scaled = pipe.step(x, y, scale=lambda loss: loss * 1024)
    assert torch.equal(scaled.loss, step.loss)
    assert all(torch.allclose(p.grad, 1024 * plain[name], rtol=1e-12) for name, p in model.named_parameters())


def test_a_token_mean_is_right_with_loss_weight_and_wrong_without():
    torch.manual_seed(0)
    model, x, y, _ = gpt()
    y[:4, 1:] = -100  # the first half of the batch has far fewer valid tokens

    def loss_fn(logits, target):
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    loss_fn(model(x), y).backward()
    whole = gradients(model)
    model.zero_grad()
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 2), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        step = pipe.step(x, y, loss_weight=(y != -100).sum(1))
        assert torch.allclose(step.loss, loss_fn(model(x), y), rtol=1e-12)
        assert all(
            torch.allclose(p.grad, whole[n], rtol=1e-9, atol=1e-12) for n, p in model.named_parameters()
        )
        assert not torch.allclose(pipe.step(x, y).loss, step.loss, rtol=1e-3)


def test_a_sum_needs_no_weights():
    model, x, y, _ = mlp()

    def total(output, target):
        return F.mse_loss(output, target, reduction="sum")

    total(model(x), y).backward()
    whole = gradients(model)
    model.zero_grad()
    with pp.Pipeline(
        model,
        pp.Split(["4"]),
        schedule_for("1f1b", 2, 3),
        loss_fn=total,
        reduction="sum",
        devices=["cpu", "cpu"],
    ) as pipe:
        pipe.step(x, y)
    assert all(torch.allclose(p.grad, whole[name], rtol=1e-12) for name, p in model.named_parameters())


def test_a_model_may_compute_its_own_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x, labels):
            return {"loss": F.mse_loss(self.b(self.a(x)), labels), "extra": x}

    torch.manual_seed(0)
    model, x, labels = Own().double(), torch.randn(6, 4).double(), torch.randn(6, 1).double()
    model(x, labels)["loss"].backward()
    whole = gradients(model)
    model.zero_grad()
    with pp.Pipeline(model, pp.Split(["b"]), schedule_for("1f1b", 2, 3), devices=["cpu", "cpu"]) as pipe:
        step = pipe.step({"x": x, "labels": labels})
    assert step.outputs["extra"].shape == x.shape and step.outputs["loss"].shape == (3,)
    assert all(torch.allclose(p.grad, whole[name], rtol=1e-12) for name, p in model.named_parameters())


def test_autocast_of_the_caller_holds_in_every_stage():
    model, x, y, loss_fn = gpt(tied=True)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_fn(model(x), y).backward()
    whole = gradients(model)
    model.zero_grad()
    with (
        pp.Pipeline(
            model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 1), loss_fn=loss_fn, devices=["cpu", "cpu"]
        ) as pipe,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        step = pipe.step(x, y)
        assert step.outputs.dtype == torch.bfloat16 and not pipe.leaks
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, whole[name], rtol=2e-2, atol=1e-3), name


def test_forward_gives_the_models_outputs_without_gradients():
    model, x, _, loss_fn = gpt()
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        for batch in (x, x[:3], x[:1]):  # a last, smaller batch too
            logits = pipe.forward(batch)
            assert torch.allclose(logits, model(batch), rtol=1e-12) and not logits.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_inputs_that_require_gradients_receive_them():
    model, x, y, loss_fn = mlp()
    x.requires_grad_()
    whole = torch.autograd.grad(loss_fn(model(x), y), x)[0]
    run(model, ["4"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    assert torch.allclose(x.grad, whole, rtol=1e-12)


def test_a_saved_plan_runs_the_same_thing(tmp_path):
    model, x, y, loss_fn = mlp()
    plan = pp.Plan(pp.Split(["4"]), schedule_for("1f1b", 2, 4), devices=["cpu", "cpu"])
    plan.save(tmp_path / "plan.json")
    found = []
    for given in (plan, pp.load(tmp_path / "plan.json")):
        model.zero_grad()
        with pp.Pipeline(model, given, loss_fn=loss_fn) as pipe:
            pipe.step(x, y)
            assert pipe.plan == plan
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_auto_prints_its_choice_and_keeps_it_in_the_plan(capsys):
    model, _, _, loss_fn = mlp()
    with pp.Pipeline(model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn) as pipe:
        assert capsys.readouterr().out.startswith("pipelab chose devices: ")
        assert pipe.plan.devices != "auto" and pipe.devices == pipe.plan.devices


def test_the_model_carries_nothing_between_steps(tmp_path):
    model, x, y, loss_fn = gpt(tied=True)
    keys, apply = list(model.state_dict()), torch.autograd.Function.__dict__["apply"]
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        pipe.step(x, y)
        copied = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        assert list(model.state_dict()) == keys == list(copied.state_dict())
        for module in model.modules():
            assert not module._forward_pre_hooks and not module._forward_hooks
            assert "forward" not in vars(module)
        assert torch.autograd.Function.__dict__["apply"] is apply


def test_optimizers_made_before_and_after_see_the_same_parameters():
    model, x, y, loss_fn = mlp()
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        after = torch.optim.SGD(model.parameters(), lr=0.1)
        pipe.step(x, y)
    assert all(
        a is b for a, b in zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True)
    )
    assert all(p.grad is not None for p in before.param_groups[0]["params"])


def test_activations_die_with_their_backward_without_the_garbage_collector():
    model, x, y, loss_fn = gpt()
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            y = x * 1
            seen.append(weakref.ref(y))
            return y

    model.blocks.insert(1, Spy())
    with pp.Pipeline(
        model, pp.Split(["blocks.3"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        pipe.step(x, y)
        seen.clear()
        gc.disable()
        try:
            pipe.step(x, y)
            assert len(seen) == 4 and all(ref() is None for ref in seen)
        finally:
            gc.enable()


def test_threads_in_use_are_bounded_by_the_unfinished_forwards():
    model, x, y, loss_fn = mlp()
    x, y = x.repeat(8, 1), y.repeat(8, 1)
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 64), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        before = threading.active_count()
        pipe.step(x, y)
        first = threading.active_count()
        for _ in range(5):
            pipe.step(x, y)
        assert threading.active_count() - before <= 6  # 2 ranks, at most 2 forwards under way, and some slack
        assert threading.active_count() <= first + 2


def test_set_up_many_times_and_stepped_many_times_the_process_stays_the_same():
    model, x, y, loss_fn = mlp()
    before = threading.active_count()
    for _ in range(50):
        with pp.Pipeline(
            model, pp.Split(["4"]), schedule_for("1f1b", 2, 2), loss_fn=loss_fn, devices=["cpu", "cpu"]
        ) as pipe:
            pipe.step(x, y)
    assert threading.active_count() == before
    tensors = []
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 2), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        for _ in range(200):
            model.zero_grad()
            pipe.step(x, y)
            tensors.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert tensors[-1] <= tensors[5] + 5


def test_a_pipeline_that_is_dropped_takes_its_threads_with_it():
    model, x, y, loss_fn = mlp()
    before = threading.active_count()
    for _ in range(20):
        pipe = pp.Pipeline(
            model, pp.Split(["4"]), schedule_for("1f1b", 2, 2), loss_fn=loss_fn, devices=["cpu", "cpu"]
        )
        pipe.step(x, y)
    del pipe
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_trace_holds_every_action_in_the_schedules_order_and_respects_its_needs():
    model, x, y, loss_fn = gpt()
    schedule = schedule_for("1f1b", 2, 4)
    step, _ = run(model, ["blocks.2"], schedule, x, y, loss_fn, ["cpu", "cpu"])
    trace = step.trace
    assert trace.clock == "wall" and trace.devices == ("cpu", "cpu")
    flat = [action for order in schedule.orders for action in order]
    end = {action: trace.end[i] for i, action in enumerate(flat)}
    for i, action in enumerate(flat):
        assert trace.end[i] >= trace.start[i] >= 0
        assert all(trace.start[i] >= end[need] for need in schedule.needs(action))


def test_a_virtual_trace_is_the_schedule_at_the_measured_medians():
    model, x, y, loss_fn = gpt()
    step, _ = run(
        model, ["blocks.1", "blocks.2", "norm"], schedule_for("1f1b", 4, 4), x, y, loss_fn, pp.virtual(4)
    )
    trace = step.trace
    assert trace.clock == "virtual" and trace.num_ranks == 4
    rows = trace.to_frame()
    lengths = (rows["end"] - rows["start"]).groupby([rows["kind"], rows["stage"]])
    assert lengths.ngroups == 8 and (lengths.max() - lengths.min()).max() < 1e-9
    assert trace.report().bubble_fraction > 0


def test_measured_bytes_are_those_of_the_profile():
    model, x, y, loss_fn = gpt()
    split = pp.Split(["blocks.2"])
    step, _ = run(model, split.cuts, schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    predicted = pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=1, progress=False).costs(split).bytes
    assert step.trace.bytes.parameters == predicted.parameters
    assert step.trace.bytes.outputs == pytest.approx(predicted.outputs)
    for mine, theirs in zip(step.trace.bytes.activations, predicted.activations, strict=True):
        assert mine == pytest.approx(theirs, rel=0.1)  # the profile's layers receive copies of their own


def test_a_step_prints_its_loss_and_its_trace():
    model, x, y, loss_fn = mlp()
    step, _ = run(model, ["4"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    assert str(step).startswith("loss ") and "wall" in str(step)
    assert "<table" in step._repr_html_()


def test_a_loss_that_is_not_finite_is_shown_with_its_microbatch():
    model, x, y, loss_fn = mlp()
    y[5] = float("nan")
    step, _ = run(model, ["4"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"])
    assert "not finite, first in micro-batch 2" in str(step)


def test_outputs_can_be_left_out():
    model, x, y, loss_fn = mlp()
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        assert pipe.step(x, y, outputs=False).outputs is None


def test_progress_is_reported_up_to_the_last_action():
    model, x, y, loss_fn = mlp()
    seen = []
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule_for("1f1b", 2, 4), loss_fn=loss_fn, devices=["cpu", "cpu"]
    ) as pipe:
        pipe.step(x, y, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)


def test_the_fp32_model_agrees_within_rounding():
    model, x, y, _ = gpt()
    with pp.Pipeline(
        model.float(),
        pp.Split(["blocks.2"]),
        schedule_for("gpipe", 2, 4),
        loss_fn=token_loss,
        devices=["cpu", "cpu"],
    ) as pipe:
        check = pp.check_gradients(pipe, x, y)
    assert check and check.worst.absolute < 1e-5


def test_many_inputs_and_awkward_models_train():
    model, x, y, loss_fn = awkward()
    step, found = run(model, ["parts.2"], schedule_for("1f1b", 2, 4), x, y, loss_fn, ["cpu", "cpu"], steps=2)
    assert found["unused.weight"] is None and found["frozen"] is None
    assert found["scale"] is not None and step.outputs.shape == (8, 6)
