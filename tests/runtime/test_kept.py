"""State that a forward keeps on its modules: apart for each micro-batch in flight, and put back when the step ends."""

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
from tests.zoo.law import Case, assert_law, assert_nothing_of_ours


class Keeper(nn.Module):
    """Three layers with cuts before the second and the third; subclasses keep something."""

    def __init__(self, width=4):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))


def data():
    torch.manual_seed(0)
    return torch.randn(8, 4).double(), torch.randn(8, 4).double()


def opened(model, schedule="1f1b", m=4, loss_fn=F.mse_loss, devices=None, cuts=("b", "c")):
    schedule = pp.schedule(schedule, num_ranks=len(cuts) + 1, num_microbatches=m)
    devices = devices or ["cpu"] * schedule.num_ranks
    return pp.Pipeline(model.double(), pp.Split(list(cuts)), schedule, loss_fn=loss_fn, devices=devices)


def holds(model, schedule="gpipe", loss_fn=F.mse_loss, whole=True):
    torch.manual_seed(0)
    x, y = data()
    case = Case(model.double(), x, y, loss_fn, ["b", "c"], whole=whole)
    assert_law(case, pp.schedule(schedule, num_ranks=3, num_microbatches=4))


class Hidden(Keeper):
    def forward(self, x):
        self.hidden = self.a(x)
        x = self.b(torch.relu(self.hidden))
        self.pair = (x, {"again": self.hidden})
        return self.c(x) + self.pair[1]["again"] * self.pair[0]


class NoGraph(Keeper):
    """Keeps what has no graph, and numbers: each micro-batch has its own."""

    def forward(self, x):
        self.positive = (x > 0).double()
        self.count = int(self.positive.sum())
        x = self.b(self.a(x))
        return self.c(x * self.positive) * self.count


class Fresh(Keeper):
    """Binds a list at the start of the forward and fills it in several stages."""

    def forward(self, x):
        self.seen = []
        for layer in (self.a, self.b, self.c):
            x = torch.tanh(layer(x))
            self.seen.append(x)
        return sum(self.seen)


class Deleted(Keeper):
    def forward(self, x):
        self.hidden = self.a(x)
        x = self.b(self.hidden)
        x = self.c(x) + self.hidden
        del self.hidden
        return x


class OnAnother(Keeper):
    """Each layer's input is left on the layer by a hook; an attribute named like a class attribute, and a property."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        for layer in (self.a, self.b, self.c):
            layer.register_forward_pre_hook(self.remember)

    @staticmethod
    def remember(layer, args):
        layer.given = args[0]

    @property
    def first(self):
        return self._first

    @first.setter
    def first(self, value):
        self._first = value

    def forward(self, x):
        self.first = self.a(x)
        self.scale = self.first.square().mean()
        x = self.c(self.b(self.first))
        return x * self.scale + self.b.given + self.c.given * self.first


class Normed(Keeper):
    """torch's old spectral_norm, which sets the weight anew before each forward."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.utils.spectral_norm(self.a), nn.utils.spectral_norm(self.c)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("make", [Hidden, NoGraph, Fresh, Deleted, OnAnother])
def test_what_a_forward_keeps_is_its_micro_batchs_own(make, schedule):
    holds(make(), schedule, whole=make in (Hidden, Fresh, Deleted))


def test_weights_that_are_set_before_each_forward_are_right():
    holds(Normed(), whole=False)


class Running(Keeper):
    """Accumulates over micro-batches, outside buffers: a running mean, the previous micro-batch's value, a count."""

    def __init__(self):
        super().__init__()
        self.mean, self.previous = torch.zeros(4).double(), None
        self.calls = 0
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        x = self.a(x)
        if self.previous is not None:
            x = x + self.previous
        self.previous = x.detach()
        x = self.b(x)
        self.total = self.total + x.detach().sum(0)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.calls += 1
        return self.c(x - self.mean + self.total)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_what_accumulates_over_micro_batches_does_so_in_their_order(schedule):
    model = Running()
    holds(model, schedule, whole=False)
    assert model.calls == 2 * (3 * 4 + 2 * 4)  # three steps, two forwards, and nothing twice


def test_numbers_counted_in_several_stages_are_all_counted():
    model, (x, y) = Running(), data()
    with opened(model, "gpipe") as pipe:
        for step in range(1, 4):
            pipe.step(x, y)
            assert model.calls == 8 * step


def test_afterwards_attributes_hold_what_the_last_micro_batch_left_without_its_graph():
    model, (x, y) = Hidden(), data()
    whole = copy.deepcopy(model).double()
    with opened(model) as pipe:
        for _ in range(2):
            pipe.step(x, y)
            whole(x[6:])
            assert torch.equal(model.hidden, whole.hidden)
            assert torch.equal(model.pair[1]["again"], whole.hidden)
            assert model.hidden.grad_fn is None
            assert type(model) is Hidden
            assert_nothing_of_ours(model, whole)
            copy.deepcopy(model)  # which a value with a graph would not allow


def test_the_module_is_of_its_own_class_again_after_a_step_that_failed():
    model, (x, y) = Hidden(), data()
    fail = model.c.register_forward_pre_hook(lambda module, args: 1 / 0)
    with opened(model) as pipe:
        with pytest.raises(ZeroDivisionError):
            pipe.step(x, y)
        assert type(model) is Hidden
        assert "hidden" not in vars(model)
        assert nn.Module.__setattr__.__module__ == "torch.nn.modules.module"
        fail.remove()
        model.zero_grad()
        assert pp.check_gradients(pipe, x, y)


def test_during_a_step_the_class_looks_like_the_models_own():
    model, (x, y) = Hidden(), data()
    seen = []
    model.c.register_forward_pre_hook(lambda module, args: seen.append((type(model), repr(model))))
    with opened(model) as pipe:
        pipe.step(x, y)
    for cls, shown in seen:
        assert issubclass(cls, Hidden)
        assert (cls.__name__, cls.__qualname__, cls.__module__) == ("Hidden", "Hidden", __name__)
        assert shown == repr(model)
        assert Hidden.forward is cls.forward


def test_kept_values_die_with_their_micro_batchs_backward():
    model, (x, y) = Hidden(), data()
    alive, most = [], []

    def count(module, args, output):
        alive.append(weakref.ref(output))
        most.append(sum(reference() is not None for reference in alive))

    model.a.register_forward_hook(count)
    with opened(model, m=8, cuts=("c",)) as pipe:
        for _ in range(2):
            pipe.step(x, y)
        gc.collect()
    assert max(most) <= 3  # two in flight, and the one that begins


def test_values_kept_in_evaluation_are_apart_too():
    model, (x, _) = Hidden().double(), data()
    with opened(model, "gpipe") as pipe, torch.no_grad():
        for _ in range(2):
            assert torch.allclose(pipe.forward(x), model(x), rtol=1e-12)


class Recomputed(Keeper):
    """A checkpoint's second forward, in the backward, reads what its own micro-batch kept."""

    def forward(self, x):
        self.gate = torch.sigmoid(self.a(x)).detach()
        x = checkpoint(lambda value: torch.tanh(self.b(value) * self.gate), x, use_reentrant=False)
        return self.c(x)


def test_a_second_forward_in_the_backward_reads_its_own_micro_batchs_value():
    holds(Recomputed(), "gpipe")


class Filled(Keeper):
    """Appends to a list that is there before the forward."""

    def __init__(self, detach):
        super().__init__()
        self.cache, self.detach = [], detach

    def forward(self, x):
        x = self.a(x)
        self.cache.append(x.detach() if self.detach else x)
        x = self.b(x) + self.cache[-1]
        self.cache.clear()
        return self.c(x)


@pytest.mark.parametrize("detach", [False, True])
def test_a_list_that_is_filled_across_a_cut_is_refused_while_micro_batches_would_mix(detach):
    model, (x, y) = Filled(detach), data()
    with opened(model) as pipe:
        with pytest.raises(
            pp.PipelabError, match=r"fills a container on itself across a cut: model\.cache\."
        ):
            pipe.step(x, y)
        assert model.a.weight.grad is None


def test_with_one_micro_batch_in_flight_a_list_may_be_filled():
    model, (x, y) = Filled(False), data()
    with opened(model, "naive") as pipe:
        assert pp.check_gradients(pipe, x, y)


class Late(Keeper):
    """Keeps a value on itself, or in a list, but only when told to."""

    keep = fill = False

    def __init__(self):
        super().__init__()
        self.cache = []

    def forward(self, x):
        first = self.a(x)
        if self.keep:
            self.hidden = first
        if self.fill:
            self.cache.append(first)
        x = self.c(self.b(first))
        return x * self.hidden if self.keep else x


def test_a_value_first_kept_in_a_later_step_is_apart_too():
    x, y = data()
    case = Case(
        Late().double(), x, y, F.mse_loss, ["b", "c"], later=lambda model: setattr(model, "keep", True)
    )
    assert_law(case, pp.schedule("gpipe", num_ranks=3, num_microbatches=4), steps=4)


def test_a_list_first_filled_in_a_later_step_is_refused_and_leaves_no_gradient():
    model, (x, y) = Late(), data()
    with opened(model) as pipe:
        for _ in range(2):
            pipe.step(x, y)
        model.fill = True
        model.zero_grad()
        with pytest.raises(
            pp.PipelabError, match=r"fills a container on itself across a cut: model\.cache\."
        ):
            pipe.step(x, y)
        assert all(p.grad is None for p in model.parameters())


class LateReset(Keeper):
    """Makes a value unless it is there, and drops it at the end: the next micro-batch must not find it."""

    def __init__(self):
        super().__init__()
        self.hidden = None

    def forward(self, x):
        if self.hidden is None:
            self.hidden = self.a(x)
        x = self.c(self.b(x)) + self.hidden
        self.hidden = None
        return x


def test_a_value_that_the_next_micro_batch_finds_too_early_is_refused():
    model, (x, y) = LateReset(), data()
    with (
        opened(model) as pipe,
        pytest.raises(
            pp.PipelabError, match=r"reads model\.hidden, which the model keeps on itself, before it has"
        ),
    ):
        pipe.step(x, y)


def test_with_one_micro_batch_in_flight_it_is_right():
    model, (x, y) = LateReset(), data()
    with opened(model, "naive") as pipe:
        assert pp.check_gradients(pipe, x, y)


class Final(Keeper):
    def __init_subclass__(cls, **options):
        raise TypeError("this class is final")

    forward = Hidden.forward


def test_a_class_that_allows_no_subclass_is_refused_by_name():
    model, (x, y) = Final(), data()
    with (
        opened(model) as pipe,
        pytest.raises(
            pp.PipelabError, match=r"model sets its attribute 'hidden' .* class Final allows no subclass"
        ),
    ):
        pipe.step(x, y)
    with opened(model, "naive") as pipe:
        pipe.step(x, y)


def test_two_pipelines_may_share_a_class_and_run_at_the_same_time():
    x, y = data()
    pairs = [(model, copy.deepcopy(model)) for model in (Hidden().double() for _ in range(2))]
    pipes = [opened(model, "gpipe") for model, _ in pairs]
    threads = [
        threading.Thread(target=lambda pipe=pipe: [pipe.step(x, y) for _ in range(5)]) for pipe in pipes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pipe in pipes:
        pipe.close()
    for model, whole in pairs:
        (5 * F.mse_loss(whole(x), y)).backward()
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-10)
