"""What the first step cannot know: values that cross a border later, or in ways that must be refused."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from tests.runtime.models import gpt

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)


class Branching(nn.Module):
    """Reads a value of the first stage, and a parameter of it, in a later stage, but only when told to."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.branch = False

    def forward(self, x):
        first = self.a(x)
        second = self.b(first)
        if self.branch:
            second = second * first + self.a.weight.sum()
        return second


@pytest.mark.parametrize("devices", [["cpu", "cpu"], pp.virtual(2)], ids=["threads", "virtual"])
def test_a_branch_first_taken_later_is_repaired_and_then_learnt(devices):
    torch.manual_seed(0)
    model, x, y = Branching().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=devices) as pipe:
        assert pp.check_gradients(pipe, x, y) and not pipe.leaks
        model.branch = True
        check = pp.check_gradients(pipe, x, y)
        assert check, str(check)
        assert any("value of an earlier stage" in leak for leak in pipe.leaks)
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y) and not pipe.leaks


def test_a_leak_is_told_in_the_trace():
    model, x, y = Branching().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe:
        pipe.step(x, y)
        model.branch = True
        assert any("crossed a border unseen" in note for note in pipe.step(x, y).trace.notes)


class Choosy(nn.Module):
    """Calls its second module only for some micro-batches."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = self.a(x)
        return self.b(first) if x[0, 0] > 0 else first


@pytest.mark.parametrize("devices", [["cpu", "cpu"], pp.virtual(2)], ids=["threads", "virtual"])
def test_a_stage_that_a_microbatch_never_enters_runs_as_nothing(devices):
    torch.manual_seed(0)
    model, x, y = Choosy().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    x[:, 0] = torch.tensor([1, 1, -1, -1, 1, 1, -1, -1])
    whole = copy.deepcopy(model)
    for part, goal in zip(x.split(2), y.split(2), strict=True):
        (F.mse_loss(whole(part), goal) / 4).backward()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=devices) as pipe:
        for _ in range(2):
            model.zero_grad()
            pipe.step(x, y)
            for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, rtol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_without_dropout_a_stage_may_begin_inside_a_checkpoint(use_reentrant):
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant, drop=0.0).double()
    x, y = torch.randn(8, 4).double().requires_grad_(), torch.randn(8, 4).double()
    with pp.Pipeline(
        model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]
    ) as pipe:
        for _ in range(3):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


class LateBranch(nn.Module):
    """Which of its two middle modules it calls, and in which order, the data say."""

    def __init__(self):
        super().__init__()
        self.a, self.left, self.right, self.b = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        first = self.a(x)
        which = int(x[0, 0])
        middle = [self.left, self.right] if which >= 2 else [self.right if which else self.left]
        second = first
        for module in reversed(middle) if which == 3 else middle:
            second = torch.tanh(module(second))
        return self.b(second) + first


def late_branch(*which):
    torch.manual_seed(0)
    x = torch.randn(2 * len(which), 4).double()
    x[:, 0] = torch.tensor(which).repeat_interleave(2)
    schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=len(which))
    return LateBranch().double(), x, torch.randn_like(x), schedule


@pytest.mark.parametrize("devices", [["cpu"] * 4, pp.virtual(4)], ids=["threads", "virtual"])
@pytest.mark.parametrize("which", [(0, 1, 0, 1, 2), (0, 0, 0, 1, 1), (1, 0, 2, 0, 1)])
def test_a_cut_that_only_later_micro_batches_come_to_works(which, devices):
    model, x, y, schedule = late_branch(*which)
    whole = copy.deepcopy(model)
    for part, goal in zip(x.split(2), y.split(2), strict=True):
        (F.mse_loss(whole(part), goal) / 5).backward()
    split = pp.Split(["left", "right", "b"])
    with pp.Pipeline(model, split, schedule, loss_fn=F.mse_loss, devices=devices) as pipe:
        for _ in range(3):
            model.zero_grad()
            pipe.step(x, y)
            for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, rtol=1e-12)


def test_a_cut_that_no_micro_batch_comes_to_is_refused_and_gradients_are_cleared():
    model, x, y, schedule = late_branch(0, 0, 0, 0)
    with pp.Pipeline(
        model, pp.Split(["left", "right", "b"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 4
    ) as pipe:
        for _ in range(2):
            with pytest.raises(pp.PipelabError, match=r"begins at 'right', .*\(no micro-batch came to it\)"):
                pipe.step(x, y)
            assert all(p.grad is None for p in model.parameters())
        x[-1, 0] = x[-2, 0] = 1
        assert pipe.step(x, y).loss.isfinite()


def test_in_evaluation_no_micro_batch_needs_to_come_to_a_cut():
    model, x, _, schedule = late_branch(0, 1, 0, 1)
    with pp.Pipeline(
        model, pp.Split(["left", "right", "b"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 4
    ) as pipe:
        x[:, 0] = 0
        assert torch.allclose(pipe.forward(x), model(x), rtol=1e-12)


@pytest.mark.parametrize("which", [(3, 0, 0, 0), (0, 1, 3, 0)])
def test_cuts_that_any_micro_batch_calls_in_another_order_are_refused(which):
    model, x, y, schedule = late_branch(*which)
    with (
        pp.Pipeline(
            model, pp.Split(["left", "right", "b"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 4
        ) as pipe,
        pytest.raises(pp.PipelabError, match="it calls 'right', 'left', 'b'"),
    ):
        pipe.step(x, y)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * b, gradient * a


class Custom(nn.Module):
    """A custom autograd Function that takes a value of an earlier stage."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = self.a(x)
        return self.c(Scaled.apply(self.b(first), first))


class InPlace(nn.Module):
    """Changes what it received in place, right behind the cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.c = nn.Linear(4, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("make", "cuts"), [(Custom, ["b", "c"]), (Custom, ["c"]), (InPlace, ["b"]), (InPlace, ["b", "c"])]
)
def test_custom_functions_and_in_place_changes_behind_a_cut_are_right(make, cuts):
    torch.manual_seed(0)
    model, x, y = make().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    schedule = pp.schedule("1f1b", num_ranks=len(cuts) + 1, num_microbatches=4)
    with pp.Pipeline(
        model, pp.Split(cuts), schedule, loss_fn=F.mse_loss, devices=["cpu"] * (len(cuts) + 1)
    ) as pipe:
        for _ in range(2):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


class Aliased(nn.Module):
    """Changes one view of a memory in place behind the cut while another view of it crosses too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Identity()

    def forward(self, x):
        whole = self.a(x)
        left, right = whole[:, :2], whole[:, 2:]
        marker = self.b(left)
        marker.mul_(2)
        return torch.cat([marker, right], dim=1)


def test_views_of_one_memory_that_are_changed_behind_a_cut_are_refused():
    model, x, y = Aliased().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with (
        pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe,
        pytest.raises(pp.PipelabError, match="another view of the same memory"),
    ):
        pipe.step(x, y)


class Swallower(nn.Module):
    """Catches the error of one of its modules and goes on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(9, 9), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        try:
            x = self.b(x)
        except RuntimeError:
            x = x * 2
        return self.c(x)


def test_a_model_may_catch_the_errors_of_its_modules():
    model, x, y = Swallower().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["c"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe:
        for _ in range(2):
            assert pp.check_gradients(pipe, x, y)


class SentThenChanged(nn.Module):
    """Sends a value, or a copy of it, to the next stage; changes it in place afterwards, but only when told to."""

    def __init__(self, send_copy):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Sequential(nn.Identity(), nn.Tanh())
        self.send_copy, self.branch = send_copy, False

    def forward(self, x):
        first = self.a(x)
        second = self.b(first + 0 if self.send_copy else first)
        if self.branch:
            first.mul_(3)
            second = second + first
        return second


@pytest.mark.parametrize("send_copy", [True, False])
def test_what_is_sent_is_the_value_of_that_moment_and_a_late_use_is_repaired_exactly(send_copy):
    torch.manual_seed(0)
    model = SentThenChanged(send_copy).double()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe:
        assert pp.check_gradients(pipe, x, y)
        model.branch = True
        for _ in range(3):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


def test_a_parameter_with_hooks_that_two_stages_share_is_refused():
    model, x, y, loss_fn = gpt(tied=True)
    model.head.weight.register_hook(lambda gradient: gradient * 0)
    with (
        pp.Pipeline(model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe,
        pytest.raises(pp.PipelabError, match="has hooks on its gradient and is used by stages 0 and 1"),
    ):
        pipe.step(x, y)


class Checkpointed(nn.Module):
    """Blocks with dropout inside torch.utils.checkpoint, and places to cut between them."""

    def __init__(self, use_reentrant, drop=0.5):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(drop)) for _ in range(4))
        self.marks = nn.ModuleList(nn.Identity() for _ in range(4))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        for mark, block in zip(self.marks, self.blocks, strict=True):
            x = checkpoint(block, mark(x), use_reentrant=self.use_reentrant)
        return x


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("devices", [["cpu", "cpu"], pp.virtual(2)], ids=["threads", "virtual"])
def test_dropout_inside_a_checkpoint_is_right_when_the_cut_lies_outside_it(devices, use_reentrant):
    torch.manual_seed(0)
    model, x, y = (
        Checkpointed(use_reentrant).double(),
        torch.randn(8, 4).double().requires_grad_(),
        torch.randn(8, 4).double(),
    )
    with pp.Pipeline(model, pp.Split(["marks.2"]), SCHEDULE, loss_fn=F.mse_loss, devices=devices) as pipe:
        for _ in range(12):
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_stage_with_dropout_that_begins_inside_a_checkpoint_is_refused(use_reentrant):
    model = Checkpointed(use_reentrant).double()
    x, y = torch.randn(8, 4).double().requires_grad_(), torch.randn(8, 4).double()
    with (
        pp.Pipeline(
            model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]
        ) as pipe,
        pytest.raises(pp.PipelabError, match=r"begins inside torch\.utils\.checkpoint"),
    ):
        pipe.step(x, y)


class Penalty(nn.Module):
    """Adds a derivative that it computes behind the cut at `b`."""

    def __init__(self, of):
        super().__init__()
        self.a, self.b, self._of = nn.Linear(4, 4), nn.Linear(4, 4), of

    def forward(self, x):
        if self._of == "input":
            x = x.detach().requires_grad_()
        first = self.a(x).tanh()
        second = self.b(first)
        wanted = {"input": x, "parameter": self.a.weight, "value": first}[self._of]
        gradient = torch.autograd.grad(
            second.sum(), wanted, create_graph=True, allow_unused=self._of != "input"
        )[0]
        return second + (0 if gradient is None else gradient.square().sum())


@pytest.mark.parametrize("of", ["parameter", "value"])
def test_a_derivative_for_what_another_stage_owns_is_refused(of):
    model, x, y = Penalty(of).double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe:
        for _ in range(2):
            with pytest.raises(pp.PipelabError, match=f"torch.autograd.grad for a {of} of another stage"):
                pipe.step(x, y)


def test_torchs_word_on_a_derivative_across_a_cut_is_explained():
    model, x, y = Penalty("input").double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with (
        pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe,
        pytest.raises(RuntimeError, match="not have been used in the graph") as raised,
    ):
        pipe.step(x, y)
    assert any("values of other stages arrive as copies" in note for note in raised.value.__notes__)


class InThread(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.b, self.a(x)).result()


def test_a_cut_that_is_called_in_another_thread_is_refused_with_the_reason():
    model, x, y = InThread().double(), torch.randn(8, 4).double(), torch.randn(8, 4).double()
    with (
        pp.Pipeline(model, pp.Split(["b"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe,
        pytest.raises(pp.PipelabError, match="or calls it in a thread of its own, which is not seen"),
    ):
        pipe.step(x, y)
