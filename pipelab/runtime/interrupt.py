"""An interrupt that never lands in the middle of the engine.

While a step runs, the user's code runs in other threads and the calling thread only waits. So Ctrl-C (in Jupyter: the
stop button) need not raise there and then: it asks the step to stop, the step comes to rest, and then
KeyboardInterrupt is raised where the user called.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """While open, SIGINT calls `stop` and is remembered as `caught`; closing raises what nobody has raised yet.

    In other threads than the main one, which never see SIGINT, it does nothing.

    Args:
        stop: called in the signal handler; must not block.
        late: called before an interrupt is raised that came too late for anyone inside to see.
    """

    def __init__(self, stop: Callable[[], None], late: Callable[[], object] = lambda: None) -> None:
        self._stop = stop
        self._late = late
        self._previous: Any = None
        self.caught = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):  # not when the process ignores SIGINT or handles it outside Python
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self._previous is None:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self.caught and self._previous is not signal.default_int_handler:
            self._previous(signal.SIGINT, None)  # a program's own handler hears of it too
        if self.caught and error is None:
            self._late()
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        self._stop()
