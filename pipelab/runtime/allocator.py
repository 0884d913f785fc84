"""The C library's allocator, told to keep memory that it would hand back: the user's choice, never made at import.

A step frees and allocates the same large blocks again and again. glibc maps each from the system and gives it back, and
every page of it costs a fault when it is first touched: tens of thousands in a step of a small GPT.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of <malloc.h>

SETTINGS = {
    "M_MMAP_THRESHOLD": (M_MMAP_THRESHOLD, 32 * 2**20),  # the largest that glibc takes on 64 bits
    "M_TRIM_THRESHOLD": (M_TRIM_THRESHOLD, 2**30),
    "M_ARENA_MAX": (M_ARENA_MAX, 1),
}
"""By name the number of each setting and its value: bytes, bytes, and how many heaps threads share."""


@dataclass(frozen=True)
class AllocatorTuning:
    """What `tune_allocator` did. True where it changed something.

    Attributes:
        settings: what was set, by its name in `<malloc.h>`; empty where nothing was.
        reason: why nothing was, or not all; "" where all was.
    """

    settings: dict[str, int]
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.settings)

    def __str__(self) -> str:
        said = ", ".join(f"{name} = {value:,}" for name, value in self.settings.items())
        done = f"glibc's allocator: {said}" if said else "nothing was changed"
        return f"{done} ({self.reason})" if self.reason else done


def tune_allocator() -> AllocatorTuning:
    """Tells glibc's allocator to keep freed memory for the next allocation, for the rest of this process.

    Blocks below 32 MiB come from one heap that all threads share and that is handed back to the system only when 1 GiB
    at its end is free. Measured on two ranks with a GPT of 8 blocks of width 256: 12,000 to 25,000 page faults a step
    without it, by the schedule, and 0 to 500 with it (`benchmarks/allocator.py` shows the seconds as well).
    The price: the process keeps its peak of memory, and threads that allocate small blocks all the time wait for each
    other. It holds for everything in this process, therefore it is a call and not a default. Call it first: heaps
    that threads already have stay. A second call changes nothing more. GPU memory has another allocator.

    Returns:
        What was set; or, where this is not Linux with glibc, or another allocator is loaded, that nothing was, and why.

    Example:
        >>> import pipelab as pp
        >>> tuning = pp.tune_allocator()
        >>> bool(tuning) == (tuning.settings != {})
        True
    """
    reason = _why_not()
    if reason:
        return AllocatorTuning({}, reason)
    mallopt = ctypes.CDLL(None).mallopt
    taken = {name: value for name, (number, value) in SETTINGS.items() if mallopt(number, value)}
    refused = [name for name in SETTINGS if name not in taken]
    return AllocatorTuning(taken, f"refused by glibc: {', '.join(refused)}" if refused else "")


def _why_not() -> str:
    """Why the allocator of this process is none that can be told; "" if it can."""
    if sys.platform != "linux":
        return f"this is {sys.platform}, and only glibc on Linux has these settings"
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return "the C library is not glibc"
    home = _file_of(library, "malloc")
    if not os.path.basename(home).startswith("libc"):
        return f"memory comes from another allocator: {home}"
    return ""


class _Place(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _file_of(library: ctypes.CDLL, name: str) -> str:
    """The file that a function of this process comes from."""
    place = _Place()
    library.dladdr(ctypes.cast(getattr(library, name), ctypes.c_void_p), ctypes.byref(place))
    return os.fsdecode(place.file or b"")
