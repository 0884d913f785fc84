"""Stages whose activations are dropped and computed again: the same numbers, fewer bytes, nothing done twice."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from tests.runtime.models import OwnStatistics, gpt, resnet
from tests.zoo.law import Case, assert_law
from tests.zoo.models import ZOO

SCHEDULES = {
    name: pp.schedule(name, num_ranks=ranks, num_microbatches=4)
    for name, ranks in {"1f1b": 4, "gpipe": 4, "zb-h1": 4, "zb-v": 2, "chimera": 4}.items()
}


def recomputed(case, recompute="all"):
    case.options = {"recompute": recompute}
    return case


def opened(model, cuts=("blocks.1",), recompute="all", m=4, schedule="1f1b", **options):
    options = {"loss_fn": F.mse_loss, "devices": ["cpu"] * (len(cuts) + 1)} | options
    schedule = pp.schedule(schedule, num_ranks=len(cuts) + 1, num_microbatches=m)
    return pp.Pipeline(model, pp.Split(list(cuts)), schedule, recompute=recompute, **options)


def data(width=4):
    torch.manual_seed(0)
    return torch.randn(8, width).double(), torch.randn(8, width).double()


class Block(nn.Module):
    """Two layers with much between them; subclasses do something that matters when it is done twice."""

    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.tanh(self.a(x)).exp().sin())


class Blocks(nn.Module):
    def __init__(self, make=Block, count=3):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(make() for _ in range(count))
        self.double()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "name", ["gpt with dropout", "transformer encoder", "mixture of experts", "recurrent"]
)
def test_gradients_are_those_of_the_whole_model(name, schedule):
    torch.manual_seed(0)
    devices = pp.virtual(4) if schedule == "gpipe" else None
    pipe = assert_law(recomputed(ZOO[name]()), SCHEDULES[schedule], devices=devices)
    assert any("again in the backward" in note for note in pipe.recompute_notes)


def test_batchnorm_counts_each_micro_batch_once():
    model, x, y, loss_fn = resnet()
    case = Case(model, x, y, loss_fn, ["blocks.1", "blocks.2", "blocks.3"], whole=False)
    pipe = assert_law(recomputed(case), SCHEDULES["1f1b"])
    assert all(f"blocks.{stage} runs again" in pipe.recompute_notes[stage] for stage in range(4))
    assert model.blocks[0].norm1.num_batches_tracked == 3 * 4


def test_statistics_of_a_norm_that_somebody_wrote_are_updated_once():
    x, y = (tensor.float() for tensor in data())
    model = nn.Sequential(OwnStatistics(), nn.Linear(4, 4), OwnStatistics(), nn.Linear(4, 4))
    whole = copy.deepcopy(model)
    for part in x.chunk(4):
        whole(part)
    with opened(model, cuts=["2"]) as pipe:
        pipe.step(x, y)
    assert all(map(torch.equal, model.buffers(), whole.buffers()))


def test_only_the_stages_that_were_named_run_again():
    model, x, y, loss_fn = gpt()
    with opened(model, ["blocks.1", "blocks.2"], recompute=[1], loss_fn=loss_fn) as pipe:
        assert pipe.recompute_notes == ()
        pipe.step(x, y)
        assert pipe.recompute_notes == ("Stage 1: blocks.1 runs again in the backward.",)


def test_fewer_bytes_are_kept_and_the_trace_says_so():
    kept = {}
    for recompute in ("none", [1], "all"):
        model, x, y, loss_fn = gpt()
        with opened(model, ["blocks.1", "blocks.2"], recompute=recompute, loss_fn=loss_fn) as pipe:
            pipe.step(x, y)
            kept[str(recompute)] = pipe._cut.stage_bytes().activations
    none, one, everything = kept.values()
    assert (one[0], one[2]) == (none[0], none[2])
    assert one[1] < 0.2 * none[1]
    assert all(a < 0.5 * b for a, b in zip(everything, none, strict=True))


def test_not_even_the_first_step_holds_what_is_dropped():
    peaks = {}
    for recompute in ("none", "all"):
        model, x, y, loss_fn = gpt()
        with opened(model, ["blocks.2"], recompute, m=8, schedule="gpipe", loss_fn=loss_fn) as pipe:
            peaks[recompute] = [pipe.step(x, y, memory=True).memory.activations.max(0) for _ in range(2)]
    for once in range(2):
        assert (peaks["all"][once] < 0.5 * peaks["none"][once]).all()


def test_the_rehearsal_is_seen_by_nobody():
    class Counting(Block):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            self.seen += 1
            return super().forward(self.norm(x))

    model, (x, y) = Blocks(Counting), data()
    before = torch.get_rng_state()
    with opened(model) as pipe:
        pipe.step(x, y)
    assert [float(block.seen) for block in model.blocks] == [4, 4, 4]
    assert [int(block.norm.num_batches_tracked) for block in model.blocks] == [4, 4, 4]
    assert torch.equal(before, torch.get_rng_state())


def test_after_an_error_the_forwards_are_the_modules_own():
    model, (x, y) = Blocks(), data()
    with opened(model) as pipe:
        pipe.step(x, y)
        handle = model.blocks[2].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe.step(x, y)
        handle.remove()
        assert not any("forward" in vars(module) for module in model.modules())
        model.zero_grad()
        assert pp.check_gradients(pipe, x, y)


class InPlaceFirst(Block):
    def forward(self, x):
        x.relu_()
        return super().forward(x)


class Filling(Block):
    def forward(self, x, seen=None):
        seen.append(x)
        return super().forward(x) + seen[-1]


class FillsList(Blocks):
    def forward(self, x):
        seen = []
        for block in self.blocks:
            x = block(x, seen=seen)
        return x + len(seen)


class Hooked(Block):
    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda module, args, output: output * 2)


class Writing(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.detach().mean(0))
        return super().forward(x) * self.mean.clone()


class WritingToPart(Block):
    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        self.part.scale.mul_(0.9)
        return super().forward(x) * self.part.scale.clone()


class Setting(Block):
    def forward(self, x):
        self.given = x.detach().mean()
        return super().forward(x) * self.given


class Checkpointed(Blocks):
    def forward(self, x):
        for mark, block in zip(self.marks, self.blocks, strict=True):
            x = checkpoint(block, mark(x), use_reentrant=False)
        return x

    def __init__(self, make):
        super().__init__(make)
        self.marks = nn.ModuleList(nn.Identity() for _ in self.blocks)


@pytest.mark.parametrize(
    ("model", "make", "why"),
    [
        (Blocks, InPlaceFirst, "what it is handed is changed in place"),
        (FillsList, Filling, "what it is handed is changed in place"),
        (Blocks, Hooked, "hooks inside it would run twice"),
        (Blocks, Writing, "a buffer or a container is written to, which would happen twice"),
        (Blocks, WritingToPart, "a buffer or a container is written to, which would happen twice"),
        (Blocks, Setting, "attributes are set, which would happen twice"),
        (Checkpointed, Block, "inside a checkpoint of the model's own"),
    ],
)
def test_what_would_be_wrong_the_second_time_is_left_out_with_the_reason(model, make, why):
    x, y = data()
    cut = "marks.1" if model is Checkpointed else "blocks.1"
    case = recomputed(
        Case(model(make), x, y, F.mse_loss, [cut], whole=make not in (Writing, WritingToPart, Setting))
    )
    pipe = assert_law(case, pp.schedule("1f1b", num_ranks=2, num_microbatches=4))
    assert f"blocks.0 ({why})" in pipe.recompute_notes[0]
    assert f"blocks.1, blocks.2 ({why})" in pipe.recompute_notes[1]
    assert not any("again in the backward" in note for note in pipe.recompute_notes)


def test_a_module_inside_one_that_must_not_run_again_may():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, x):
            return self.inner(x.relu_())

    x, y = data()
    case = recomputed(Case(Blocks(Outer), x, y, F.mse_loss, ["blocks.1"]))
    pipe = assert_law(case, pp.schedule("1f1b", num_ranks=2, num_microbatches=4))
    assert "Stage 0: blocks.0.inner runs again in the backward. Not so blocks.0 (" in pipe.recompute_notes[0]


class Borrowing(Block):
    """Uses a weight of the first block when told to."""

    branch, lender = False, None

    def forward(self, x):
        return super().forward(x) * self.lender[0].a.weight.sum() if self.branch else super().forward(x)


def test_a_leak_into_a_module_that_runs_again_is_repaired_exactly():
    model, (x, y) = Blocks(Borrowing), data()
    for block in model.blocks:
        block.lender = [model.blocks[0]]
    with opened(model, ["blocks.1", "blocks.2"]) as pipe:
        assert pp.check_gradients(pipe, x, y)
        model.blocks[2].branch = True
        for _ in range(3):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
        assert "blocks.2 (a value or a weight of another stage is used in it)" in pipe.recompute_notes[2]


class LateDropout(Block):
    drop = 0.0

    def forward(self, x):
        return F.dropout(super().forward(x), self.drop, self.training) if self.drop else super().forward(x)


class InnerCheckpoint(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.first, self.inner, self._seen = nn.Linear(4, 4), nn.Linear(4, 4), seen

    def forward(self, x):
        return checkpoint(self._inside, self.first(x), use_reentrant=False)

    def _inside(self, x):
        self._seen()
        return self.inner(x).tanh()


def test_while_a_checkpoint_of_the_models_own_moves_the_generator_nobody_looks_at_it():
    """Or what it puts back for a while would be taken for a draw, and the step refused."""
    held = []

    def seen():
        if torch._C._current_graph_task_id() >= 0:  # in a backward
            held.append(pipe._cut.randomness.lock.locked())

    model, (x, y) = nn.Sequential(InnerCheckpoint(seen), InnerCheckpoint(seen)).double(), data()
    schedule = pp.schedule("naive", num_ranks=2, num_microbatches=2)
    with pp.Pipeline(
        model, pp.Split(["1"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 2, recompute="all"
    ) as pipe:
        pipe.step(x, y)
    assert held and all(held)


def test_a_stage_that_first_draws_later_is_refused_once_and_then_right():
    model, (x, y) = Blocks(LateDropout), data()
    with opened(model) as pipe:
        assert pp.check_gradients(pipe, x, y)
        model.blocks[2].drop = 0.5
        model.zero_grad()
        with pytest.raises(pp.PipelabError, match="drew random numbers that had drawn none in earlier steps"):
            pipe.step(x, y)
        assert all(p.grad is None for p in model.parameters())
        for _ in range(2):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


def test_under_autocast_the_second_forward_computes_in_the_same_precision():
    torch.manual_seed(0)
    model, (x, y) = Blocks().float(), (part.float() for part in data())
    case = recomputed(Case(model, x, y, F.mse_loss, ["blocks.1"], whole=False))
    assert_law(
        case,
        pp.schedule("zb-h1", num_ranks=2, num_microbatches=4),
        context=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )


@pytest.mark.parametrize(
    ("recompute", "error", "message"),
    [
        ("some", pp.PipelabError, "'some'; it must be 'none', 'all' or a list of stages"),
        ([2], pp.PipelabError, "names stage 2, but the stages are 0 to 1"),
        ([True], TypeError, "must be 'none', 'all' or a list of stages"),
        (1, TypeError, "must be 'none', 'all' or a list of stages"),
    ],
)
def test_what_names_no_stages_is_refused(recompute, error, message):
    with pytest.raises(error, match=message):
        opened(Blocks(), recompute=recompute)
