"""Runs that leave no trace."""

from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn

from pipelab.runtime.parameters import has_gradient_hooks
from pipelab.runtime.preserve import WrittenGradients, preserved


def test_gradients_buffers_and_random_state_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(4, 3)).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    values = [g.clone() for g in gradients]
    buffers, random = [b.clone() for b in model.buffers()], torch.get_rng_state()
    with pytest.raises(RuntimeError), preserved(model):
        assert all(p.grad is None for p in model.parameters())
        model(torch.randn(4, 3)).sum().backward()
        raise RuntimeError
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(map(torch.equal, gradients, values)) and all(map(torch.equal, model.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), random)


def test_only_gradients_that_were_written_to_are_cleared():
    kept, added, new = (nn.Parameter(torch.ones(2)) for _ in range(3))
    model = nn.ParameterList([kept, added, new])
    kept.grad, added.grad = torch.ones(2), torch.ones(2)
    written = WrittenGradients(model)
    (added * 2 + new).sum().backward()
    assert written.clear() == 2
    assert torch.equal(kept.grad, torch.ones(2)) and added.grad is None and new.grad is None


def test_a_gradient_put_in_place_of_another_is_cleared():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    written = WrittenGradients(nn.ParameterList([parameter]))
    parameter.grad = torch.ones(2)
    assert written.clear() == 1 and parameter.grad is None


def test_attributes_and_buffers_that_were_set_or_added_go_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.cache = 0, "old"

        def forward(self, x):
            self.calls += 1
            self.cache, self.new = x, x
            self.register_buffer("table", x)
            return x

    model = Counts()
    with preserved(model):
        model(torch.ones(2))
        assert model.calls == 1
    assert (model.calls, model.cache) == (0, "old")
    assert not hasattr(model, "new") and not list(model.buffers())


def test_hooks_on_gradients_do_not_run_and_are_there_again():
    model, ran = nn.Linear(2, 1), []
    model.weight.register_post_accumulate_grad_hook(lambda parameter: ran.append("after"))
    handle = model.weight.register_hook(lambda gradient: ran.append("before"))

    def backward():
        model(torch.ones(3, 2)).sum().backward()

    with preserved(model):
        backward()
        assert not ran and has_gradient_hooks(model.weight)  # or the backward would be divided otherwise
        handle.remove()
    backward()
    assert ran == ["after"]


def test_weights_whose_gradient_has_an_optimizer_in_a_hook_go_back_where_hooks_run():
    model = nn.Linear(2, 1)

    def update(parameter):
        with torch.no_grad():
            parameter -= parameter.grad

    model.weight.register_post_accumulate_grad_hook(update)
    before = model.weight.detach().clone()
    with preserved(model, gradient_hooks=True):
        model(torch.ones(3, 2)).sum().backward()
        assert not torch.equal(before, model.weight)
    assert torch.equal(before, model.weight)


def test_several_modules_are_preserved_together():
    models = nn.Linear(2, 1), nn.Linear(2, 1)
    with preserved(*models):
        sum(model(torch.ones(3, 2)).sum() for model in models).backward()
    assert all(p.grad is None for model in models for p in model.parameters())


def test_hooks_that_a_forward_installs_go_again():
    class Installs(nn.Module):
        installed = False

        def forward(self, x):
            if not self.installed:
                self.register_forward_hook(lambda module, args, output: output + 1)
                self.installed = True
            return x

    model = Installs()
    with preserved(model):
        model(torch.zeros(1))
    assert [float(model(torch.zeros(1))) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: {"n": 1}, lambda held: held.update(n=2)),
        (lambda: {"n": 1}, lambda held: held.update(m=2)),
        (lambda: {"n": {"inner": 1}}, lambda held: held["n"].update(inner=2)),
        (lambda: {"n": [1, 2]}, lambda held: held["n"].pop()),
        (lambda: [1, 2], lambda held: held.append(3)),
        (lambda: [(1, 2)], lambda held: held.clear()),
        (lambda: {1, 2}, lambda held: held.remove(1)),
        (lambda: deque([1, 2], maxlen=2), lambda held: held.append(3)),
        (lambda: Counter("aab"), lambda held: held.update("a")),
        (lambda: defaultdict(list, a=[1]), lambda held: held["b"].append(1)),
        (lambda: OrderedDict(a=1, b=2), lambda held: held.move_to_end("a")),
    ],
)
def test_containers_changed_in_place_hold_again_what_they_held(make, change):
    model = nn.Module()
    model.state = held = make()
    with preserved(model):
        change(held)
        assert held != make()
    assert model.state is held and held == make()


def test_tensors_on_modules_that_were_changed_in_place_go_back():
    model = nn.Module()
    model.count, model.caches = torch.zeros(2), {"a": torch.zeros(2)}
    untouched = model.still = torch.zeros(2)
    with preserved(model):
        model.count += 1
        model.caches["a"].add_(1)
    assert not model.count.any() and not model.caches["a"].any()
    assert untouched._version == 0
