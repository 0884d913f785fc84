"""Ctrl-C at any moment of a step, a profile, a check: one KeyboardInterrupt, nothing half done, the next step right."""

import os
import signal
import threading
import time

import pytest
import torch

import pipelab as pp
from pipelab.runtime import preserve
from tests.runtime.injected import ANYWHERE, Laboratory, assert_torch_untouched, runnable_schedules, until

SCHEDULES = runnable_schedules()


def press():
    os.kill(os.getpid(), signal.SIGINT)


def laboratory(name, virtual=False, **options):
    schedule = SCHEDULES[name]
    devices = pp.virtual(schedule.num_ranks) if virtual else ["cpu"] * schedule.num_ranks
    return Laboratory(schedule, devices, **options)


def moments(lab, run):
    """How many places a run passes."""
    lab.bomb.arm(ANYWHERE, None, None, lambda: None, passes=10**6)
    run()
    return 10**6 - lab.bomb.passes


@pytest.mark.parametrize(
    ("name", "virtual", "stride"),
    [("1f1b", False, 1), ("gpipe", True, 3), ("zb-v", False, 5), ("hanayo", False, 5), ("chimera", False, 4)],
)
def test_an_interrupt_at_any_moment_of_a_step(name, virtual, stride):
    before = threading.active_count()
    lab = laboratory(name, virtual)
    lab.step()
    count = moments(lab, lab.step)
    lab.model.zero_grad()
    for number, moment in enumerate(range(0, count, stride)):
        lab.bomb.arm(ANYWHERE, None, None, press, passes=moment)
        assert type(lab.failing_step()) is KeyboardInterrupt, f"pressed at the {moment}th place"
        lab.assert_at_rest()
        if number % 4 == 0:
            lab.assert_next_step_right()
    lab.pipe.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
def test_an_interrupt_at_any_moment_of_the_very_first_step(virtual):
    for moment in range(0, 80, 6):
        lab = laboratory("1f1b", virtual)
        lab.bomb.arm(ANYWHERE, None, None, press, passes=moment)
        assert type(lab.failing_step()) is KeyboardInterrupt
        lab.assert_at_rest()
        lab.assert_next_step_right()
        lab.pipe.close()


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
@pytest.mark.parametrize("place", ["forward", "backward", "loss", "loss_weight"])
def test_ten_in_a_row_are_one(place, virtual):
    def press_ten_times():
        for _ in range(10):
            press()
            time.sleep(0.001)

    lab = laboratory("1f1b", virtual)
    lab.bomb.arm(place, None, 1, press_ten_times)
    assert type(lab.failing_step()) is KeyboardInterrupt
    lab.assert_at_rest()
    lab.assert_next_step_right()
    lab.pipe.close()


def test_an_interrupt_and_an_error_at_one_time_are_one_of_them():
    def press_and_raise():
        press()
        raise ZeroDivisionError

    lab = laboratory("1f1b")
    for place in ("forward", "backward"):
        lab.bomb.arm(place, 1, 1, press_and_raise)
        assert type(lab.failing_step()) in (ZeroDivisionError, KeyboardInterrupt)
        lab.assert_at_rest()
        lab.assert_next_step_right()
    lab.pipe.close()


def test_while_one_rank_waits_for_another_only_the_running_call_is_waited_for():
    lab = laboratory("gpipe")
    ended = []

    def press_and_work_on():
        press()
        time.sleep(0.2)
        ended.append(time.monotonic())

    lab.bomb.arm("forward", 0, 0, press_and_work_on)  # all other ranks wait for it
    assert type(lab.failing_step()) is KeyboardInterrupt
    assert time.monotonic() - ended[0] < 1
    assert not any(microbatch for _, _, microbatch, _ in lab.bomb.memory), "no forward began after it"
    lab.assert_at_rest()
    lab.assert_next_step_right()
    lab.pipe.close()


def test_an_interrupt_at_any_moment_of_a_profile():
    lab = laboratory("1f1b")
    (x, ids), target = lab.plain
    before = {key: value.clone() for key, value in lab.model.state_dict().items()}
    active = threading.active_count()

    def profile():
        pp.profile(lab.model, (x[:2], ids[:2]), target[:2], loss_fn=lab.loss, repeats=1, progress=False)

    for moment in range(0, moments(lab, profile), 11):
        lab.bomb.arm(ANYWHERE, None, None, press, passes=moment)
        with pytest.raises(KeyboardInterrupt):
            profile()
        assert all(parameter.grad is None for parameter in lab.model.parameters())
        assert all(torch.equal(value, before[key]) for key, value in lab.model.state_dict().items())
        until(lambda: threading.active_count() == active, "a thread of the profile is alive")
        assert_torch_untouched()
    lab.assert_next_step_right()
    lab.pipe.close()


def test_an_interrupt_at_any_moment_of_a_check():
    lab = laboratory("1f1b")
    lab.step()
    kept = [parameter.grad.clone() for parameter in lab.model.parameters()]
    state = torch.get_rng_state()

    def check():
        assert pp.check_gradients(lab.pipe, *lab.plain)

    for moment in range(0, moments(lab, check), 5):
        lab.bomb.arm(ANYWHERE, None, None, press, passes=moment)
        with pytest.raises(KeyboardInterrupt):
            check()
        assert all(torch.equal(p.grad, g) for p, g in zip(lab.model.parameters(), kept, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        assert_torch_untouched()
    check()
    lab.assert_next_step_right()
    lab.pipe.close()


def test_an_interrupt_while_a_check_puts_things_back_does_not_end_that_half_way(monkeypatch):
    lab = laboratory("1f1b")
    lab.step()
    kept, state = [parameter.grad for parameter in lab.model.parameters()], torch.get_rng_state()
    put_back, pressed = preserve._put_back, []

    def put_back_and_press(*args):
        put_back(*args)
        if len(pressed) < 3:
            pressed.append(press())

    with monkeypatch.context() as patched:
        patched.setattr(preserve, "_put_back", put_back_and_press)
        with pytest.raises(KeyboardInterrupt):
            pp.check_gradients(lab.pipe, *lab.plain)
    assert len(pressed) == 3
    assert all(p.grad is gradient for p, gradient in zip(lab.model.parameters(), kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert_torch_untouched()
    lab.assert_next_step_right()
    lab.pipe.close()
