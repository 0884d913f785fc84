"""CPU cores: which ones this process may use, and which a thread keeps to. Only Linux can be asked for either."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

Cores = frozenset[int]


def usable() -> Cores:
    """The cores this process may use; elsewhere than on Linux as many as there are, by number."""
    if sys.platform == "linux":
        # Of the main thread: others may keep to a rank's core.
        return frozenset(os.sched_getaffinity(os.getpid()))
    return frozenset(range(os.cpu_count() or 1))


def keep(thread: int, cores: Cores | None) -> None:
    """Lets a thread run on some cores alone, from now on; best before it wakes.

    Args:
        thread: 0 for the calling one, else the system's number of a thread of this process.
        cores: None changes nothing.
    """
    if cores is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):  # the thread has ended, or a core was taken from this process
            os.sched_setaffinity(thread, cores)


@contextlib.contextmanager
def kept(cores: Cores | None) -> Iterator[None]:
    """Inside, the calling thread keeps to some cores."""
    before = frozenset(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    keep(0, cores)
    try:
        yield
    finally:
        keep(0, None if cores is None else before)
