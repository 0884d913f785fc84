"""Hundreds of steps, set-ups and interrupts: the process is as large and as busy afterwards as it was before."""

import gc
import os
import random
import signal
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import pipelab as pp
from tests.runtime.injected import ANYWHERE, Laboratory, assert_torch_untouched, raising, runnable_schedules
from tests.runtime.models import gpt

SCHEDULES = runnable_schedules()


def tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def sizes(pipe):
    """How much a pipeline has learnt and keeps."""
    found = [pipe._chains, pipe._guard, pipe._fingerprint]
    for cut in pipe._chains.cut_models:
        found += [cut.flow, cut.parameters, cut.randomness, cut.kept]
    return [
        len(value)
        for thing in found
        for value in vars(thing).values()
        if isinstance(value, (dict, set, list, tuple))
    ]


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["zb-v", "chimera"])
def test_two_hundred_steps_leave_everything_as_it_was(name):
    """Without the garbage collector, among errors and interrupts."""
    schedule, threads = SCHEDULES[name], threading.active_count()
    lab = Laboratory(schedule, ["cpu"] * schedule.num_ranks)
    moments = random.Random(0)

    def steps(count):
        for number in range(count):
            if number % 10 == 5:
                lab.bomb.arm(ANYWHERE, None, None, press, passes=moments.randrange(80))
                lab.failing_step()
            if number % 10 == 8:
                lab.bomb.arm(ANYWHERE, None, None, raising(RuntimeError), passes=moments.randrange(80))
                lab.failing_step()
            lab.bomb.arm("", None, None, None)
            lab.model.zero_grad()
            str(lab.step())
        lab.assert_next_step_right()
        lab.bomb.memory.clear()
        return tensors(), descriptors(), sizes(lab.pipe)

    steps(30)
    gc.collect()
    gc.disable()
    try:
        before, small = steps(20), resident()
        after = steps(200)
        gc.collect()  # torch's pytree leaves a small cycle for each call
        large = resident()
    finally:
        gc.enable()
    assert after == before
    assert threading.active_count() <= threads + schedule.num_ranks + schedule.num_microbatches + 2
    assert large - small < 8 * 2**20, "resident memory"
    assert_torch_untouched()
    lab.pipe.close()


def test_a_set_up_cell_that_is_run_fifty_times_leaves_no_thread_and_no_tensor():
    """A notebook drops its old pipeline without closing it."""
    model, x, y, loss_fn = gpt(tied=True, dropout=0.1)
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    pipe = None

    def cell():
        return pp.Pipeline(model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=["cpu", "cpu"])

    def run(times):
        nonlocal pipe
        for _ in range(times):
            model.zero_grad()
            pipe = cell()
            pipe.step(x, y)
        model.zero_grad()
        gc.collect()
        return tensors(), descriptors()

    threads = threading.active_count()
    before = run(3)
    running = threading.active_count()
    after = run(50)
    assert after == before and threading.active_count() <= running + 2
    pipe.close()
    assert threading.active_count() <= threads + 2  # those of the last one dropped may still be ending


@pytest.mark.parametrize("devices", [["cpu", "cpu"], pp.virtual(2)], ids=["threads", "virtual"])
def test_a_storm_of_interrupts_from_outside_stops_steps_and_nothing_else(devices):
    """At moments that nobody chose, also between steps; what is left works as before."""
    model, x, y, loss_fn = gpt()
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    with pp.Pipeline(model, pp.Split(["blocks.2"]), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        pipe.step(x, y)
        moments, caught = random.Random(1), 0
        for _ in range(60):
            try:
                timer = threading.Timer(moments.uniform(0, 0.02), press)
                timer.start()
                for _ in range(5):
                    model.zero_grad()
                    pipe.step(x, y)
                timer.join()
            except KeyboardInterrupt:
                caught += 1
                timer.join()
        assert caught > 50
        assert_torch_untouched()
        model.zero_grad()
        assert pp.check_gradients(pipe, x, y)


def test_data_of_a_stopped_step_never_comes_to_the_next():
    """A step is stopped in the middle of a slow call; the next one, with other data, begins at once."""
    schedule = SCHEDULES["1f1b"]
    lab = Laboratory(schedule, ["cpu"] * schedule.num_ranks)
    (x, ids), y = lab.plain
    for place, stage in [("forward", 0), ("forward", 1), ("backward", 1), ("loss", None)]:
        slow = threading.Event()

        def press_and_linger(slow=slow):
            press()
            slow.wait(0.05)

        lab.bomb.arm(place, stage, 1, press_and_linger)
        lab.failing_step()
        other = (x + 1, ids)
        step = lab.pipe.step(other, y)
        expected = F.mse_loss(lab.model(*other), y)
        wanted = torch.autograd.grad(expected, list(lab.model.parameters()))
        torch.testing.assert_close(step.loss, expected.detach(), rtol=1e-12, atol=0)
        for parameter, gradient in zip(lab.model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
        lab.model.zero_grad()
    lab.pipe.close()
