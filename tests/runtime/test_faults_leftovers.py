"""What a failed step could leave behind in threads, torch and the model, and what happens when threads run out."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.runtime.context import StepContext
from pipelab.runtime.threads import ThreadPool
from tests.runtime.injected import Bomb, Laboratory, assert_torch_untouched, raising
from tests.runtime.models import mlp

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
THREE = pp.schedule("1f1b", num_ranks=3, num_microbatches=4)
DEVICES = {"threads": ["cpu", "cpu"], "virtual": pp.virtual(2)}


class Telling(nn.Module):
    """Calls what it is told to, and hands on what it gets."""

    def __init__(self, tell=lambda: None):
        super().__init__()
        self.tell = tell

    def forward(self, x):
        self.tell()
        return x


def interrupted():
    raise KeyboardInterrupt


def in_every_thread(pool, ask):
    """What `ask` says in each thread of a pool."""
    found, count = [], len(pool)
    together = threading.Barrier(count + 1)

    def job():
        found.append(ask())
        together.wait(5)

    for _ in range(count):
        pool.run(job)
    together.wait(5)
    return found


class InAMode(nn.Module):
    """Calls one of its modules inside a mode of torch's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), Telling(), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        with torch.device("cpu"):
            x = self.b(x)
        return self.c(x)


def test_a_thread_keeps_no_mode_of_a_forward_that_an_interrupt_unwound():
    model = InAMode()
    x, y = torch.randn(8, 4), torch.randn(8, 4)
    with pp.Pipeline(model, pp.Split(["c"]), SCHEDULE, loss_fn=F.mse_loss, devices=["cpu", "cpu"]) as pipe:
        model.b.tell = interrupted
        with pytest.raises(KeyboardInterrupt):
            pipe.step(x, y)
        assert set(in_every_thread(pipe._pool, torch._C._len_torch_function_stack)) == {0}
        assert set(in_every_thread(pipe._pool, torch.is_grad_enabled)) == {True}
        model.b.tell = lambda: None
        assert pp.check_gradients(pipe, x, y)


def with_dropout(tell):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Telling(tell), nn.Dropout(0.5), nn.Linear(4, 4)).double()


def loss_with_seed(pipe, x, y):
    torch.manual_seed(5)
    return pipe.step(x, y).loss


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_dropout_behind_the_place_where_the_first_step_failed_is_what_it_would_have_been(devices):
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    losses = []
    for tell in (interrupted, lambda: None):
        model = with_dropout(tell)
        with pp.Pipeline(model, pp.Split(["1"]), SCHEDULE, loss_fn=F.mse_loss, devices=devices) as pipe:
            with contextlib.suppress(KeyboardInterrupt):
                pipe.step(x, y)
            model[1].tell = lambda: None
            losses.append(loss_with_seed(pipe, x, y))
    assert torch.equal(losses[0], losses[1])


class Experts(nn.Module):
    """Two experts with dropout, in two stages, that get nothing of the first micro-batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(2))

    def forward(self, x):
        wanted = bool((x[:, 0] > 0).any())
        x = self.a(x)
        x = self.b(x + self.first(x) if wanted else x)
        return x + self.second(x) if wanted else x


def test_dropout_that_only_a_later_microbatch_comes_to_does_not_depend_on_the_schedule():
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    x[:2, 0], x[2:, 0] = -1, 1
    losses = []
    for name, devices in [
        ("1f1b", DEVICES["threads"]),
        ("gpipe", DEVICES["threads"]),
        ("1f1b", DEVICES["virtual"]),
    ]:
        torch.manual_seed(0)
        schedule = pp.schedule(name, num_ranks=2, num_microbatches=4)
        with pp.Pipeline(
            Experts().double(), pp.Split(["b"]), schedule, loss_fn=F.mse_loss, devices=devices
        ) as pipe:
            losses += [loss_with_seed(pipe, x, y) for _ in range(2)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [MemoryError, RuntimeError, SystemExit])
def test_an_error_in_the_bookkeeping_behind_a_forward_hangs_nobody(monkeypatch, error):
    lab = Laboratory(THREE, ["cpu"] * 3)
    with monkeypatch.context() as patched:
        patched.setattr(StepContext, "check_finished", lambda self, microbatch: raising(error)())
        assert type(lab.failing_step()) is error
    lab.assert_at_rest()
    lab.assert_next_step_right()
    lab.pipe.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(1, 6))
def test_where_the_system_has_no_more_threads_the_step_fails_and_ends(monkeypatch, number):
    before = threading.active_count()
    lab = Laboratory(THREE, ["cpu"] * 3)
    start, started = threading.Thread.start, []

    def start_some(thread):
        started.append(thread)
        if len(started) == number:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_some)
        error = lab.failing_step()
    assert type(error) is RuntimeError and "can't start new thread" in str(error)
    lab.assert_at_rest()
    lab.assert_next_step_right()
    lab.pipe.close()
    assert threading.active_count() == before


@pytest.mark.timeout(60)
def test_a_pool_that_the_garbage_collector_dismisses_in_the_middle_of_its_own_work_does_not_block():
    pool = ThreadPool()
    with pool._lock:  # as in a thread of the pool's, where a collection may begin at any line
        threads = pool.dismiss()
    assert threads == []


def test_an_interrupt_while_a_step_is_set_up_ends_it_before_a_layer_runs():
    called = []
    model, x, y, loss_fn = mlp()
    model.insert(0, Telling(lambda: called.append(1)))
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        alone = pipe._guard._alone

        @contextlib.contextmanager
        def alone_and_interrupted(interrupt):
            os.kill(os.getpid(), signal.SIGINT)
            with alone(interrupt):
                yield

        pipe._guard._alone = alone_and_interrupted
        with pytest.raises(KeyboardInterrupt):
            pipe.step(x, y)
        assert not called
        pipe._guard._alone = alone
        assert pp.check_gradients(pipe, x, y)


def test_a_pipeline_that_is_closed_while_a_step_is_set_up_says_so():
    model, x, y, loss_fn = mlp()
    pipe = pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"])
    alone = pipe._guard._alone

    @contextlib.contextmanager
    def closed_and_alone(interrupt):
        pipe.close()
        with alone(interrupt):
            yield

    pipe._guard._alone = closed_and_alone
    with pytest.raises(pp.PipelabError, match="closed"):
        pipe.step(x, y)


class Keeping(nn.Module):
    """Keeps values on itself, also across a cut."""

    def __init__(self, bomb):
        super().__init__()
        self.bomb, self.a, self.b = bomb, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        self.kept, self.several = self.a(x), [x]
        self.bomb.reach("first stage")
        y = self.b(self.kept)
        self.bomb.reach("second stage")
        if y.requires_grad:
            y.register_hook(lambda gradient: self.bomb.reach("backward"))
        return y + self.kept


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "chimera"])
def test_a_model_that_keeps_values_on_itself_is_itself_again_after_a_fault(name):
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=4)
    for place in ("first stage", "second stage", "backward"):
        for act in (raising(RuntimeError), interrupted, lambda: os.kill(os.getpid(), signal.SIGINT)):
            bomb = Bomb()
            model = Keeping(bomb).double()
            own = set(vars(model)) | {"kept", "several"}
            with pp.Pipeline(
                model, pp.Split(["b"]), schedule, loss_fn=F.mse_loss, devices=["cpu", "cpu"]
            ) as pipe:
                for passes in (1, 2):  # in the first step, and in a later one
                    bomb.arm(place, None, None, act, passes)
                    with pytest.raises((RuntimeError, KeyboardInterrupt)):
                        pipe.step(x, y)
                    assert type(model) is Keeping and set(vars(model)) <= own
                    assert all(parameter.grad is None for parameter in model.parameters())
                    assert_torch_untouched()
                    assert pp.check_gradients(pipe, x, y)


ENDING = """
import threading, time, torch, pipelab as pp
model = pp.zoo.mlp(layers=6, width=300)
schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=8)
pipe = pp.Pipeline(model, pp.Split(["4"]), schedule, loss_fn=torch.nn.functional.mse_loss, devices=["cpu", "cpu"])
x, y = torch.randn(256, 300), torch.randn(256, 300)

def work():
    while True:
        try:
            pipe.step(x, y)
        except KeyboardInterrupt:
            return

pipe.step(x, y)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


def test_an_interpreter_that_ends_during_a_step_in_another_thread_ends_well():
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


class Swallowing(nn.Module):
    """Goes on after whatever its modules raise."""

    def __init__(self, tell):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(Telling(tell), nn.Linear(4, 4)) for _ in range(4))

    def forward(self, x):
        for part in self.parts:
            try:
                x = part(x)
            except BaseException:
                x = x * 1
        return x


@pytest.mark.timeout(60)
@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_a_model_that_swallows_every_error_can_be_interrupted(devices):
    left = []  # calls until the interrupt

    def tell():
        if left and not left.pop():
            pipe.interrupt()

    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    for moment in (0, 1, 2, 3, 6, 8, 11, 15):  # in the first step too, which learns
        model = Swallowing(tell).double()
        with pp.Pipeline(model, pp.Split(["parts.2"]), SCHEDULE, loss_fn=F.mse_loss, devices=devices) as pipe:
            left[:] = [False, *[True] * moment]
            with pytest.raises(KeyboardInterrupt):
                pipe.step(x, y)
            assert_torch_untouched()
            assert pp.check_gradients(pipe, x, y)
