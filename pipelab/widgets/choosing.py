"""The part of the Lab that chooses: traits that are one frozen setting, and stay one whoever changes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import traitlets as T

from pipelab.core.split import Split
from pipelab.errors import PipelabError
from pipelab.widgets.setting import CHOICES, Setting
from pipelab.widgets.traits import Choice, Refused


class Misfit(TypeError, T.TraitError):
    """A value of a kind that no setting is of, in a form that traitlets understands, so that it is rolled back."""


class Chooses(T.HasTraits):
    """Choices that follow a setting: a change makes a new one, or is refused and changes nothing.

    Attributes:
        profile: costs of the layers.
        schedule, num_ranks, num_microbatches, stages_per_rank, split: the choices.
        plan: the `Plan` of this setting.
        predicted: the simulated `Trace` of this setting.
    """

    profile = T.Any(read_only=True)
    schedule = Choice()
    num_ranks = Choice()
    num_microbatches = Choice()
    stages_per_rank = Choice()
    split = Choice()
    plan = T.Any(read_only=True)
    predicted = T.Any(read_only=True)

    _setting: Setting
    _lock: threading.RLock
    _explained: Callable[[], AbstractContextManager[None]]
    _show: Callable[[], None]
    _is_mirroring = False

    def choose(self, **wishes: Any) -> None:
        """Change several choices at once, where one by one would pass through what is impossible.

        Args:
            **wishes: any of schedule, num_ranks, num_microbatches, stages_per_rank, split.

        Raises:
            PipelabError: what is asked for is impossible; nothing has changed.
            TypeError: a value is of a kind that no setting is of; nothing has changed.
        """
        with self._explained():
            try:
                setting = self._setting.changed(**wishes)
            except TypeError as error:
                raise Misfit(str(error)) from error
            self._adopt(setting)

    def balance(self) -> None:
        """Move the cuts to where the slowest stage is fastest."""
        with self._explained():
            self._adopt(self._setting.balanced())

    @T.validate(*CHOICES)
    def _validate_choice(self, proposal: dict[str, Any]) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        own = getattr(self._setting, name)
        if self._is_mirroring and type(value) is type(own) and value == own:
            return value  # an observer that sets another while all this is told is heard like anybody
        wishes = {name: value}
        if self._cross_validation_lock:  # several changes were held back: they are one wish
            changed = [key for key in CHOICES if getattr(self, key) != getattr(self._setting, key)]
            wishes |= {key: getattr(self, key) for key in changed}
        try:
            self.choose(**wishes)
        except PipelabError as error:
            raise Refused(str(error)) from error
        return getattr(self._setting, name)

    def _choose_stages(self, split: Split) -> None:
        """Undoing in the editor may bring back a split for other ranks: they come back too."""
        per_rank = max(1, self._setting.schedule.num_model_stages // self.num_ranks)
        self.choose(split=split, num_ranks=max(1, split.num_stages // per_rank))

    def _refuse_typed(self, name: str, text: str) -> None:
        """What was typed into the field of a number is none, or nothing."""
        with self._explained():
            raise PipelabError(f"{name} is {f'{text!r:.40}' if text else 'left empty'}; give a whole number.")

    def _adopt(self, setting: Setting) -> None:
        """Show another setting, also where an observer of the change raises."""
        setting.report  # noqa: B018 - whatever cannot be computed is refused before anything changes
        with self._lock:
            self._setting = setting
            try:
                self._mirror()
            finally:
                self._show()

    def _mirror(self) -> None:
        """The public traits say what the setting says, all at once."""
        before, self._is_mirroring = self._is_mirroring, True
        try:
            with self.hold_trait_notifications():
                for name in (*CHOICES, "profile", "predicted", "plan"):
                    self.set_trait(name, getattr(self._setting, name))
        finally:
            self._is_mirroring = before
