"""The Lab: choose a split and a schedule, see the predicted timeline, run it, see the measurement with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as T

from pipelab.core.costs import Links
from pipelab.core.plan import Devices, Plan
from pipelab.core.profile import Profile
from pipelab.core.quantities import as_seconds
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split
from pipelab.errors import PipelabError, one_of
from pipelab.widgets.choosing import Chooses, Misfit
from pipelab.widgets.closing import close_with_parts
from pipelab.widgets.controls import Controls
from pipelab.widgets.exhibit import VIEWS, Exhibit, exhibit
from pipelab.widgets.gallery import Gallery
from pipelab.widgets.markup import alert, error_text, paragraphs
from pipelab.widgets.measurement import Measurement
from pipelab.widgets.pins import Pins
from pipelab.widgets.recipe import recipe
from pipelab.widgets.runner import SECONDS_TO_STOP
from pipelab.widgets.runs import Runs
from pipelab.widgets.setting import CHOICES, Setting
from pipelab.widgets.shown import Bundle, Shown
from pipelab.widgets.standing import progress
from pipelab.widgets.traits import Refused, check_limit, check_setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

SHOWING = ("view", "memory", "critical_path", "memory_limit")


class Lab(Shown, Chooses, Runs, Pins, W.VBox):
    """A model, a batch, and the controls to plan, predict and run a pipeline of it.

    Everything shown is a value, and whatever the mouse can do one line of code can do: `lab.num_ranks = 2`,
    `lab.schedule = "gpipe"`, `lab.split = pp.Split(["blocks.3"])`, `lab.choose(...)` for several at once,
    `lab.run()`. What is impossible raises a PipelabError, is explained below the controls, and changes nothing.
    The whole batch stays fixed: more micro-batches are smaller ones, and cost what the profile says of that size.
    With a `Profile` in place of the model it predicts and runs nothing.

    Attributes:
        profile: costs of the layers.
        schedule: the `Schedule`; set it to one, or to a name of `pp.SCHEDULES`.
        num_ranks, num_microbatches, stages_per_rank: its sizes. Other numbers of stages balance the cuts anew.
        split: the `Split`; set it to one, or to a list of names.
        predicted: the simulated `Trace` of this setting.
        measured: the `Trace` of the last run, or None.
        measured_plan: the plan of that run; when it is not `plan` any more, the picture says so.
        plan: the `Plan` of this setting; `lab.plan.save(path)` keeps it.
        view: "over" (the measurement with the prediction as outlines), "both" (below one another), "predicted" or
            "measured".
        memory: whether the timelines show what each rank keeps.
        critical_path: whether they show what makes the step as long as it is.
        memory_limit: bytes that a rank may keep, marked in the timelines and beside the stages; None for no limit.
        pinned: traces kept for comparison, at most four; see `pin`.
        message: the last refusal or error, "" when all is well.
        running: whether a run is under way.

    Args:
        model: any `nn.Module`.
        inputs: the whole batch, in any form that `Pipeline.step` takes.
        target: for the loss.
        loss_fn, reduction, batch_dim: as for `Pipeline`.
        schedule, num_ranks, num_microbatches, stages_per_rank, split: where to begin.
        devices: "auto", one name a rank, or `pp.virtual(n)`, of which there are always as many as ranks.
        links: for the prediction.
        profile: measured before; None measures now, at about the size of a micro-batch.
        batch_size: samples in the whole batch, where there is a profile and no model; None takes the profile's.
        view, memory, critical_path, memory_limit: where to begin.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(4)])
        >>> x, y = torch.ones(8, 8), torch.ones(8, 8)
        >>> lab = pp.Lab(model, x, y, loss_fn=torch.nn.functional.mse_loss, num_ranks=2, devices=pp.virtual(2))
        >>> lab.choose(num_ranks=4, num_microbatches=4)
        >>> lab.split.num_stages, lab.predicted.num_ranks, lab.run().clock
        (4, 4, 'virtual')
        >>> print(lab.code().splitlines()[2])
        split = pp.Split(['1', '2', '3'])
        >>> lab.close()
    """

    view = T.Unicode("over")
    memory = T.Bool(False)
    critical_path = T.Bool(False)
    memory_limit = T.Any(None, allow_none=True)
    message = T.Unicode("", read_only=True)

    _closed = True  # until it is built: what is half built has nothing to close

    def __init__(
        self,
        model: nn.Module | Profile,
        inputs: Any = None,
        target: Any = None,
        *,
        loss_fn: Callable[..., Any] | None = None,
        reduction: str = "mean",
        batch_dim: int | tuple[int, int, int] = 0,
        schedule: str | Schedule | None = None,
        num_ranks: int | None = None,
        num_microbatches: int | None = None,
        stages_per_rank: int | None = None,
        split: Split | Iterable[str] | None = None,
        devices: Devices | Iterable[str] = "auto",
        links: Links | None = None,
        profile: Profile | None = None,
        batch_size: int | None = None,
        view: str = "over",
        memory: bool = False,
        critical_path: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        from pipelab.widgets.sample import Sample, check_fit

        how: dict[str, Any] = {"loss_fn": loss_fn, "reduction": reduction, "batch_dim": batch_dim}
        one_of("view", view, VIEWS)
        check_limit(memory_limit)
        sample = Sample.of(model, inputs, target, profile, batch_size, num_microbatches, **how)
        setting = Setting.start(
            sample.profile,
            batch_size=sample.batch_size,
            schedule=schedule,
            num_ranks=num_ranks,
            num_microbatches=num_microbatches,
            stages_per_rank=stages_per_rank,
            split=split,
            devices=devices,
            links=links,
        )
        measurement = None
        if not isinstance(model, Profile):
            check_fit(model, setting.profile, setting.plan)
            measurement = partial(Measurement, model=model, inputs=inputs, target=target, **how)
        self._call = sample.call
        showing = {
            "view": view,
            "memory": memory,
            "critical_path": critical_path,
            "memory_limit": memory_limit,
        }
        self._build(setting, measurement, **showing)

    @classmethod
    def from_profile(cls, profile: Profile, *, batch_size: int | None = None, **choices: Any) -> Lab:
        """A Lab that predicts but cannot run: `Lab(profile)`.

        Args:
            profile: costs of the layers.
            batch_size: samples in the whole batch; that of the profile when left out.
            **choices: any other argument of a Lab.
        """
        return cls(profile, batch_size=batch_size, **choices)

    def _build(
        self, setting: Setting, measurement: Callable[[Plan], Measurement] | None, **showing: Any
    ) -> None:
        self._setting = self._first = setting
        self._lock = threading.RLock()  # a run ends in its own thread while a slider moves in another
        self._error = W.HTML()
        self._status = W.HTML()
        self._controls = Controls(setting, self._wished)
        self._gallery = Gallery(setting.predicted, self._wished)
        super().__init__([self._controls.box, self._error, self._status, self._gallery.box], **showing)
        self.add_class("pipelab")
        self._closed = False
        self._set_up(measurement)
        self._adopt(setting)
        self.observe(lambda _: self._show(), list(SHOWING))

    def _wished(self, name: str, value: Any) -> None:
        """A person moved a control."""
        moves: dict[str, Callable[[], object]] = {
            "run": self.start,
            "stop": self.stop,
            "pin": self.pin,
            "unpin": self.unpin,
            "pinned": lambda: self._pin(value),
            "code": self._toggle_code,
            "typed": lambda: self._refuse_typed(*value),
        }
        try:
            if name in moves:
                moves[name]()
            elif name == "split" and value.num_stages != self._setting.split.num_stages:
                self._choose_stages(value)
            else:
                setattr(self, name, value)
        except Exception as error:  # seen in the widget, not lost in a log
            if not isinstance(error, PipelabError | Misfit):  # of these the sentence is there already
                self._say(error_text(error))
            with suppress(Exception):  # it cannot be drawn: that has been said
                self._show()  # all goes back to what holds

    @T.validate("view", "memory_limit")
    def _validate_showing(self, proposal: dict[str, Any]) -> Any:
        value = proposal["value"]
        with self._explained():
            try:
                if proposal["trait"].name == "view":
                    one_of("view", value, VIEWS)
                else:
                    check_limit(value)
            except PipelabError as error:
                raise Refused(str(error)) from error
        return value

    # -- taking along -------------------------------------------------------------------------------------------

    def code(self) -> str:
        """Lines that make this plan and run it; model, batch and loss are called model, x, y and loss_fn there."""
        return recipe(self._setting, self._call)

    def _toggle_code(self) -> None:
        self._controls.show_code(None if self._controls.shows_code else self.code())

    # -- what is shown ------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Samples in the whole batch, which stays as it is."""
        return self._setting.batch_size

    @property
    def text(self) -> str:
        """The timelines in words."""
        return self._gallery.text

    def static_figure(self) -> Figure:
        """The timelines as they are now, as a matplotlib figure."""
        return self._gallery.static_figure()

    def _stills(self) -> list[Bundle]:
        beneath = [self._gallery.compare._still()] if self._gallery.compare is not None else []
        return [self._controls.editor._still(), self._still(), *beneath]

    def _announce(self, tail: str) -> None:
        self._gallery.upper._announce(tail)  # which hides the picture of the timelines

    def _exhibited(self) -> Exhibit:
        current = self.measured_is_current
        return exhibit(self._setting.predicted, self.measured, view=self.view, is_current=current)

    def _show(self) -> None:
        with self._lock:
            if self._closed:
                return
            shown = self._exhibited()
            options = {name: getattr(self, name) for name in SHOWING[1:]}
            try:
                self._gallery.show(shown, **options)
            finally:
                self._show_controls()
                self._show_standing(shown)

    def _show_standing(self, shown: Exhibit | None = None) -> None:
        """The lines below the controls."""
        of_run = self._lines_of_run((shown or self._exhibited()).hints)
        lines = [progress(self._setting, self._first), *self._setting.notes, *of_run]
        self._status.value = paragraphs(filter(None, lines))

    def _show_controls(self) -> None:
        self._controls.show(self._setting, view=self.view, memory_limit=self.memory_limit)
        if self._controls.shows_code:
            try:
                code = self.code()
            except Exception as error:  # all else can be shown
                code = "".join(f"# {line}\n" for line in error_text(error).splitlines())
            self._controls.show_code(code)

    def _say(self, message: str) -> None:
        with self._lock:
            self.set_trait("message", message)
            self._error.value = alert(message)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Take the last refusal away; a new one is shown, and raised on."""
        if self.message:
            self._say("")  # before, not after: what happens inside may have something to say
        try:
            yield
        except (PipelabError, Misfit) as error:
            self._say(str(error))
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        check_setting(type(self), name, (*CHOICES, *SHOWING))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        setting = self._setting
        measured = self.measured
        outcome = "nothing measured" if measured is None else f"measured {as_seconds(measured.makespan)}"
        return (
            f"<Lab: {setting.schedule.name}, {setting.num_ranks} ranks, {setting.num_microbatches} micro-batches, "
            f"predicted {as_seconds(setting.predicted.makespan)}, {outcome}>"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "A Lab cannot be pickled: it is live widgets and a model. Keep what it is set to, with "
            "lab.plan.save(path), lab.profile.save(path) and lab.code(), and make another from these."
        )

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
            self._gallery.close()
            for widget in (self._error, self._status):
                close_with_parts(widget)
            super().close()
            self.layout.close()
