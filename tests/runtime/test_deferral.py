"""Weight gradients that are put off equal those of a plain backward, and what cannot be put off is not."""

import copy
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad as fwAD
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from pipelab.runtime.deferral import InCheckpoint, WeightGradients, split_functions
from pipelab.runtime.interception import set_current


class Forward:
    """A running micro-batch, as much of it as the functions ask for."""

    def __init__(self):
        self.store = WeightGradients()
        context = SimpleNamespace(weight_gradients={(0, 0): self.store})
        self.microbatch = SimpleNamespace(stage=0, index=0, context=context)

    def __enter__(self):
        split_functions.__enter__()
        set_current(self.microbatch)
        return self.store

    def __exit__(self, *exception):
        set_current(None)
        split_functions.__exit__(*exception)


def weighed(y):
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()


def backward_input(store, y, loss=weighed):
    root = loss(y)
    with store.during([get_gradient_edge(root)]):
        root.backward()


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def compare(model, *inputs, put_off, loss=weighed, turns=2, autocast=None):
    """I and W of `model` against a plain backward of a copy.

    More than one turn: the first gradient and one that is added are both seen.

    Args:
        put_off: the parameters whose gradients are W's alone; None if some have a part in both.
    """
    plain = copy.deepcopy(model)
    ours, theirs = ([x.detach().clone().requires_grad_(x.requires_grad) for x in inputs] for _ in range(2))
    for _ in range(turns):
        before = gradients(model)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None, cache_enabled=False):
            with Forward() as store:
                y = model(*ours)
            expected = plain(*theirs)
        assert torch.equal(y, expected), "the forward is torch's own"
        backward_input(store, y, loss)
        after_input = gradients(model)
        store.compute()
        loss(expected).backward()
        for name, gradient in gradients(model).items():
            a, b = before[name], after_input[name]
            still = a is b or (a is not None and b is not None and torch.equal(a, b))
            changed_by_weight = gradient is not None and (b is None or not torch.equal(b, gradient))
            assert put_off is None or (still and changed_by_weight) == (name in put_off), name
    tolerance = 1e-12 if autocast is None else 1e-2
    for (name, mine), theirs_ in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs_.grad is None), name
        if mine.grad is not None:
            assert mine.grad.dtype == mine.dtype and mine.grad.layout == theirs_.grad.layout, name
            torch.testing.assert_close(mine.grad, theirs_.grad, rtol=tolerance, atol=tolerance)
            assert mine.grad.is_sparse or mine.grad.stride() == theirs_.grad.stride(), name
    for mine, other in zip(ours, theirs, strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad, rtol=tolerance, atol=tolerance)


def values(*shape):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()


class Calls(nn.Module):
    """A module whose forward is a function of it and its inputs; its other arguments are parameters and modules."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            copied = copy.deepcopy(part) if isinstance(part, nn.Module) else part.detach().clone()
            setattr(self, name, copied.double() if isinstance(part, nn.Module) else nn.Parameter(copied))

    def forward(self, *inputs):
        return self.function(self, *inputs)


BOTH = {"weight", "bias"}
LINEAR = {"linear.weight", "linear.bias"}


def of_linear(function, **parts):
    return Calls(function, linear=nn.Linear(4, 4), **parts)


# -- the operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_puts_weight_and_bias_off(shape, bias):
    compare(nn.Linear(4, 5, bias).double(), values(*shape), put_off=BOTH if bias else {"weight"})


def test_a_batch_of_nothing_gives_zeros():
    model = nn.Linear(4, 5).double()
    with Forward() as store:
        y = model(values(0, 4))
    backward_input(store, y)
    store.compute()
    assert not model.weight.grad.any() and not model.bias.grad.any()


def strange_stride(module, x):
    return F.conv2d(x, module.weight, None, (2,), (1,), [1])


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, 3), (2, 4, 7, 8)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 3)),
    "strides": (nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 4, 9, 9)),
    "one number for both": (Calls(strange_stride, weight=values(3, 4, 2, 2)), (2, 4, 6, 6)),
    "groups": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), (2, 4, 7, 8)),
    "valid": (nn.Conv1d(4, 6, 3, padding="valid"), (2, 4, 9)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 6, 6)),
    "channels last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_puts_weight_and_bias_off(name):
    model, shape = CONVOLUTIONS[name]
    compare(copy.deepcopy(model).double(), values(*shape), put_off=dict(model.named_parameters()).keys())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv2d(4, 6, 2, padding="same"), (2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3), (4, 6, 6)),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 6, 6)),
    ],
    ids=["one zero more on a side", "without a batch", "transposed"],
)
def test_rare_convolutions_are_torchs_own(model, shape):
    compare(copy.deepcopy(model).double(), values(*shape), put_off=set())


def test_addmm_with_the_weight_on_the_right_is_put_off():
    def gpt2(module, x):
        return torch.addmm(module.bias, x.view(-1, 4), module.weight).view(2, 3, 5)

    def scaled(module, x):
        return torch.addmm(module.bias, x.view(-1, 4), module.weight, alpha=2.0)

    compare(Calls(gpt2, weight=values(4, 5), bias=values(5)), values(2, 3, 4), put_off=BOTH)
    compare(Calls(scaled, weight=values(4, 5), bias=values(5)), values(2, 3, 4), put_off=set())


def test_torchs_own_attention_puts_its_projections_off():
    model = Calls(lambda m, x: m.own(x, x, x, need_weights=False)[0], own=nn.MultiheadAttention(8, 2))
    compare(model, values(2, 5, 8), put_off=dict(model.named_parameters()).keys())


# -- awkward uses -----------------------------------------------------------------------------------------------

INPUTS = {
    "transposed": lambda x: x.transpose(0, 1),
    "every second": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :, None].expand(-1, -1, 3, -1),
    "a transposed matrix": lambda x: x[0].t(),
    "one element stretched": lambda x: x[:, :1, :1].expand(4, 4, 4),
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_may_lie_in_memory_as_it_likes(name):
    compare(of_linear(lambda m, x: m.linear(INPUTS[name](x))), values(4, 4, 4), put_off=LINEAR)


@pytest.mark.parametrize(
    "loss",
    [torch.sum, lambda y: weighed(y.transpose(0, 1)), lambda y: weighed(y[:1])],
    ids=["sum", "transposed", "a part"],
)
def test_a_gradient_may_lie_in_memory_as_it_likes(loss):
    compare(of_linear(lambda m, x: m.linear(x)), values(3, 2, 4), put_off=LINEAR, loss=loss)


def first_then_in_place(module, x):
    first = module.linear(x)
    first[:, 0].mul_(2)
    a, b = first.view(2, 3, 2, 2).unbind(2)
    return F.relu(torch.cat([a, b], -1), inplace=True)


IN_PLACE = {
    "relu": lambda m, x: m.linear(x).relu_(),
    "of a row": first_then_in_place,
    "of a part": lambda m, x: m.linear(x)[:, :2].mul_(x[:, :2]),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_may_be_changed_in_place(name, bias):
    model = Calls(IN_PLACE[name], linear=nn.Linear(4, 4, bias))
    compare(model, values(2, 3, 4), put_off=dict(model.named_parameters()).keys())


def test_an_input_changed_in_place_afterwards_is_an_error_as_ever():
    model, x = nn.Linear(4, 4).double(), values(3, 4)
    with Forward() as store:
        inner = x * 1
        y = model(inner)
        inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward_input(store, y)


def test_an_input_changed_in_place_between_i_and_w_is_an_error():
    """As a buffer is that each micro-batch fills anew: after its backward torch looks no more."""
    model, scratch = nn.Linear(4, 4).double(), values(3, 4).detach()
    with Forward() as store:
        y = model(scratch)
    backward_input(store, y)
    scratch.add_(1)
    with pytest.raises(pp.PipelabError, match=r"of shape \(3, 4\), was changed in place .*\(x\.clone\(\)"):
        store.compute()


@pytest.mark.parametrize("name", ["linear", "addmm"])
def test_a_bias_of_one_number_is_broadcast(name):
    def forward(module, x):
        return getattr(F if name == "linear" else torch, name)(
            *((x, module.weight, module.bias) if name == "linear" else (module.bias, x, module.weight))
        )

    compare(
        Calls(forward, weight=torch.randn(4, 4).double(), bias=torch.randn(1).double()),
        values(3, 4),
        put_off=set(),
    )


def test_a_weight_that_is_a_vector_is_torchs_own():
    compare(
        Calls(lambda m, x: F.linear(x, m.weight), weight=torch.randn(4).double()), values(3, 4), put_off=set()
    )


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    model = nn.Linear(4, 5).double()
    model.get_parameter(frozen).requires_grad_(False)
    compare(model, values(3, 4), put_off={"bias": {"weight"}, "weight": set()}[frozen])


def test_an_input_without_gradient_costs_no_gradient():
    compare(nn.Linear(4, 5).double(), values(3, 4).detach(), put_off=BOTH)


def test_a_weight_may_lie_in_memory_as_it_likes():
    def linear(module, x):
        return F.linear(x, module.weight)

    model = Calls(linear, weight=values(1))
    model.weight = nn.Parameter(values(4, 5).detach().t())
    compare(model, values(3, 4), put_off={"weight"})


def test_a_weight_used_twice_gets_both_parts():
    compare(of_linear(lambda m, x: m.linear(torch.tanh(m.linear(x)))), values(3, 4), put_off=LINEAR)


def test_a_weight_used_otherwise_too_gets_that_part_at_once():
    compare(
        of_linear(lambda m, x: m.linear(x) + m.linear.weight.pow(2).sum()),
        values(4, 4),
        put_off={"linear.bias"},
    )


def test_a_weight_or_bias_that_is_computed_is_no_leaf_and_not_put_off():
    def normed(module, x):
        return F.linear(x, F.normalize(module.weight), module.bias) + F.linear(
            x, module.other, module.bias * 2
        )

    model = Calls(normed, weight=values(4, 4), bias=values(4), other=values(4, 4))
    compare(model, values(3, 4), put_off={"other"})


def test_a_sparse_gradient_is_added_to():
    def tied(module, ids):
        return F.linear(F.embedding(ids, module.weight, sparse=True), module.weight)

    model = Calls(tied, weight=values(6, 4))
    ids = torch.tensor([[0, 2], [2, 5]])
    plain = copy.deepcopy(model)
    for turn in range(2):
        with Forward() as store:
            y = model(ids)
        backward_input(store, y)
        assert model.weight.grad.is_sparse == (turn == 0)
        store.compute()
        weighed(plain(ids)).backward()
    torch.testing.assert_close(model.weight.grad, plain.weight.grad)


def test_a_gradient_that_becomes_another_parameters_is_not_changed_under_it():
    """torch makes the gradient of a sum that of each summand, without a copy, and later adds to it in place."""

    def shifted(module, x):
        shift = module.shift + 1  # its backward passes on what it got, after the linear layer's
        return module.linear(x) + shift

    model = of_linear(shifted, shift=values(3, 4))
    plain, stores = copy.deepcopy(model), []
    for turn in range(3):
        x = values(3, 4).detach() * (turn + 1)
        with Forward() as store:
            y = model(x)
        backward_input(store, y)
        stores.append(store)
        weighed(plain(x)).backward()
    for store in stores:
        store.compute()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-12, atol=1e-12)


def test_an_output_that_nobody_asks_the_gradient_of_costs_nothing():
    class Stops(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gy):
            return None

    model, x = of_linear(lambda m, x: Stops.apply(m.linear(x)) + x), values(3, 4)
    compare(model, x, put_off=set())
    assert model.linear.weight.grad is None


# -- who else looks ---------------------------------------------------------------------------------------------


def watch_tensor(parameter, seen):
    parameter.register_hook(lambda gradient: seen.append(gradient.clone()) or gradient * 2)


def watch_accumulation(parameter, seen):
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))


@pytest.mark.parametrize("watch", [watch_tensor, watch_accumulation])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_weight_with_hooks_is_not_put_off(watch, when):
    model, x, seen = nn.Linear(4, 5).double(), values(3, 4), []
    if when == "before":
        watch(model.weight, seen)
    with Forward() as store:
        y = model(x)
    if when == "after":
        watch(model.weight, seen)
    backward_input(store, y)
    assert len(seen) == 1 and model.weight.grad is not None and model.bias.grad is None
    found = model.weight.grad.clone()
    store.compute()
    assert torch.equal(model.weight.grad, found) and len(seen) == 1


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_that_the_model_takes_itself_are_right_at_once(create_graph):
    def penalised(module, x):
        y = torch.tanh(module.linear(x)).pow(2)
        of_input, of_weight = torch.autograd.grad(
            y.sum(), [x, module.linear.weight], create_graph=create_graph, retain_graph=True
        )
        return y + of_input.pow(2) + of_weight.pow(2).sum()

    # With a graph the gradients of the penalty come through the backward's own operations, in I.
    compare(of_linear(penalised), values(4, 4), put_off=None if create_graph else LINEAR)


def test_second_derivatives_of_convolutions_are_right():
    def penalised(module, x):
        y = torch.tanh(module.conv(x))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.sum() + gradient.pow(2).sum()

    compare(Calls(penalised, conv=nn.Conv2d(2, 2, 3, padding=1)), values(2, 2, 4, 4), put_off=None)


def test_a_backward_that_a_hook_runs_during_the_stages_own_is_not_that_one():
    def with_inner_backward(module, x):
        other = torch.tanh(module.linear(x))
        weight, total, y = module.linear.weight, other.sum(), module.linear(x)
        if y.requires_grad:
            y.register_hook(lambda gy: gy + torch.autograd.grad(total, weight, retain_graph=True)[0].sum())
        return y + other

    compare(of_linear(with_inner_backward), values(3, 4), put_off=LINEAR)


def of_func(module, x):
    parameters = dict(module.linear.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(module.linear, parameters, (row,)).pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    with fwAD.dual_level():
        tangent = fwAD.unpack_dual(module.linear(fwAD.make_dual(x, torch.ones_like(x)))).tangent
    return module.linear(x) + per_sample["weight"].sum() + tangent.sum()


def test_torch_func_inside_a_forward_works_as_ever():
    compare(of_linear(of_func), values(3, 4), put_off=None)


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint_nothing_is_put_off(reentrant):
    def forward(module, x):
        inner = checkpoint(lambda x: torch.tanh(module.linear(x)), x, use_reentrant=reentrant)
        return module.outer(inner)

    model = of_linear(forward, outer=nn.Linear(4, 4))
    compare(model, values(3, 4), put_off={"outer.weight", "outer.bias"})


def test_inside_a_checkpoint_of_pipelabs_own_it_is_put_off_but_not_in_one_of_the_models_inside_it():
    def forward(module, x):
        def inner(x):
            return torch.tanh(module.inner(x))

        def whole(x):
            return module.linear(checkpoint(inner, module.linear(x).relu(), use_reentrant=False))

        def both():
            store = running.store if running.microbatch is not None else None
            return InCheckpoint(store), InCheckpoint(store)

        return checkpoint(whole, x, use_reentrant=False, context_fn=both)

    running = SimpleNamespace(microbatch=None)
    model = of_linear(forward, inner=nn.Linear(4, 4))
    plain, x = copy.deepcopy(model), values(3, 4)
    for _ in range(2):
        running = Forward()
        with running as store:
            y = model(x)
            inside = dict(model.named_parameters())
            backward_input(store, y)  # the functions stay replaced until the step ends
        before = gradients(model)
        assert len(store) == 2 and before["inner.weight"] is not None
        store.compute()
        running = SimpleNamespace(microbatch=None)
        weighed(plain(x)).backward()
    assert all(torch.allclose(inside[n].grad, p.grad, rtol=1e-12) for n, p in plain.named_parameters())


class Marked(torch.Tensor):
    """A subclass with rules of its own."""


def test_a_subclass_of_tensors_is_left_to_itself():
    compare(
        of_linear(lambda m, x: m.linear(x.as_subclass(Marked)).as_subclass(torch.Tensor)),
        values(3, 4),
        put_off=set(),
    )


def test_a_mode_of_the_models_own_sees_torchs_functions():
    class Doubles(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {})) * (2 if func is torch._C._nn.linear else 1)

    def forward(module, x):
        with Doubles():
            return module.linear(x)

    compare(of_linear(forward), values(3, 4), put_off=set())


def test_without_gradients_nothing_is_kept():
    with torch.no_grad(), Forward() as store:
        nn.Linear(4, 4).double()(values(3, 4))
    assert not len(store)


def test_other_threads_get_torchs_own_function():
    found = []

    def other():
        found.append(F.linear(torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)).grad_fn.name())

    with Forward():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        mine = F.linear(torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)).grad_fn.name()
    assert "Split" not in found[0] and "Split" in mine


# -- autocast ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Conv1d(4, 4, 1)], ids=["linear", "convolution"])
def test_under_autocast_gradients_have_the_weights_dtype(model):
    two = Calls(lambda m, x: m.two(torch.tanh(m.one(x))), one=model, two=model).float()
    x = values(4, 4, 4).detach().float().requires_grad_()
    compare(two, x, put_off=dict(two.named_parameters()).keys(), autocast=torch.bfloat16)


def test_under_autocast_second_derivatives_reach_the_weight():
    def penalised(module, x):
        y = torch.tanh(module.linear(x))
        (gradient,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
        return gradient.pow(2).sum()

    model = of_linear(penalised).float()
    x = values(4, 4).detach().float().requires_grad_()
    compare(model, x, put_off=None, autocast=torch.bfloat16)
    assert model.linear.weight.grad.abs().max() > 0.01


def test_autocast_leaves_double_precision_alone():
    compare(nn.Linear(4, 4).double(), values(3, 4), put_off=set(), autocast=torch.bfloat16)


# -- lifetime ---------------------------------------------------------------------------------------------------


def test_activations_die_when_nobody_needs_them_any_more_without_a_garbage_collector():
    alive = weakref.WeakSet()

    def forward(module, x):
        for _ in range(2):
            hidden = module.linear(x)
            x = torch.sigmoid(hidden)
            alive.add(hidden)
            alive.add(x)
            hidden.register_hook(alive.add)
        return module.outer(x)

    gc.disable()
    try:
        model, x = of_linear(forward, outer=nn.Linear(4, 4)), values(3, 4)
        with Forward() as store:
            y = model(x)
        backward_input(store, y)
        del y
        assert len(store) == 3
        waiting = weakref.ref(store._waiting[0][-1])
        store.compute()
        assert waiting() is None and not len(alive)
    finally:
        gc.enable()


def test_what_only_the_input_gradient_needed_dies_with_it():
    dead = []

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            big = torch.ones(10)
            ctx.big = big
            weakref.finalize(big, dead.append, "big")
            return x * 2

        @staticmethod
        def backward(ctx, gy):
            return gy * 2

    model, x = of_linear(lambda m, x: Keeps.apply(m.linear(Keeps.apply(x)))), values(3, 4)
    with Forward() as store:
        y = model(x)
    backward_input(store, y)
    del y
    assert dead == ["big", "big"] and len(store) == 1


# -- the replacement of torch's functions -----------------------------------------------------------------------

FUNCTIONS = [(F, "linear"), (F, "conv1d"), (F, "conv2d"), (F, "conv3d"), (torch, "addmm")]


def test_functions_are_put_back_when_the_last_user_goes():
    before = [getattr(module, name) for module, name in FUNCTIONS]
    with split_functions:
        with split_functions:
            pass
        during = [getattr(module, name) for module, name in FUNCTIONS]
    after = [getattr(module, name) for module, name in FUNCTIONS]
    assert before == after and not set(map(id, before)) & set(map(id, during))
    assert [function.__name__ for function in during] == [function.__name__ for function in before]


def test_what_somebody_else_has_replaced_stays_theirs(monkeypatch):
    def own(*args, **options):
        return torch._C._nn.linear(*args, **options) * 2

    monkeypatch.setattr(F, "linear", own)
    with split_functions:
        assert F.linear is own
    assert F.linear is own


def test_wrong_calls_raise_torchs_own_errors():
    with Forward():
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            F.linear(values(3, 4), values(5, 6))
        with pytest.raises(RuntimeError, match=r"expected .* same dtype|must have the same dtype"):
            F.linear(values(3, 4), values(5, 4).detach().float().requires_grad_())
        with pytest.raises(RuntimeError, match=r"Expected 2D|Expected 3D|shape"):
            F.conv2d(values(3, 4), values(5, 4, 3, 3))
        with pytest.raises(TypeError, match="stride"):
            F.conv2d(values(1, 4, 5, 5), values(5, 4, 3, 3), stride="two")


def test_torch_compile_in_the_middle_of_a_step_finds_torchs_own_functions():
    seen = []

    def backend(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def function(x, weight, bias):
        return F.linear(x, weight) + torch.addmm(bias, x, weight.t())

    torch._dynamo.reset()
    x, weight, bias = values(3, 4), values(4, 4), values(4)
    with Forward() as store:
        y = torch.compile(function, backend=backend)(x, weight, bias)
    assert torch._C._nn.linear in seen and torch.addmm in seen
    backward_input(store, y)
    assert not len(store) and weight.grad is not None
    torch.testing.assert_close(y, function(x, weight, bias))
