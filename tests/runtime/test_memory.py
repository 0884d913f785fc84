"""What a stage keeps for its backward, counted on the graph: as exact as hooks, and in nobody's way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from pipelab.runtime.memory import saved_tensors
from tests.runtime.models import ZOO, mlp


def kept(model, cuts, x, y, loss_fn, num_microbatches=1):
    """The bytes of each stage as a step counts them."""
    schedule = pp.schedule("gpipe", num_ranks=len(cuts) + 1, num_microbatches=num_microbatches)
    devices = pp.virtual(schedule.num_ranks)
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        return pipe.step(x, y).trace.bytes


def kept_by_hooks(model, x, y, loss_fn):
    """What torch saves in the whole model's forward, counted where it saves it: the oracle."""
    counted = {}
    left_out = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def pack(tensor):
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        if key[0] not in left_out:
            counted[key] = max(counted.get(key, 0), tensor.numel() * tensor.element_size())
        return tensor.detach()

    args = pp.Args.of(x) if not isinstance(x, pp.Args) else x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_fn(model(*args.args, **args.kwargs), y) * 1.0
    return sum(counted.values()), loss


@pytest.mark.parametrize("name", ZOO)
def test_what_is_read_off_the_graph_is_what_hooks_count(name):
    model, x, y, loss_fn = ZOO[name][0]()
    by_hooks, _ = kept_by_hooks(model, x, y, loss_fn)
    counted = kept(model, [], x, y, loss_fn).activations[0]
    assert counted == pytest.approx(
        by_hooks, abs=16
    )  # the weight of the micro-batch's loss is a tensor of 8 bytes


@pytest.mark.parametrize("name", ZOO)
def test_a_profiles_layers_add_up_to_the_whole_model(name):
    model, x, y, loss_fn = ZOO[name][0]()
    by_hooks, _ = kept_by_hooks(model, x, y, loss_fn)
    profile = pp.profile(model, x, y, loss_fn=loss_fn, repeats=1, progress=False)
    assert profile.costs(pp.Split()).bytes.activations[0] == pytest.approx(by_hooks, abs=16)


def test_a_stage_keeps_what_it_sent_until_its_backward():
    model, x, y, loss_fn = mlp()  # a GELU saves its input, and what it makes is sent
    alone = kept(model, [], x, y, loss_fn)
    cut = kept(model, ["2"], x, y, loss_fn)
    assert sum(cut.activations) == sum(alone.activations) + cut.outputs[0]
    assert cut.outputs == (8 * 6 * 8, 0)


def test_a_micro_batch_is_charged_with_its_part_of_the_batch():
    model, x, y, loss_fn = mlp()
    whole, half = (kept(model, [], x, y, loss_fn, m).activations[0] for m in (1, 2))
    assert half == pytest.approx(whole / 2, abs=8)


def test_parameters_and_buffers_are_no_activations():
    model = nn.Sequential(nn.Linear(4, 400), nn.BatchNorm1d(400), nn.Linear(400, 1)).eval()
    counted = kept(model, [], torch.ones(1, 4), torch.ones(1, 1), F.mse_loss).activations[0]
    assert counted < 4 * (4 + 400 + 400 + 10)  # its inputs; the weights alone are 8,000


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.calls = reentrant, 0
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.wide = nn.Sequential(nn.Linear(4, 400), nn.GELU(), nn.Linear(400, 4))

    def again(self, x):
        self.calls += 1
        return self.wide(x)

    def forward(self, x):
        return self.last(checkpoint(self.again, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_keeps_its_inputs_and_is_not_run_again_to_be_counted(reentrant):
    model = Checkpointed(reentrant)
    counted = kept(model, ["last"], torch.ones(2, 4), torch.ones(2, 4), F.mse_loss)
    tensor = 2 * 4 * 4
    assert counted.activations[0] == 3 * tensor  # of `first`, of the checkpoint, and what is sent
    assert model.calls == 2  # forward, backward


def test_what_hooks_have_packed_counts_as_it_was_packed():
    x = torch.ones(100, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: ("half", t.half()), lambda packed: packed[1].float()
    ):
        y = x.exp()
    assert [t.dtype for t in saved_tensors([y.grad_fn], 0)] == [torch.float16]


def test_a_sparse_tensor_has_no_storage_to_count():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return torch.sparse.mm(torch.eye(4).to_sparse(), self.linear(x))

    assert kept(Sparse(), [], torch.ones(4, 4), torch.ones(4, 4), F.mse_loss).activations[0] > 0


@torch.jit.script  # deprecated, and in use
def scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * torch.sigmoid(x)


class Functional(nn.Module):
    """A scripted function and a functional gradient in the forward: neither can live with hooks on saved tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        slope = torch.func.vmap(torch.func.grad(lambda row: (row.sin() * row.cos()).sum()))(self.first(x))
        return self.last(scripted(slope))


def test_scripted_functions_and_functional_gradients_run_while_bytes_are_counted():
    torch.manual_seed(0)
    model, x, y = Functional(), torch.randn(4, 4), torch.randn(4, 4)
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    with pp.Pipeline(model, pp.Split(["last"]), schedule, loss_fn=F.mse_loss, devices=pp.virtual(2)) as pipe:
        for _ in range(3):  # a scripted function is compiled while it first runs
            check = pp.check_gradients(pipe, x, y)
            assert check, str(check)
        assert min(pipe.step(x, y).trace.bytes.activations) > 0


def test_what_a_split_backward_leaves_to_the_weights_is_counted():
    model, x, y, loss_fn = mlp()  # linear layers with a GELU between them
    schedule = pp.schedule("zb-h1", num_ranks=2, num_microbatches=4)
    with pp.Pipeline(model, pp.Split(["3"]), schedule, loss_fn=loss_fn, devices=pp.virtual(2)) as pipe:
        held = pipe.step(x, y).trace.bytes
        again = pipe.step(x, y).trace.bytes
    tensor = 2 * 6 * 8
    # stage 0: Linear, GELU, Linear; stage 1: GELU, Linear, GELU, Linear. An input and a gradient for each Linear.
    assert held.until_weight_grad == (4 * tensor, 4 * tensor) and again == held
    assert held.activations[0] == 4 * tensor  # three inputs, and what is sent


def test_without_a_split_backward_nothing_is_left_to_the_weights():
    model, x, y, loss_fn = mlp()
    assert kept(model, ["4"], x, y, loss_fn).until_weight_grad is None
