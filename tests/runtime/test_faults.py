"""After whatever goes wrong the process is healthy, the message says what to do, and the next step is right."""

import contextlib
import os
import random
import signal
import threading
import time

import pytest
import torch
from torch import nn

import pipelab as pp
from tests.runtime.models import gpt, mlp

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
DEVICES = {"threads": ["cpu", "cpu"], "virtual": pp.virtual(2)}


class Saboteur(nn.Module):
    """Does what it is told in the forward or backward of its n-th call, and nothing otherwise."""

    def __init__(self):
        super().__init__()
        self.in_forward = self.in_backward = None
        self.at, self.calls = 0, 0

    def forward(self, x):
        self.calls += 1
        now = self.calls == self.at
        if now and self.in_forward:
            self.in_forward()
        if now and self.in_backward:
            action = self.in_backward
            x = x * 1
            x.register_hook(lambda _gradient: action())
        return x


def sabotaged():
    model, x, y, loss_fn = mlp()
    model.insert(3, Saboteur())
    model.insert(6, Saboteur())
    return model, x, y, loss_fn


def throw(error):
    def action():
        raise error

    return action


@pytest.fixture(params=DEVICES)
def setup(request):
    model, x, y, loss_fn = sabotaged()
    pipe = pp.Pipeline(model, pp.Split(["5"]), SCHEDULE, loss_fn=loss_fn, devices=DEVICES[request.param])
    pipe.step(x, y)
    model.zero_grad()
    yield model, x, y, pipe
    model.zero_grad()
    for module in model:
        if isinstance(module, Saboteur):
            module.in_forward = module.in_backward = None
    assert pp.check_gradients(pipe, x, y), "the step after a failure must be right"
    pipe.close()


def arm(model, where, what, action, call):
    saboteur = model[where]
    saboteur.calls, saboteur.at = 0, call
    setattr(saboteur, f"in_{what}", action)


def test_an_exception_in_a_backward_clears_what_was_written_and_says_so(setup):
    model, x, y, pipe = setup
    arm(model, 6, "backward", throw(RuntimeError("boom")), 3)
    with pytest.raises(RuntimeError) as caught:
        pipe.step(x, y)
    notes = "\n".join(caught.value.__notes__)
    assert "raised in action 1B2" in notes and "are now None" in notes
    assert all(p.grad is None for p in model.parameters())


def test_gradients_of_earlier_steps_are_kept_where_a_failed_step_wrote_nothing(setup):
    model, x, y, pipe = setup
    pipe.step(x, y)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    arm(model, 3, "forward", throw(RuntimeError("boom")), 1)
    with pytest.raises(RuntimeError):
        pipe.step(x, y)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


def test_an_exception_in_the_loss_names_the_last_stage():
    model, x, y, _ = mlp()

    def loss_fn(output, target):
        raise ZeroDivisionError("loss")

    with (
        pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe,
        pytest.raises(ZeroDivisionError) as caught,
    ):
        pipe.step(x, y)
    assert "1F0" in caught.value.__notes__[0]


def test_a_loss_that_is_no_number_is_refused():
    model, x, y, _ = mlp()
    with (
        pp.Pipeline(
            model, pp.Split(["4"]), SCHEDULE, loss_fn=lambda o, t: (o - t) ** 2, devices=["cpu", "cpu"]
        ) as pipe,
        pytest.raises(pp.PipelabError, match=r"one number; it is a tensor of shape \(2, 6\)"),
    ):
        pipe.step(x, y)


def interrupt_after(seconds):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


@pytest.mark.parametrize(("where", "what", "call"), [(3, "forward", 1), (6, "backward", 4)])
def test_an_interrupt_ends_the_step_soon_and_leaves_no_half_gradients(setup, where, what, call):
    model, x, y, pipe = setup
    arm(model, where, what, lambda: time.sleep(0.5), call)  # one module call that is running
    handler = signal.getsignal(signal.SIGINT)
    interrupt_after(0.2)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pipe.step(x, y)
    assert time.monotonic() - begin < 3
    assert all(p.grad is None for p in model.parameters())
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_does_not_wait_for_the_rest_of_a_long_stage():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.2)
            return x

    model, x, y, loss_fn = mlp()
    for _ in range(50):
        model.append(Slow())
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        interrupt_after(0.5)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pipe.step(x, y)
        assert time.monotonic() - begin < 2  # one forward of the last stage takes 10 s


def test_a_step_in_another_thread_is_stopped_by_interrupt(setup):
    model, x, y, pipe = setup
    arm(model, 6, "forward", lambda: time.sleep(0.5), 2)
    caught = []

    def work():
        try:
            pipe.step(x, y)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    with pytest.raises(pp.PipelabError, match="running a step already"):
        pipe.step(x, y)
    pipe.interrupt()
    thread.join(5)
    assert not thread.is_alive() and isinstance(caught[0], KeyboardInterrupt)


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_a_stop_at_any_moment_is_an_interrupt_and_nothing_else(devices):
    model, x, y, loss_fn = mlp()
    moments = random.Random(0)
    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=devices) as pipe:
        pipe.step(x, y)
        seen = set()
        for _ in range(60):
            model.zero_grad()
            timer = threading.Timer(moments.uniform(0, 0.008), pipe.interrupt)
            timer.start()
            try:
                pipe.step(x, y)
                seen.add("finished")
            except KeyboardInterrupt:
                seen.add("interrupted")
                assert all(p.grad is None for p in model.parameters())
            timer.join()
        assert "interrupted" in seen
        model.zero_grad()
        assert pp.check_gradients(pipe, x, y)


def make(model=None, split=("4",), schedule=SCHEDULE, **options):
    model = mlp()[0] if model is None else model
    return pp.Pipeline(
        model, pp.Split(split), schedule, **{"loss_fn": torch.nn.functional.mse_loss} | options
    )


# -- what only shows when two things happen at once -----------------------------------------------------------------


def test_a_progress_function_that_raises_ends_the_step_and_all_its_workers():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.03)
            return x

    model, x, y, loss_fn = mlp()
    model.append(Slow())

    def progress(done, total):
        raise ZeroDivisionError("progress")

    with pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"]) as pipe:
        with pytest.raises(ZeroDivisionError):
            pipe.step(x, y, progress=progress)
        time.sleep(0.3)
        assert all(p.grad is None for p in model.parameters()), "nobody writes on"
        assert pp.check_gradients(pipe, x, y)


def test_closing_from_another_thread_ends_the_step_that_runs():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.1)
            return x

    model, x, y, loss_fn = mlp()
    model.append(Slow())
    pipe = pp.Pipeline(model, pp.Split(["4"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"])
    caught = []

    def work():
        try:
            pipe.step(x, y)
        except BaseException as error:
            caught.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.15)
    pipe.close()
    thread.join(5)
    assert not thread.is_alive() and caught == [KeyboardInterrupt]


def test_two_pipelines_do_not_run_one_model_at_the_same_time():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x

    model, x, y, _ = mlp()
    model.append(Slow())
    one = make(model, ("4",), devices=["cpu", "cpu"])
    other = make(model, ("2",), devices=["cpu", "cpu"])
    thread = threading.Thread(target=one.step, args=(x, y))
    thread.start()
    time.sleep(0.1)
    with pytest.raises(pp.PipelabError, match="Another pipeline is running a step of this model"):
        other.step(x, y)
    thread.join()
    model.zero_grad()
    assert pp.check_gradients(other, x, y)
    one.close()
    other.close()


def test_steps_of_two_models_at_the_same_time_leave_torch_as_it_was():
    before = torch.autograd.Function.__dict__["apply"]
    pipes, threads = [], []
    for _ in range(2):
        model, x, y, loss_fn = gpt(tied=True)
        pipes.append(
            pp.Pipeline(model, pp.Split(["blocks.2"]), SCHEDULE, loss_fn=loss_fn, devices=["cpu", "cpu"])
        )
        threads.append(
            threading.Thread(target=lambda p=pipes[-1], x=x, y=y: [p.step(x, y) for _ in range(8)])
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.autograd.Function.__dict__["apply"] is before
    for pipe in pipes:
        pipe.close()


def test_no_hook_for_cancelling_outlives_a_late_stop(setup):
    _, x, y, pipe = setup
    for _ in range(30):
        timer = threading.Timer(0.004, pipe.interrupt)
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):
            pipe.step(x, y)
        timer.join()
    assert not nn.modules.module._global_forward_pre_hooks
