"""The Lab: choose a split and a schedule, see the predicted timeline, run it, see the measured one beneath."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as T

from pipelab.core.costs import Links
from pipelab.core.plan import Devices, Plan
from pipelab.core.profile import Profile
from pipelab.core.quantities import as_seconds
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError, one_of
from pipelab.widgets.controls import Controls, close_with_parts
from pipelab.widgets.exhibit import VIEWS, exhibit
from pipelab.widgets.frame import Frame
from pipelab.widgets.markup import alert, error_text, paragraphs
from pipelab.widgets.measurement import NO_MODEL, Measurement
from pipelab.widgets.picture import Picture
from pipelab.widgets.runner import SECONDS_TO_STOP, Runner
from pipelab.widgets.setting import CHOICES, Setting
from pipelab.widgets.traits import Choice, Refused, check_setting

if TYPE_CHECKING:
    from torch import nn


class Lab(W.VBox):
    """A model, a batch, and the controls to plan, predict and run a pipeline of it.

    Everything shown is a value, and whatever the mouse can do one line of code can do: `lab.num_ranks = 2`,
    `lab.schedule = "gpipe"`, `lab.split = pp.Split(["blocks.3"])`, `lab.choose(...)` for several at once,
    `lab.run()`. What is impossible raises a PipelabError, is explained below the controls, and changes nothing.
    The whole batch stays fixed: more micro-batches are smaller ones, and cost what the profile says of that size.

    Attributes:
        profile: costs of the layers.
        schedule: the `Schedule`; set it to one, or to a name of `pp.SCHEDULES`.
        num_ranks, num_microbatches, stages_per_rank: its sizes. Other numbers of stages balance the cuts anew.
        split: the `Split`; set it to one, or to a list of names.
        predicted: the simulated `Trace` of this setting.
        measured: the `Trace` of the last run, or None.
        measured_plan: the plan of that run; when it is not `plan` any more, the picture says so.
        plan: the `Plan` of this setting; `lab.plan.save(path)` keeps it.
        view: "predicted", "measured" or "both".
        memory: whether the picture shows what each rank keeps.
        message: the last refusal or error, "" when all is well.
        running: whether a run is under way.

    Args:
        model: any `nn.Module`.
        inputs: the whole batch, in any form that `Pipeline.step` takes.
        target: for the loss.
        loss_fn, reduction: as for `Pipeline`.
        schedule, num_ranks, num_microbatches, stages_per_rank, split: where to begin.
        devices: "auto", one name a rank, or `pp.virtual(n)`, of which there are always as many as ranks.
        links: for the prediction.
        profile: measured before; None measures now, at about the size of a micro-batch.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(4)])
        >>> x, y = torch.ones(8, 8), torch.ones(8, 8)
        >>> lab = pp.Lab(model, x, y, loss_fn=torch.nn.functional.mse_loss, num_ranks=2, devices=pp.virtual(2))
        >>> lab.choose(num_ranks=4, num_microbatches=4)
        >>> lab.split.num_stages, lab.predicted.num_ranks, lab.run().clock
        (4, 4, 'virtual')
        >>> lab.close()
    """

    profile = T.Any(read_only=True)
    schedule = Choice()
    num_ranks = Choice()
    num_microbatches = Choice()
    stages_per_rank = Choice()
    split = Choice()
    plan = T.Any(read_only=True)
    predicted = T.Any(read_only=True)
    measured = T.Any(None, allow_none=True, read_only=True)
    measured_plan = T.Any(None, allow_none=True, read_only=True)
    view = T.Unicode("both")
    memory = T.Bool(False)
    message = T.Unicode("", read_only=True)
    running = T.Bool(False, read_only=True)

    _closed = True  # until it is built: what is half built has nothing to close

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any = None,
        *,
        loss_fn: Callable[..., Any] | None = None,
        reduction: str = "mean",
        schedule: str | Schedule | None = None,
        num_ranks: int | None = None,
        num_microbatches: int | None = None,
        stages_per_rank: int | None = None,
        split: Split | Iterable[str] | None = None,
        devices: Devices | Iterable[str] = "auto",
        links: Links | None = None,
        profile: Profile | None = None,
    ) -> None:
        from pipelab.widgets.sample import batch_size_of, check_fit, profile_of_microbatch

        size = batch_size_of(inputs, target)
        if profile is None:
            profile = profile_of_microbatch(model, inputs, target, loss_fn, num_microbatches or 8)
        setting = Setting.start(
            profile,
            batch_size=size,
            schedule=schedule,
            num_ranks=num_ranks,
            num_microbatches=num_microbatches,
            stages_per_rank=stages_per_rank,
            split=split,
            devices=devices,
            links=links,
        )
        check_fit(model, setting.profile, setting.plan)

        def measurement(plan: Plan) -> Measurement:
            return Measurement(plan, model, inputs, target, loss_fn=loss_fn, reduction=reduction)

        self._build(setting, measurement)

    @classmethod
    def from_profile(cls, profile: Profile, *, batch_size: int | None = None, **choices: Any) -> Lab:
        """A Lab that predicts but cannot run: no model is needed.

        Args:
            profile: costs of the layers.
            batch_size: samples in the whole batch; that of the profile when left out.
            **choices: schedule, num_ranks, num_microbatches, stages_per_rank, split, devices, links.
        """
        lab = cls.__new__(cls)
        lab._build(Setting.start(profile, batch_size=batch_size, **choices), None)
        return lab

    def _build(self, setting: Setting, measurement: Callable[[Plan], Measurement] | None) -> None:
        self._setting = setting
        self._measurement_of = measurement
        self._lock = threading.RLock()  # a run ends in its own thread while a slider moves in another
        self._mirroring = False
        self._hint = ""
        self._picture = Picture()
        self._frame = Frame()
        self._error = W.HTML()
        self._status = W.HTML()
        self._controls = Controls(setting, self._wished)
        self._runner = Runner(self._began, self._controls.show_progress, self._ended)
        super().__init__([self._controls.box, self._error, self._status, self._frame])
        self._closed = False
        self._controls.show_run(running=False, why_not="" if measurement else NO_MODEL)
        self._adopt(setting)
        self.observe(lambda _: self._show(), ["view", "memory"])

    # -- choices ------------------------------------------------------------------------------------------------

    def choose(self, **wishes: Any) -> None:
        """Change several choices at once, where one by one would pass through what is impossible.

        Args:
            **wishes: any of schedule, num_ranks, num_microbatches, stages_per_rank, split.

        Raises:
            PipelabError: what is asked for is impossible; nothing has changed.
        """
        with self._explained():
            self._adopt(self._setting.changed(**wishes))

    def balance(self) -> None:
        """Move the cuts to where the slowest stage is fastest."""
        with self._explained():
            self._adopt(self._setting.balanced())

    @T.validate(*CHOICES)
    def _validate_choice(self, proposal: dict[str, Any]) -> Any:
        name = proposal["trait"].name
        if self._mirroring:
            return proposal["value"]
        wishes = {name: proposal["value"]}
        if self._cross_validation_lock:  # several changes were held back: they are one wish
            changed = [key for key in CHOICES if getattr(self, key) != getattr(self._setting, key)]
            wishes |= {key: getattr(self, key) for key in changed}
        try:
            self.choose(**wishes)
        except PipelabError as error:
            raise Refused(str(error)) from error
        return getattr(self._setting, name)

    @T.validate("view")
    def _validate_view(self, proposal: dict[str, Any]) -> Any:
        with self._explained():
            try:
                one_of("view", proposal["value"], VIEWS)
            except PipelabError as error:
                raise Refused(str(error)) from error
        return proposal["value"]

    def _adopt(self, setting: Setting) -> None:
        """Show another setting."""
        setting.report  # noqa: B018 - whatever cannot be computed is refused before anything changes
        with self._lock:
            self._setting = setting
            self._mirror()
            self._show()

    def _mirror(self) -> None:
        """The public traits say what the setting says, all at once."""
        self._mirroring = True
        try:
            with self.hold_trait_notifications():
                for name in (*CHOICES, "profile", "predicted", "plan"):
                    self.set_trait(name, getattr(self._setting, name))
        finally:
            self._mirroring = False

    def _wished(self, name: str, value: Any) -> None:
        """A person moved a control."""
        moves: dict[str, Callable[[], None]] = {
            "cut": lambda: self._move_cut(*value),
            "balance": self.balance,
            "run": self.start,
            "stop": self.stop,
        }
        try:
            if name in moves:
                moves[name]()
            else:
                setattr(self, name, value)
        except PipelabError:
            self._show_controls()  # the sentence is there already; the control goes back to what holds
        except Exception as error:  # seen in the widget, not lost in a log
            self._say(error_text(error))
            self._show_controls()

    def _move_cut(self, border: int, position: int) -> None:
        with self._explained():
            self._adopt(self._setting.moved_cut(border, position))

    # -- running ------------------------------------------------------------------------------------------------

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

    def _new_measurement(self) -> Measurement:
        if self._measurement_of is None:
            raise PipelabError(NO_MODEL)
        return self._measurement_of(self._setting.plan)

    def _began(self) -> None:
        with self._lock:
            self.set_trait("running", True)
            self._controls.show_progress(0, 1)
            self._controls.show_run(running=True)

    def _ended(self, measurement: Measurement, result: Trace | BaseException) -> None:
        with self._lock:
            if isinstance(result, Trace):
                self._hint = f"Measured on {measurement.clock}."
                self._controls.show_progress(1, 1, "success")
                with self.hold_trait_notifications():
                    self.set_trait("measured", result)
                    self.set_trait("measured_plan", measurement.plan)
            elif isinstance(result, KeyboardInterrupt):
                self._hint = "Stopped: nothing was measured."
                self._controls.show_progress(0, 1, "warning")
            else:
                self._hint = "The run failed: nothing was measured."
                self._controls.show_progress(0, 1, "danger")
                self._say(error_text(result))
            self._controls.show_run(running=False)
            self._show()
            self.set_trait("running", False)

    # -- what is shown ------------------------------------------------------------------------------------------

    @property
    def measured_is_current(self) -> bool:
        """Whether `measured` is of the plan that is shown now."""
        return self.measured is not None and self.measured_plan == self._setting.plan

    @property
    def batch_size(self) -> int:
        """Samples in the whole batch, which stays as it is."""
        return self._setting.batch_size

    @property
    def text(self) -> str:
        """The picture in words."""
        return self._picture.text

    def _show(self) -> None:
        with self._lock:
            if self._closed:
                return
            predicted, current = self._setting.predicted, self.measured_is_current
            shown = exhibit(predicted, self.measured, view=self.view, is_current=current)
            self._picture.draw(shown.traces, shown.remarks, memory=self.memory, same_plan=shown.same_plan)
            self._frame.show(self._picture.png(), self._picture.text)
            self._show_controls()
            lines = [*self._setting.notes, self._hint, *shown.hints]
            self._status.value = paragraphs(filter(None, lines))

    def _show_controls(self) -> None:
        self._controls.show(self._setting, view=self.view, memory=self.memory)

    def _say(self, message: str) -> None:
        with self._lock:
            self.set_trait("message", message)
            self._error.value = alert(message)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A refusal is shown, and raised on; success takes the last one away."""
        try:
            yield
        except (PipelabError, TypeError) as error:
            self._say(str(error))
            raise
        if self.message:
            self._say("")

    def __setattr__(self, name: str, value: Any) -> None:
        check_setting(type(self), name, (*CHOICES, "view", "memory"))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        setting = self._setting
        measured = self.measured
        outcome = "nothing measured" if measured is None else f"measured {as_seconds(measured.makespan)}"
        return (
            f"<Lab: {setting.schedule.name}, {setting.num_ranks} ranks, {setting.num_microbatches} micro-batches, "
            f"predicted {as_seconds(setting.predicted.makespan)}, {outcome}>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for readers without a front end the picture and its words as they are now."""
        static = {
            "text/plain": f"{self!r}\n{self.text}",
            "image/png": base64.b64encode(self._frame.png).decode(),
        }
        live = {} if self._closed else super()._repr_mimebundle_(**kwargs) or {}
        return {**live, **static}, {"image/png": {"alt": self.text}}

    def close(self) -> None:
        """Stop a run, end its thread, drop the widgets and the figure. What was shown stays readable as values."""
        if self._closed:
            return
        self.stop()
        self.wait(SECONDS_TO_STOP)
        with self._lock:
            self._closed = True
            self.unobserve_all()
            self._controls.close()
            for widget in (self._error, self._status, self._frame):
                close_with_parts(widget)
            super().close()
            self.layout.close()
            self.__dict__.pop("_repr_mimebundle_", None)  # closing hides it; the picture can still be shown
