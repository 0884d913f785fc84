"""Threads are kept and ended."""

import os
import queue
import sys
import threading

import pytest
import torch

from pipelab.runtime.threads import ThreadPool


def test_a_thread_is_used_again():
    pool, done = ThreadPool(), queue.SimpleQueue()
    names = set()
    for _ in range(20):
        pool.run(lambda: (names.add(threading.get_ident()), done.put(None)))
        done.get(timeout=5)
    assert len(pool) <= 2  # the second only if the first was not back in the pool yet
    pool.close()


def test_a_thread_is_placed_before_its_job_begins():
    pool, done, placed = ThreadPool(), queue.SimpleQueue(), []
    for _ in range(3):  # the first in a new thread, the others mostly in one that was idle
        pool.run(lambda: done.put((threading.get_native_id(), list(placed))), placed.append)
        number, known = done.get(timeout=5)
        assert known[-1] == number
    pool.close()


def test_jobs_that_wait_for_each_other_do_not_deadlock():
    pool, barrier, done = ThreadPool(), threading.Barrier(5), queue.SimpleQueue()
    for _ in range(5):
        pool.run(lambda: done.put(barrier.wait(timeout=5)))
    assert sorted(done.get(timeout=5) for _ in range(5)) == [0, 1, 2, 3, 4]
    pool.close()


def test_closing_ends_every_thread():
    before = threading.active_count()
    pool, done = ThreadPool(), queue.SimpleQueue()
    for _ in range(3):
        pool.run(lambda: done.put(None))
    for _ in range(3):
        done.get(timeout=5)
    pool.close()
    assert threading.active_count() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists the threads of a process")
def test_no_thread_of_the_system_is_left_when_close_returns():
    for _ in range(20):
        before = set(os.listdir("/proc/self/task"))
        pool = ThreadPool()
        for _ in range(4):
            pool.run(lambda: torch.ones(2, requires_grad=True).sum().backward())
        pool.close()
        assert set(os.listdir("/proc/self/task")) <= before
