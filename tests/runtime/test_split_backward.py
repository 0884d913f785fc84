"""Schedules whose backward is split in I and W: the same loss, outputs and gradients, whoever runs what when."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from pipelab.runtime import deferral
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.loss import Result
from pipelab.runtime.rank_device import rank_devices
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.threads import ThreadPool
from tests.core.conftest import make_random_schedule
from tests.runtime.models import ZOO, gpt, mlp, resnet

STAGES_PER_RANK = {
    "zb-h1": 1,
    "zb-h2": 1,
    "zb-auto": 1,
    "zb-v": 2,
    "v-min": 2,
    "v-half": 2,
    "v-zb": 2,
    "dualpipev": 2,
    "interleaved-zb": 2,
}
BY_HAND = pp.Schedule.from_csv(
    "0F0,3F0,0F1,(3F1;3I0)OVERLAP_F_B,(0F2;3W0)OVERLAP_F_B,3B1,0B0,3F2,3I2,0I1,0I2,0W2,3W2,0W1\n"
    "1F0,2F0,1F1,2F1,2B0,1I0,(1F2;2I1)OVERLAP_F_B,2F2,(1I1;1W0)OVERLAP_F_B,2I2,1B2,2W2,2W1,1W1\n",
    name="by hand",
)
SCHEDULES = [*STAGES_PER_RANK, "by hand"]
BOTH = pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])


def schedule_for(name, num_stages=4, num_microbatches=6):
    if name == "by hand":
        return BY_HAND
    v = STAGES_PER_RANK.get(name, 1)
    return pp.schedule(name, num_ranks=num_stages // v, num_microbatches=num_microbatches, stages_per_rank=v)


def pipeline(model, cuts, schedule, loss_fn, virtual=False):
    devices = pp.virtual(schedule.num_ranks) if virtual else ["cpu"] * schedule.num_ranks
    return pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices)


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found, expected, **tolerance):
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, **tolerance or {"rtol": 0, "atol": 0})


# -- the law ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", [name for name in ZOO if name != "gpt"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_law_holds_and_threads_equal_the_virtual_clock_bit_for_bit(model_name, name):
    make, cuts = ZOO[model_name]
    results = []
    for virtual in (False, True):
        model, x, y, loss_fn = make()
        with pipeline(model, cuts, schedule_for(name), loss_fn, virtual) as pipe:
            for _ in range(2):  # the step that learns, and one that knows
                if not virtual:
                    check = pp.check_gradients(pipe, x, y)
                    assert check, str(check)
                    assert not pipe.leaks
                step = pipe.step(x, y)
        results.append((step, gradients(model), dict(model.named_buffers())))
    (threads, of_threads, buffers), (alone, of_one, buffers_of_one) = results
    assert torch.equal(threads.loss, alone.loss) and torch.equal(threads.outputs, alone.outputs)
    assert_same(of_threads, of_one)
    assert_same(buffers, buffers_of_one)


def runnable(seed):
    schedule = make_random_schedule(seed)
    text, placement = schedule.to_text(), schedule.placement
    fits = placement.chains == 1 and placement.edges is None and placement.num_stages <= 6
    return (
        schedule
        if fits and schedule.has_backward and "U" not in text and ("W" in text or ";" in text)
        else None
    )


RANDOM = [schedule for seed in range(120) if (schedule := runnable(seed))][:12]


@pytest.mark.parametrize("number", range(len(RANDOM)))
def test_any_mix_in_any_order_that_can_run_is_right(number):
    schedule = RANDOM[number]
    torch.manual_seed(0)
    model = pp.zoo.mlp(layers=6, width=4).double()
    cuts = [str(2 * stage) for stage in range(1, schedule.num_stages)]
    x, y = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    with pipeline(model, cuts, schedule, F.mse_loss) as pipe:
        check = pp.check_gradients(pipe, x, y)
        assert check, f"{check}\n{schedule}"


def test_the_random_mixes_hold_every_kind():
    kinds = "".join(schedule.to_text() for schedule in RANDOM)
    assert len(RANDOM) == 12 and all(kind in kinds for kind in ("I", "W", "B", "OVERLAP"))


@BOTH
def test_dropout_is_that_of_the_unsplit_schedule(virtual):
    found = []
    for name in ("1f1b", "zb-h1"):
        model, x, y, loss_fn = gpt(dropout=0.3)
        torch.manual_seed(7)
        with pipeline(model, ["blocks.2"], schedule_for(name, 2), loss_fn, virtual) as pipe:
            pipe.step(x, y)
        found.append(gradients(model))
    assert_same(*found, rtol=1e-12, atol=1e-15)


def test_statistics_of_batchnorm_are_those_of_the_unsplit_schedule():
    found = []
    for name in ("1f1b", "zb-h1"):
        model, x, y, loss_fn = resnet()
        with pipeline(model, ["blocks.2"], schedule_for(name, 2), loss_fn) as pipe:
            pipe.step(x, y)
        found.append(dict(model.named_buffers()))
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gradients_are_those_of_the_unsplit_schedule(dtype):
    found = []
    for name in ("1f1b", "zb-h1"):
        model, x, y, loss_fn = gpt(tied=True)
        model.float()
        with (
            pipeline(model, ["blocks.2"], schedule_for(name, 2), loss_fn) as pipe,
            torch.autocast("cpu", dtype=dtype),
        ):
            pipe.step(x, y)
            model.zero_grad()
            pipe.step(x, y, scale=lambda loss: loss * 256)
        found.append(gradients(model))
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert_same(*found, rtol=1e-5, atol=1e-5)


class Checkpointing(nn.Module):
    """Runs a part of itself through torch's checkpoint."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        hidden = checkpoint(lambda x: torch.tanh(self.inner(x)), self.first(x), use_reentrant=False)
        return self.last(hidden)


def checkpointing():
    torch.manual_seed(0)
    model = nn.Sequential(*(Checkpointing() for _ in range(4))).double()
    return model, torch.randn(8, 6).double(), torch.randn(8, 6).double(), F.mse_loss


AGAIN = {
    "resnet": ZOO["resnet"],
    "tied gpt with dropout": (lambda: gpt(tied=True, dropout=0.2), ["blocks.1", "blocks.2", "blocks.3"]),
    "checkpointing": (checkpointing, ["1", "2", "3"]),
}


@pytest.mark.parametrize("model_name", AGAIN)
@pytest.mark.parametrize("name", ["zb-h1", "zb-v"])
def test_where_activations_are_computed_again_w_holds_what_it_holds_otherwise(name, model_name):
    make, cuts = AGAIN[model_name]
    model, x, y, loss_fn = make()
    schedule = schedule_for(name, 4, 5)
    devices = ["cpu"] * schedule.num_ranks
    with pp.Pipeline(
        model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices, recompute="all"
    ) as pipe:
        for _ in range(2):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
        assert all("again in the backward" in note for note in pipe.recompute_notes)
        assert not [note for note in pipe.step(x, y).trace.notes if "W holds" in note]


def test_gradients_of_several_steps_add_up():
    model, x, y, loss_fn = mlp()
    with pipeline(model, ["4"], schedule_for("zb-h1", 2), loss_fn) as pipe:
        pipe.step(x, y)
        once = gradients(model)
        pipe.step(x, y)
    assert_same(
        gradients(model), {name: 2 * gradient for name, gradient in once.items()}, rtol=1e-12, atol=1e-13
    )


class Sparse(nn.Module):
    """An embedding with sparse gradients whose weight a later stage's linear layer uses as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4, sparse=True)
        self.middle = nn.Linear(4, 4)
        self.last = nn.Tanh()

    def forward(self, ids):
        return F.linear(self.last(self.middle(self.embedding(ids))), self.embedding.weight)


@pytest.mark.parametrize("cuts", [["middle"], ["middle", "last"]])
@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_a_sparse_gradient_and_a_dense_one_of_a_tied_weight_add_up(cuts, name):
    torch.manual_seed(0)
    model, ids, y = Sparse().double(), torch.randint(0, 6, (8, 3)), torch.randn(8, 3, 6).double()
    plain = copy.deepcopy(model)
    F.mse_loss(plain(ids), y).backward()
    with pipeline(model, cuts, schedule_for(name, len(cuts) + 1, 4), F.mse_loss) as pipe:
        for _ in range(2):
            model.zero_grad()
            pipe.step(ids, y)
            assert_same(gradients(model), gradients(plain), rtol=1e-12, atol=1e-15)


# -- planted bugs -----------------------------------------------------------------------------------------------


def check_of_split():
    model, x, y, loss_fn = gpt()
    with pipeline(model, ["blocks.1", "blocks.2", "norm"], schedule_for("zb-h1"), loss_fn) as pipe:
        return pp.check_gradients(pipe, x, y)


def test_a_weight_gradient_that_is_left_out_is_seen(monkeypatch):
    honest = SuspendedStages.backward_weight

    def forgetful(self, stage, microbatch):
        if (stage, microbatch) != (2, 3):
            honest(self, stage, microbatch)

    monkeypatch.setattr(SuspendedStages, "backward_weight", forgetful)
    check = check_of_split()
    assert not check and check.worst.name.startswith("blocks.2")


def test_a_weight_gradient_that_is_added_twice_is_seen(monkeypatch):
    honest = deferral.WeightGradients.compute

    def eager(self):
        again = copy.copy(self._waiting)
        honest(self)
        self._waiting = again
        honest(self)

    monkeypatch.setattr(deferral.WeightGradients, "compute", eager)
    assert not check_of_split()


def test_a_w_of_another_microbatch_is_seen(monkeypatch):
    """What it left is still there when the step ends."""

    def confused(self, stage, microbatch):
        waiting = self.microbatches[0].context.weight_gradients
        waiting[stage, 0].compute()

    monkeypatch.setattr(SuspendedStages, "backward_weight", confused)
    assert not check_of_split()


def test_a_gradient_from_another_microbatchs_input_is_seen(monkeypatch):
    honest, last = deferral.WeightGradients.put_off, {}

    def mixed(self, operation, weight, bias, x, gy):
        honest(self, operation, weight, bias, last.get(x.shape, x), gy)
        last[x.shape] = x

    monkeypatch.setattr(deferral.WeightGradients, "put_off", mixed)
    assert not check_of_split()


# -- what runs when ---------------------------------------------------------------------------------------------


@BOTH
def test_hooks_of_modules_run_once_a_microbatch(virtual):
    model, x, y, loss_fn = gpt()
    counts = {}

    def count(name):
        counts[name] = counts.get(name, 0) + 1

    for module_name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda *_, name=module_name: count(f"{name} before"))
            module.register_forward_hook(lambda *_, name=module_name: count(f"{name} after"))
            module.register_full_backward_pre_hook(
                lambda *_, name=module_name: count(f"{name} backward before")
            )
            module.register_full_backward_hook(lambda *_, name=module_name: count(f"{name} backward"))
    with pipeline(model, ["blocks.1", "blocks.2", "norm"], schedule_for("zb-h1"), loss_fn, virtual) as pipe:
        pipe.step(x, y)
        counts.clear()
        pipe.step(x, y)
    assert set(counts.values()) == {6 if not virtual else counts["head before"]} and "head backward" in counts


@BOTH
def test_hooks_on_a_weight_see_its_gradient_once_a_microbatch(virtual):
    model, x, y, loss_fn = mlp()
    plain = copy.deepcopy(model)
    seen = []
    model[2].weight.register_hook(lambda gradient: seen.append(gradient) or 3 * gradient)
    plain[2].weight.register_hook(lambda gradient: 3 * gradient)
    loss_fn(plain(x), y).backward()
    with pipeline(model, ["2", "4", "6"], schedule_for("zb-h1", 4, 5), loss_fn, virtual) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        seen.clear()
        pipe.step(x, y)
    assert len(seen) == 5
    assert_same(gradients(model), gradients(plain), rtol=1e-12, atol=1e-13)


def test_weights_get_nothing_in_i_and_inputs_nothing_in_w(monkeypatch):
    found = []
    for method in ("backward_input", "backward_weight"):
        honest = getattr(SuspendedStages, method)

        def watched(self, stage, microbatch, honest=honest, method=method):
            before = copy.copy(model[4].weight.grad)
            links = [link for link in self.microbatches[microbatch].links if link.target == 2]
            had = [link.leaf is not None and link.leaf.grad is not None for link in links]
            honest(self, stage, microbatch)
            if stage == 2:
                has = [link.leaf is not None and link.leaf.grad is not None for link in links]
                now = model[4].weight.grad
                same = now is before if before is None or now is None else torch.equal(now, before)
                found.append((method, same, had, has))

        monkeypatch.setattr(SuspendedStages, method, watched)
    model, x, y, loss_fn = mlp()
    with pipeline(model, ["2", "4", "6"], schedule_for("zb-h1", 4, 1), loss_fn, virtual=True) as pipe:
        pipe.step(x, y)
    assert found[0] == ("backward_input", True, [False], [True])
    assert found[1][:2] == ("backward_weight", False)


def test_activations_die_with_the_last_action_that_needs_them(monkeypatch):
    """With the collector off: what W does not need dies in I, the rest in W."""
    alive = {}

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            product, hidden = Marks.apply(self.linear(x)), None
            hidden = torch.tanh(product)
            alive[threading.get_ident()] = weakref.ref(hidden)
            return hidden

    class Marks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marked = torch.ones(1)
            needed_by_i.add(ctx.marked)
            return x * 1

        @staticmethod
        def backward(ctx, gy):
            gy = gy * 1
            needed_by_w.add(gy)
            return gy

    needed_by_i, needed_by_w = weakref.WeakSet(), weakref.WeakSet()
    counts = []
    for method in ("backward_input", "backward_weight"):
        honest = getattr(SuspendedStages, method)

        def watched(self, stage, microbatch, honest=honest, method=method):
            before = len(needed_by_i), len(needed_by_w)
            honest(self, stage, microbatch)
            counts.append((method, len(needed_by_i) - before[0], len(needed_by_w) - before[1]))

        monkeypatch.setattr(SuspendedStages, method, watched)
    torch.manual_seed(0)
    model = nn.Sequential(Watched(), Watched(), Watched()).double()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    gc.disable()
    try:
        with pipeline(model, ["1", "2"], schedule_for("zb-h1", 3, 4), F.mse_loss, virtual=True) as pipe:
            pipe.step(x, y, outputs=False)
    finally:
        gc.enable()
    assert set(counts) == {("backward_input", -1, 1), ("backward_weight", 0, -1)}
    assert not len(needed_by_i) and not len(needed_by_w)


# -- leaks, empty stages, errors --------------------------------------------------------------------------------


class Branching(nn.Module):
    """Its third module takes a value and a weight of the first only when it is told to."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.branch = False

    def forward(self, x):
        first = self.a(x)
        third = self.c(self.b(first))
        return third * first + F.linear(third, self.a.weight) if self.branch else third


@BOTH
def test_a_value_that_crosses_unseen_is_repaired_exactly(virtual):
    torch.manual_seed(0)
    model, x, y = Branching().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pipeline(model, ["b", "c"], schedule_for("zb-h1", 3), F.mse_loss, virtual) as pipe:
        assert pp.check_gradients(pipe, x, y)
        for branch in (True, False, True):
            model.branch = branch
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


def test_w_waits_for_a_backward_that_leaks_into_its_stage():
    """Both add to the gradients of the stage's weights; done at the same time, one of them would be lost."""
    model, pool = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ThreadPool()
    context = StepContext(CutModel(model, ("1",), rank_devices(["cpu"] * 2), pool, 1), 1, frozenset({(0, 0)}))
    stages = SuspendedStages([context], [lambda stage_now: Result(None, None, None)], [0])
    worker = threading.Thread(target=stages.backward_weight, args=(0, 0))
    with context.writing(range(2)):
        worker.start()
        worker.join(0.05)
        assert worker.is_alive()
    worker.join(10)
    assert not worker.is_alive()
    pool.close()


@BOTH
def test_an_empty_stage_has_nothing_to_do_in_i_and_w(virtual):
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            first = self.a(x)
            return self.c(self.b(first) if x[0, 0] > 0 else first)

    torch.manual_seed(0)
    model, x, y = Choosy().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    x[:, 0] = torch.tensor([1, 1, -1, -1, 1, 1, -1, -1])
    plain = copy.deepcopy(model)
    for part, goal in zip(x.split(2), y.split(2), strict=True):
        (F.mse_loss(plain(part), goal) / 4).backward()
    with pipeline(model, ["b", "c"], schedule_for("zb-h1", 3, 4), F.mse_loss, virtual) as pipe:
        for _ in range(2):
            model.zero_grad()
            pipe.step(x, y)
            assert_same(gradients(model), gradients(plain), rtol=1e-12, atol=1e-15)


@BOTH
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, StopIteration])
def test_an_error_in_w_is_named_and_leaves_no_gradients_and_the_next_step_is_right(
    virtual, error, monkeypatch
):
    model, x, y, loss_fn = mlp()
    with pipeline(model, ["2", "4", "6"], schedule_for("zb-h1"), loss_fn, virtual) as pipe:
        pipe.step(x, y)
        model.zero_grad()
        with monkeypatch.context() as patch:

            def fail(*_):
                raise error("boom")

            patch.setattr(deferral, "accumulate", fail)
            with pytest.raises(error, match="boom") as caught:
                pipe.step(x, y)
        assert any("the backward of the weights of stage" in note for note in caught.value.__notes__)
        assert all(gradient is None for gradient in gradients(model).values())
        del caught
        assert pp.check_gradients(pipe, x, y)
    assert F.linear is torch._C._nn.linear


def test_an_error_in_i_is_named():
    model, x, y, loss_fn = mlp()

    def fail(*_):
        raise RuntimeError("boom")

    model[4].register_full_backward_hook(fail)
    with (
        pipeline(model, ["2", "4", "6"], schedule_for("zb-h1"), loss_fn) as pipe,
        pytest.raises(RuntimeError, match="boom") as caught,
    ):
        pipe.step(x, y)
    assert any(
        "2I0: the backward of the inputs of stage 2, micro-batch 0" in note for note in caught.value.__notes__
    )


# -- what is said -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """An LSTM, whose weights W does not hold, and a linear layer behind it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.lstm(self.first(x))[0])


@BOTH
def test_the_trace_says_where_w_holds_little(virtual):
    torch.manual_seed(0)
    model, x, y = Recurrent().double(), torch.randn(8, 3, 4).double(), torch.randn(8, 3, 4).double()
    with pipeline(model, ["lstm"], schedule_for("zb-h1", 2, 4), F.mse_loss, virtual) as pipe:
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y)
            (note,) = (note for note in pipe.step(x, y).trace.notes if "W holds" in note)
            share = 36 / (36 + 4 * 8 * (4 + 8 + 2))
            held = f"W holds the gradients of 2 of 6 parameters ({100 * share:.1f} % of the bytes)"
            assert note == f"stage 1: {held}; the others are made in I"


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("model_name", ["awkward", "tied gpt"])
def test_it_says_nothing_where_w_holds_most_or_there_is_none(name, model_name):
    make, cuts = ZOO[model_name]
    model, x, y, loss_fn = make()
    # The last stage of the tied GPT: a layer norm, and the copy of a weight of the first.
    cuts = ["blocks.1", "blocks.2", "norm"] if model_name == "tied gpt" else cuts
    with pipeline(model, cuts, schedule_for(name, 4, 4), loss_fn) as pipe:
        assert not [note for note in pipe.step(x, y).trace.notes if "W holds" in note]


# -- without an engine ------------------------------------------------------------------------------------------


def test_a_single_microbatch_may_be_run_action_by_action():
    """As a profile does it: every backward split, or none of them, in turn."""
    model, x, y, loss_fn = gpt()
    plain = copy.deepcopy(model)
    loss_fn(plain(x), y).backward()
    pool = ThreadPool()
    cut = CutModel(model, ("blocks.1", "blocks.2"), rank_devices(["cpu"]) * 3, pool, 1)

    def call(stage_now):
        return Result(loss_fn(model(x), y), None, None)

    for split in (frozenset(), frozenset((stage, 0) for stage in range(3))) * 2:
        stages = SuspendedStages([StepContext(cut, 1, split)], [call], [0])
        model.zero_grad()
        cut.randomness.begin_step()
        with stages.running():
            for stage in range(3):
                stages.forward(stage, 0)
            for stage in (2, 1, 0):
                if split:
                    stages.backward_input(stage, 0)
                    stages.backward_weight(stage, 0)
                else:
                    stages.backward(stage, 0)
        cut.randomness.end_step()
        assert_same(gradients(model), gradients(plain), rtol=1e-12, atol=1e-13)
    pool.close()
