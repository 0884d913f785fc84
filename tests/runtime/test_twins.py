"""A twin follows the user's model in everything the user may change, and leaves nothing on it."""

import copy
import io
import threading
import types

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.runtime.twins import Twin
from tests.runtime.models import OwnStatistics, awkward, gpt, mlp, resnet


def twin_of(model, copies=True):
    twin = Twin(model, (lambda tensor: tensor.device) if copies else None)
    twin.refresh()
    return twin


def test_parameters_are_fresh_leaves_with_the_users_values():
    model, x, _, _ = gpt(tied=True)
    twin = twin_of(model)
    for (name, mine), (other, theirs) in zip(
        model.named_parameters(), twin.model.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(mine, theirs)
        assert (
            theirs is not mine and theirs.is_leaf and theirs.untyped_storage().data_ptr() != mine.data_ptr()
        )
    assert torch.equal(model(x), twin.model(x))


def test_the_users_model_carries_nothing():
    model, _, _, _ = gpt()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    twin = twin_of(model)
    twin.model.head.register_forward_hook(lambda *_: None)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys() and not module._forward_hooks
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (lambda m: m.eval(), lambda m: [child.training for child in m.modules()]),
        (lambda m: setattr(m[1], "p", 0.25), lambda m: m[1].p),
        (lambda m: m[0].weight.requires_grad_(False), lambda m: m[0].weight.requires_grad),
        (lambda m: m[0].weight.data.mul_(3), lambda m: m[0].weight.tolist()),
        (lambda m: m.double(), lambda m: (m[0].weight.dtype, m[2].running_mean.dtype)),
        (lambda m: m[2].running_mean.add_(1), lambda m: m[2].running_mean.tolist()),
        (lambda m: setattr(m, "flag", None), lambda m: m.flag),
        (lambda m: m.sizes.append(7), lambda m: m.sizes),
        (lambda m: setattr(m.config, "scale", 2.0), lambda m: m.config.scale),
        (lambda m: setattr(m, "config", types.SimpleNamespace(scale=5.0)), lambda m: m.config.scale),
        (lambda m: setattr(m, "mask", torch.zeros(2)), lambda m: m.mask.tolist()),
        (lambda m: m.mask.fill_(7), lambda m: m.mask.tolist()),
        (
            lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
            lambda m: m[0].bias.tolist(),
        ),
    ],
)
def test_what_the_user_changes_holds_for_the_twin_too(change, read):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    model.flag, model.sizes, model.mask = True, [1, 2], torch.ones(2)
    model.config = types.SimpleNamespace(scale=1.0)
    twin = twin_of(model)
    before = read(twin.model)
    change(model)
    assert read(twin.model) == before or read(model) == read(twin.model)
    twin.refresh()
    assert read(twin.model) == read(model) != before


def test_an_attribute_that_was_deleted_goes():
    model = nn.Linear(2, 2)
    model.note = "x"
    twin = twin_of(model)
    del model.note
    twin.refresh()
    assert not hasattr(twin.model, "note")


def test_what_a_forward_leaves_on_the_model_is_no_reason_to_fail():
    class Leaves(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            self.history = {"last": [self.last]}
            return self.last

    model = Leaves(2, 2)
    twin = twin_of(model)
    model(torch.ones(1, 2))
    twin.refresh()
    assert not hasattr(twin.model, "last") and not hasattr(twin.model, "history")


def test_hooks_follow_and_are_shared_with_the_user():
    class Counter:
        def __init__(self):
            self.calls = 0

        def count(self, *_):
            self.calls += 1

    model, early, late = nn.Sequential(nn.Linear(2, 2)), Counter(), Counter()
    model[0].register_forward_hook(early.count)
    twin = twin_of(model)
    handle = model[0].register_forward_hook(late.count)
    twin.refresh()
    twin.model(torch.ones(1, 2))
    assert early.calls == late.calls == 1
    handle.remove()
    twin.refresh()
    twin.model(torch.ones(1, 2))
    assert early.calls == 2 and late.calls == 1


def test_a_hook_that_is_a_method_of_a_module_becomes_the_twins():
    class Hooked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.calls = 0
            self.register_forward_hook(self.count)

        def count(self, *_):
            self.calls += 1

    model = Hooked()
    twin = twin_of(model)
    twin.model(torch.ones(1, 2))
    assert (model.calls, twin.model.calls) == (0, 1)


def test_gradients_are_added_once_and_dropped():
    model, x, y, loss_fn = gpt(tied=True)
    loss_fn(model(x), y).backward()
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    twin = twin_of(model)
    loss_fn(twin.model(x), y).backward()
    twin.add_gradients()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, 2 * once[name], rtol=1e-12)
    assert all(p.grad is None for p in twin.model.parameters())


def test_gradients_where_there_were_none_and_none_where_there_are_none():
    model, x, y, loss_fn = awkward()
    twin = twin_of(model)
    loss_fn(twin.model(*x.args, **x.kwargs), y).backward()
    twin.add_gradients()
    assert model.unused.weight.grad is None and model.frozen.grad is None and model.scale.grad is not None


def test_sparse_gradients_add_up():
    model = nn.Embedding(5, 2, sparse=True)
    twin = twin_of(model)
    for each in (model, twin.model):
        each(torch.tensor([1, 3])).sum().backward()
    twin.add_gradients()
    assert model.weight.grad.to_dense()[:, 0].tolist() == [0, 2, 0, 2, 0]


def test_without_copies_the_parameters_stand_on_the_users_memory_until_they_get_other_weights():
    model = nn.Linear(2, 2)
    twin = twin_of(model, copies=False)
    with torch.no_grad():
        model.weight.fill_(3)
    assert twin.model.weight is not model.weight and twin.model.weight.tolist() == [[3, 3], [3, 3]]
    twin.model.weight.data = torch.zeros(2, 2)
    twin.model(torch.ones(1, 2)).sum().backward()
    assert model.weight.tolist() == [[3, 3], [3, 3]] and model.weight.grad is None


def test_buffers_are_copies_or_shared():
    model, _, _, _ = resnet()
    apart, shared = twin_of(model), twin_of(model, copies=False)
    for mine, theirs, same in zip(
        model.buffers(), apart.model.buffers(), shared.model.buffers(), strict=True
    ):
        assert theirs is not mine and torch.equal(theirs, mine) and same is mine


def test_a_buffer_or_weight_changed_in_the_forward_is_noticed():
    model, x, _, _ = resnet()
    twin = twin_of(model)
    twin.check_unchanged()
    twin.model(x)
    with pytest.raises(pp.PipelabError, match=r"forward changes '.*norm1.*'.*one chain.*model.eval\(\)"):
        twin.check_unchanged()
    shared = twin_of(model, copies=False)
    shared.model(x)
    shared.check_unchanged()
    embedding = nn.Embedding(3, 2, max_norm=0.1)
    twin = twin_of(embedding)
    twin.model(torch.tensor([0]))
    with pytest.raises(pp.PipelabError, match="forward changes 'weight'"):
        twin.check_unchanged()


def test_statistics_that_torch_writes_without_a_mark_are_noticed():
    twin = twin_of(nn.Sequential(OwnStatistics()))
    twin.model.eval()(torch.ones(2, 4))
    twin.check_unchanged()
    twin.model.train()(torch.ones(2, 4))
    with pytest.raises(pp.PipelabError, match=r"changes '0\.mean'"):
        twin.check_unchanged()


def test_a_shared_buffer_that_is_replaced_in_the_forward_is_noticed():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            return x

    twin = twin_of(Replaces(), copies=False)
    twin.model(torch.ones(1))
    with pytest.raises(pp.PipelabError, match="forward changes 'count'"):
        twin.check_unchanged()


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one of me")

    with pytest.raises(
        pp.PipelabError, match=r"deepcopy\(model\) fails for Single: RuntimeError: there is only one"
    ):
        Twin(Single(2, 2), lambda tensor: tensor.device)


def test_a_model_that_gives_itself_for_a_copy_is_refused():
    class Same(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(
        pp.PipelabError, match="gives no copy with parameters of its own: Same has a __deepcopy__"
    ):
        Twin(Same(2, 2), lambda tensor: tensor.device)


def test_what_there_is_one_of_is_shared_when_it_is_set():
    model = nn.Linear(2, 2)
    twin = twin_of(model)
    model.lock = threading.Lock()
    twin.refresh()
    assert twin.model.lock is model.lock


def test_a_lazy_parameter_is_refused():
    with pytest.raises(pp.PipelabError, match=r"'weight' has no shape yet\. Run the model once"):
        Twin(nn.LazyLinear(2), lambda tensor: tensor.device)


def test_hooks_on_gradients_are_refused():
    model, _, _, _ = mlp()
    twin = twin_of(model)
    model[0].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(pp.PipelabError, match=r"'0\.weight' has hooks on its gradient"):
        twin.refresh()


def test_a_module_that_was_replaced_needs_a_new_twin():
    model, _, _, _ = mlp()
    twin = twin_of(model)
    assert twin.stands_for(model)
    model[1] = nn.Tanh()
    assert not twin.stands_for(model)


def test_recurrent_and_parametrized_modules_are_copied_whole():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.LSTM(3, 3, batch_first=True)
    )
    twin, x = twin_of(model), torch.randn(2, 4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    twin.refresh()
    assert torch.equal(model(x)[0], twin.model(x)[0])
    twin.model(x)[0].sum().backward()
    assert all(p.grad is not None for p in twin.model.parameters())
    assert all(p.grad is None for p in model.parameters())
