"""Threads that are kept between uses: handing work over takes about 10 microseconds, making a thread 60."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

Job = Callable[[], None]

_SECONDS_TO_VANISH = 0.5
"""How long `close` waits for a thread that Python has joined; microseconds do, if it gets the interpreter's lock."""


class ThreadPool:
    """Runs each job in a thread of its own and keeps the thread for the next job.

    There is no limit on purpose: a job may block until another job ends, so a limit could deadlock. Whoever
    uses the pool bounds how many jobs are unfinished.
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may dismiss a dropped pool in one of its own threads, at any moment.
        self._lock = threading.RLock()
        self._idle: list[tuple[queue.SimpleQueue[Job | None], int]] = []
        self._threads: list[tuple[threading.Thread, queue.SimpleQueue[Job | None]]] = []
        self._closed = False

    def run(self, job: Job, place: Callable[[int], None] | None = None) -> None:
        """Starts `job` in an idle thread, or in a new one. A job must not raise.

        Args:
            job: what to do.
            place: called with the system's number of the thread before it begins.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this thread pool is closed")
            inbox, number = self._idle.pop() if self._idle else self._new_thread()
            if place is not None:
                place(number)
            inbox.put(job)  # in the lock: what `dismiss` puts there comes after it

    def close(self) -> None:
        """Ends every thread once its job is done, and waits for that."""
        threads = self.dismiss()
        for thread in threads:
            thread.join()
        # A joined thread may still be freeing what torch keeps for each thread, Python objects among it. An interpreter
        # that ends at that moment takes the thread down in the middle of it, and the process with it.
        until = time.monotonic() + _SECONDS_TO_VANISH
        while any(map(_lingers, threads)) and time.monotonic() < until:
            time.sleep(0.0005)

    def dismiss(self) -> list[threading.Thread]:
        """Ends every thread once its job is done, without waiting; returns them."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
            self._idle.clear()
        for _, inbox in threads:
            inbox.put(None)
        return [thread for thread, _ in threads]

    def __len__(self) -> int:
        return len(self._threads)

    def _new_thread(self) -> tuple[queue.SimpleQueue[Job | None], int]:
        inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # Daemon: an interpreter that shuts down with a pipeline still open must not wait for it.
        thread = threading.Thread(target=self._serve, args=(inbox,), daemon=True, name="pipelab")
        thread.start()  # raises where the system has no more threads
        self._threads.append((thread, inbox))
        return inbox, thread.native_id or 0

    def _serve(self, inbox: queue.SimpleQueue[Job | None]) -> None:
        while (job := inbox.get()) is not None:
            job()
            job = None  # an idle thread must not keep the last job's tensors alive
            with self._lock:
                self._idle.append((inbox, threading.get_native_id()))


def _lingers(thread: threading.Thread) -> bool:
    """Whether the system still has the thread. Only Linux tells."""
    return thread.native_id is not None and os.path.exists(f"/proc/self/task/{thread.native_id}")
