"""An interrupt is remembered and delivered, and the handler that was there comes back."""

import os
import signal
import threading

import pytest

from pipelab.runtime.interrupt import Interrupts


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_asks_to_stop_and_is_raised_at_the_end():
    before, stopped = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), Interrupts(lambda: stopped.append(1)) as interrupts:
        interrupt()
        assert stopped == [1] and interrupts.caught
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_that_is_under_way_is_not_replaced():
    with pytest.raises(ZeroDivisionError), Interrupts(lambda: None):
        interrupt()
        raise ZeroDivisionError


def test_a_programs_own_handler_hears_of_it_too():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), Interrupts(lambda: None):
            interrupt()
            assert heard == []
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_program_that_ignores_interrupts_goes_on_ignoring_them():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(lambda: pytest.fail("stopped")) as interrupts:
            interrupt()
        assert not interrupts.caught
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_touched():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with Interrupts(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
