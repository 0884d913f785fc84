"""The part of the Lab that runs: one run at a time, here or behind the notebook's back, and what is then said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import traitlets as T

from pipelab.core.plan import Plan
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.widgets.controls import Controls
from pipelab.widgets.markup import error_text
from pipelab.widgets.measurement import NO_MODEL, Measurement
from pipelab.widgets.runner import Runner
from pipelab.widgets.standing import lines_of_run


class Runs(T.HasTraits):
    """Runs the plan that is shown, and takes down what was measured.

    Attributes:
        measured: the `Trace` of the last run, or None.
        measured_plan: the plan of that run.
        running: whether a run is under way.
    """

    measured = T.Any(None, allow_none=True, read_only=True)
    measured_plan = T.Any(None, allow_none=True, read_only=True)
    running = T.Bool(False, read_only=True)

    plan: Any
    _lock: threading.RLock
    _controls: Controls
    _explained: Callable[[], AbstractContextManager[None]]
    _say: Callable[[str], None]
    _show: Callable[[], None]
    _show_standing: Callable[[], None]
    _closed: bool

    def _set_up(self, measurement: Callable[[Plan], Measurement] | None) -> None:
        self._measurement_of = measurement
        self._hint = ""
        self._hint_of: Plan | None = None
        self._runner = Runner(self._began, self._controls.show_progress, self._ended, self._freed)
        self._controls.show_run(running=False, why_not="" if measurement else NO_MODEL)

    def run(self) -> Trace:
        """Run the plan here and now: warm-up steps, then a measured one. The model is left as it was.

        Returns:
            The measured trace, which is also `measured`.

        Raises:
            PipelabError: there is no model, or a run is under way.
            KeyboardInterrupt: on an interrupt; `measured` stays what it was.
        """
        with self._explained():
            return self._runner.here(self._new_measurement)

    def start(self) -> None:
        """Run the plan in the background, as the Run button does; the notebook can go on."""
        with self._explained():
            self._runner.behind(self._new_measurement)

    def stop(self) -> None:
        """Stop the run that is under way, if there is one; `measured` stays what it was."""
        self._runner.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a run in the background.

        Args:
            timeout: seconds; None waits as long as it takes.

        Returns:
            Whether no run is under way any more.
        """
        return self._runner.wait(timeout)

    def _check_open(self) -> None:
        if self._closed:
            raise PipelabError(
                "This Lab is closed: what it showed can still be read, but it runs and pins nothing any more. Make "
                "another with pp.Lab."
            )

    def _lines_of_run(self, hints: tuple[str, ...]) -> tuple[str, ...]:
        """What there is to say of runs now; the hints are about what is shown."""
        hint = self._hint if self._hint_of == self.plan else ""
        can_run = self._measurement_of is not None
        return lines_of_run(can_run=can_run, running=self.running, hint=hint, hints=hints)

    def _new_measurement(self) -> Measurement:
        self._check_open()
        if self._measurement_of is None:
            raise PipelabError(NO_MODEL)
        return self._measurement_of(self.plan)

    def _began(self) -> None:
        with self._lock:
            self._controls.show_progress(0, 1)
            self._controls.show_run(running=True)
            try:
                self.set_trait("running", True)
            finally:
                self._show_standing()

    def _ended(self, measurement: Measurement, result: Trace | BaseException) -> None:
        """Take down how a run went. An error of whoever hears of it is said, and keeps nothing from going on."""
        with self._lock:
            try:
                self._take_down(measurement, result)
            except Exception as error:
                self._say(error_text(error))
            try:
                self._show()
            except Exception as error:
                self._say(error_text(error))

    def _take_down(self, measurement: Measurement, result: Trace | BaseException) -> None:
        if isinstance(result, Trace):
            self._hint, self._hint_of = f"Measured on {measurement.clock}.", measurement.plan
            self._controls.show_progress(1, 1, "success")
            self._say("")  # what was refused before is over
            with self.hold_trait_notifications():
                self.set_trait("measured", result)
                self.set_trait("measured_plan", measurement.plan)
        elif isinstance(result, KeyboardInterrupt):
            self._hint, self._hint_of = "Stopped: nothing was measured.", self.plan
            self._controls.show_progress(0, 1, "warning")
        else:
            self._hint, self._hint_of = "The run failed: nothing was measured.", self.plan
            self._controls.show_progress(0, 1, "danger")
            self._say(error_text(result))

    def _freed(self) -> None:
        with self._lock:
            is_busy = self._runner.is_busy  # another may have begun in the meantime
            self._controls.show_run(running=is_busy)
            try:
                self.set_trait("running", is_busy)
            except Exception as error:  # of an observer
                self._say(error_text(error))
            finally:
                self._show_standing()

    @property
    def measured_is_current(self) -> bool:
        """Whether `measured` is of the plan that is shown now."""
        return self.measured is not None and self.measured_plan == self.plan
