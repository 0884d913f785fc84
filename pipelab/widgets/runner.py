"""One run at a time, in this thread or behind the notebook's back, and whoever shows it hears how it went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.widgets.measurement import Measurement

SECONDS_BETWEEN_REPORTS = 0.1  # a message for each action would drown the front end
SECONDS_TO_STOP = 30.0  # a run stops after the module call that is running

Result = Trace | BaseException


class Runner:
    """Runs measurements, never two at once.

    Args:
        began: called when a run has begun.
        progressed: called with (actions done, actions in all), at most ten times a second.
        ended: called with the measurement and its trace, or with what stopped or broke it.
        freed: called when the next run may begin.

    All four are called in the thread that runs.
    """

    def __init__(
        self,
        began: Callable[[], None],
        progressed: Callable[[int, int], None],
        ended: Callable[[Measurement, Result], None],
        freed: Callable[[], None],
    ) -> None:
        self._began = began
        self._progressed = progressed
        self._ended = ended
        self._freed = freed
        self._lock = threading.Lock()
        self._measurement: Measurement | None = None
        self._thread: threading.Thread | None = None
        self._reported = 0.0

    def here(self, make: Callable[[], Measurement]) -> Trace:
        """Run in this thread; whatever stops or breaks the run is raised."""
        measurement = self._begin(make)
        result = self._result(measurement)
        if isinstance(result, BaseException):
            raise result
        return result

    def behind(self, make: Callable[[], Measurement]) -> None:
        """Run in a thread of its own; the listener hears of what stops or breaks the run."""
        measurement = self._begin(make)
        thread = threading.Thread(
            target=self._result, args=(measurement,), name="pipelab-lab-run", daemon=True
        )
        try:
            thread.start()
        except BaseException as error:  # such as that there can be no more threads
            self._end(measurement, error)
            raise
        self._thread = thread

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way; the next one is refused until then."""
        return self._measurement is not None

    def stop(self) -> None:
        """Ask the run that is under way to stop; without one, nothing happens."""
        measurement = self._measurement
        if measurement is not None:
            measurement.stop()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the run behind; whether no run is under way any more."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return self._measurement is None

    def _begin(self, make: Callable[[], Measurement]) -> Measurement:
        with self._lock:
            if self._measurement is not None:
                raise PipelabError("A run is under way. Wait for it, or stop it: lab.stop().")
            measurement = self._measurement = make()
        self._reported = 0.0
        try:
            self._began()
        except (
            BaseException
        ) as error:  # of whoever heard of it; the run that did not come about blocks no other
            self._end(measurement, error)
            raise
        return measurement

    def _result(self, measurement: Measurement) -> Result:
        try:
            result: Result = measurement.run(self._report)
        except BaseException as error:  # also a model's SystemExit: in a thread nobody else would hear of it
            result = error
        self._end(measurement, result)
        return result

    def _end(self, measurement: Measurement, result: Result) -> None:
        """Tell how it went, and only then let the next run begin."""
        try:
            self._ended(measurement, result)
        finally:
            self._measurement = None
            self._freed()

    def _report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._progressed(done, total)
