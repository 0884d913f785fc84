"""The split editor: layers as bars, and borders between stages that can be dragged, or moved by keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as T

from pipelab.core.costs import Costs
from pipelab.core.profile import Profile
from pipelab.core.split import Split
from pipelab.planning.balance import balance
from pipelab.planning.presets import equal_count, equal_parameters
from pipelab.plots.stages import describe_stages, drawn_profile
from pipelab.widgets.assets import css, esm
from pipelab.widgets.markup import error_text
from pipelab.widgets.shown import Shown
from pipelab.widgets.split_bars import (
    BYTES_LEGEND,
    TIME_LEGEND,
    StageBars,
    layer_columns,
    stage_bars,
)
from pipelab.widgets.split_checks import as_by, as_bytes_per_stage, as_size, as_split, check_profile
from pipelab.widgets.split_history import History
from pipelab.widgets.split_still import still_stages
from pipelab.widgets.traits import Explains, check_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRESETS = (
    ("equal_time", "Equal time", "Move the borders to where the slowest stage is fastest"),
    ("equal_count", "Equal count", "Give all stages as many layers"),
    (
        "equal_parameters",
        "Equal parameters",
        "Move the borders to where the stage with the most parameters has as few as can be",
    ),
)
"""Methods that a button calls, with its label and what it says it does."""

_DOINGS = (*(name for name, _, _ in _PRESETS), "undo", "redo")
_MOST_STAGES_AT_FIRST = 4

_SAME = object()
"""Left out: what there is stays."""


class SplitEditor(Explains, Shown, anywidget.AnyWidget):
    """Layers as bars in a row, and the borders between stages among them, to be moved by hand.

    A bar is as wide as its layer takes long, so the widest stage is the slowest, and it sets the pace. Each border is
    a slider for mouse, keyboard and screen reader: arrows move it by one layer, Page Up and Page Down by five, Home
    and End as far as its neighbours allow. Ctrl+Z undoes, Ctrl+Shift+Z redoes; a drag is one step.

    Observers of `split` hear of moves also during a drag. The front end keeps one message under way and of later
    positions only the newest, so a slow observer is not left with a queue.

    Attributes:
        profile: costs of the layers.
        split: the `Split`; set it to one, or to a list of names. Any number of stages will do.
        by: what the width of a bar is, "time" or "bytes".
        batch_size: samples in a micro-batch, at which costs are shown.
        memory_limit: bytes that a stage may take; stages over it are marked. None for no limit.
        message: the last refusal or error of an observer, "" when all is well.

    Args:
        profile: costs of the layers.
        num_stages: how many stages to begin with, balanced; at most four when left out.
        split: where to begin, instead.
        batch_size: that of the profile when left out.
        by, memory_limit: as above.

    Raises:
        TypeError: something else than a profile, or both `num_stages` and `split`.
        PipelabError: a split that this profile cannot be cut at, or more stages than layers.

    Example:
        >>> import pipelab as pp
        >>> from pipelab.core.profile import Affine
        >>> from pipelab.widgets.split_editor import SplitEditor
        >>> names, line = ("embed", "one", "two", "head"), (Affine(1.0), Affine(1.0), Affine(1.0), Affine(9.0))
        >>> profile = pp.Profile(names, line, line, line, (8,) * 4, line, line, 1, (1, 2), "cpu")
        >>> editor = SplitEditor(profile, split=["two"])
        >>> editor.equal_time()
        >>> editor.split
        Split(['head'])
        >>> editor.undo()
        >>> editor.split, editor.can_undo, editor.can_redo
        (Split(['two']), False, True)
        >>> editor.close()
    """

    _esm = esm(
        "geometry.js", "split_geometry.js", "shown.js", "element.js", "keys.js", "split_parts.js", "split.js"
    )
    _css = css("base.css", "split.css")

    _names: T.List[str] = T.List().tag(sync=True)
    _columns = T.Bytes(b"").tag(sync=True)
    _shown = T.Dict().tag(sync=True)
    _look = T.Dict().tag(sync=True)

    profile = T.Any(read_only=True)
    split = T.Any()
    by = T.Unicode("time").tag(sync=True)
    batch_size = T.Any()
    memory_limit = T.Any(None, allow_none=True)
    message = T.Unicode("", read_only=True).tag(sync=True)

    def __init__(
        self,
        profile: Profile,
        *,
        num_stages: int | None = None,
        split: Split | Iterable[str] | None = None,
        batch_size: int | None = None,
        by: str = "time",
        memory_limit: float | None = None,
    ) -> None:
        check_profile(profile)
        if num_stages is not None and split is not None:
            raise TypeError("SplitEditor takes num_stages, or a split; a split says how many stages it has.")
        size = as_size(profile.batch_size if batch_size is None else batch_size)
        if split is None:
            count = min(_MOST_STAGES_AT_FIRST, profile.num_layers) if num_stages is None else num_stages
            split = balance(profile, count, batch_size=size)
        split = as_split(split, profile)
        profile.stages(split)  # what is impossible is refused before there is a widget
        by = as_by(by)
        check_limit(memory_limit)
        self._history = History()
        self._serial = 0  # of what is shown; a hand that still has hold of something older is not obeyed
        self._answered = ""
        self._hand = ""
        self._given: Sequence[float] | None = None
        self._given_says = ""
        self._is_going = False  # back or forth in what was
        self._is_quiet = True  # until all is there
        super().__init__(_look={"time": TIME_LEGEND, "bytes": BYTES_LEGEND, "presets": _PRESETS})
        self.set_trait("profile", profile)
        self.batch_size, self.by, self.memory_limit, self.split = size, by, memory_limit, split
        self._is_quiet = False
        self._show_layers()
        self._show_stages()
        self.on_msg(self._asked)

    def show(
        self,
        split: Split | Iterable[str] | None = None,
        *,
        profile: Profile | None = None,
        batch_size: int | None = None,
        memory_limit: float | object | None = _SAME,
        bytes_per_stage: Sequence[float] | None = None,
        bytes_say: str = "as given",
        forget: bool = False,
    ) -> None:
        """Show something else, in one message to the front end and without a word to observers of `split`.

        This is for whoever embeds an editor and holds the split itself. Another split is a step that can be undone,
        unless the profile is another too.

        Args:
            split: None leaves it.
            profile: None leaves it. A profile with other layers needs a split with it.
            batch_size: samples in a micro-batch; None leaves it.
            memory_limit: bytes that a stage may take, or None for no limit; left out, it stays.
            bytes_per_stage: what each stage takes, where that is known better than as weights, gradients and the
                activations of one micro-batch. It holds until something changes.
            bytes_say: what these bytes are of, in a few words.
            forget: whether what was until now can no longer be gone back to.

        Raises:
            PipelabError: impossible; nothing has changed.
        """
        profile = self.profile if profile is None else profile
        check_profile(profile)
        size = self.batch_size if batch_size is None else as_size(batch_size)
        new = self.split if split is None else as_split(split, profile)
        profile.stages(new)
        limit = self.memory_limit if memory_limit is _SAME else memory_limit
        check_limit(limit)
        given = None if bytes_per_stage is None else as_bytes_per_stage(bytes_per_stage, new)
        is_other, is_moved = profile is not self.profile, new != self.split
        with self.hold_sync():
            if is_other or forget:
                self._history = History()
            elif is_moved:
                self._history.record(self.split, self._hand)
            old_size = self.batch_size
            self._is_quiet = True
            try:
                self.set_trait("profile", profile)
                self.split, self.batch_size, self.memory_limit = new, size, limit
            finally:
                self._is_quiet = False
            self._given, self._given_says = given, bytes_say
            self._serial += is_other or is_moved
            if is_other or size != old_size:
                self._show_layers()
            self._show_stages()

    # -- moves --------------------------------------------------------------------------------------------------

    def equal_time(self) -> None:
        """Move the borders to where the slowest stage is fastest (`pp.balance`)."""
        self.split = balance(self.profile, self.num_stages, batch_size=self.batch_size)

    def balance(self) -> None:
        """The same as `equal_time`."""
        self.equal_time()

    def equal_count(self) -> None:
        """Give all stages as many layers."""
        self.split = equal_count(self.profile, self.num_stages)

    def equal_parameters(self) -> None:
        """Move the borders to where the stage with the most parameters has as few as can be."""
        self.split = equal_parameters(self.profile, self.num_stages)

    def undo(self) -> None:
        """Take the last move back; without one, nothing happens."""
        self._go(self._history.undo)

    def redo(self) -> None:
        """Make the move again that was taken back; without one, nothing happens."""
        self._go(self._history.redo)

    @property
    def can_undo(self) -> bool:
        """Whether there is a move to take back."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a move to make again."""
        return self._history.can_redo

    @property
    def num_stages(self) -> int:
        """How many stages the split has."""
        return int(self.split.num_stages)

    @property
    def costs(self) -> Costs:
        """What each stage costs at `batch_size`."""
        costs: Costs = self.profile.costs(self.split, batch_size=self.batch_size)
        return costs

    # -- what is shown ------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The stages in words."""
        words = describe_stages(self._drawn, self.split, batch_size=self.batch_size)
        return f"{words} {self._bars().memory_sentence}"

    def static_figure(self) -> Figure:
        """The stages as `pp.plot_stages` draws them."""
        return still_stages(self._drawn, self.split, self.batch_size)

    def _bars(self) -> StageBars:
        given, says = self._given, self._given_says
        return stage_bars(
            self._drawn, self.split, self.batch_size, limit=self.memory_limit, given=given, given_says=says
        )

    def _show_layers(self) -> None:
        """Send the layers: for another profile or another size of the micro-batch."""
        self._drawn = drawn_profile(self.profile, self.batch_size)
        with self.hold_sync():
            self._names = list(self.profile.layers)
            self._columns = layer_columns(self._drawn, self.batch_size)

    def _show_stages(self) -> None:
        """Send the stages, with what the front end has been answered so far."""
        self._shown = {**self._bars().to_page(), **self._standing()}

    def _standing(self) -> dict[str, Any]:
        return {
            "serial": self._serial,
            "answered": self._answered,
            "can_undo": self.can_undo,
            "can_redo": self.can_redo,
        }

    # -- changes from code --------------------------------------------------------------------------------------

    @T.validate("split")
    def _valid_split(self, proposal: Mapping[str, Any]) -> Split:
        with self._explained():
            split = as_split(proposal["value"], self.profile)
            self.profile.stages(split)
        return split

    @T.validate("by")
    def _valid_by(self, proposal: Mapping[str, Any]) -> str:
        with self._explained():
            return as_by(proposal["value"])

    @T.validate("batch_size")
    def _valid_size(self, proposal: Mapping[str, Any]) -> int:
        with self._explained():
            return as_size(proposal["value"])

    @T.validate("memory_limit")
    def _valid_limit(self, proposal: Mapping[str, Any]) -> float | None:
        with self._explained():
            check_limit(proposal["value"])
        return proposal["value"]  # type: ignore[no-any-return]

    @T.observe("split", "batch_size", "memory_limit")
    def _changed(self, change: Mapping[str, Any]) -> None:
        if change["name"] == "split":
            if not self._is_going:
                self._history.record(change["old"], self._hand)
            self._serial += not self._hand  # the hand that moved it knows where it is
        if change["name"] != "memory_limit":
            self._given = None
        with self.hold_sync():
            if change["name"] == "batch_size":
                self._show_layers()
            self._show_stages()

    def _go(self, step: Callable[[Split], Split | None]) -> None:
        split = step(self.split)
        if split is None:
            return
        self._is_going = True
        try:
            self.split = split
        finally:
            self._is_going = False

    def notify_change(self, change: Any) -> None:
        """Tell observers, unless whoever embeds the editor puts it somewhere."""
        if self._is_quiet and change["name"] in ("split", "batch_size", "memory_limit", "profile"):
            return
        super().notify_change(change)

    # -- what the front end asks for ----------------------------------------------------------------------------

    def _asked(self, _: object, content: Mapping[str, Any], __: object) -> None:
        """Do what a hand did. The answer goes out last: then observers are done, and the next wish may come."""
        if not isinstance(content, Mapping):
            return
        what = content.get("what")
        with self.hold_sync():
            try:
                if what == "move":
                    self._move(content)
                elif what in _DOINGS:
                    getattr(self, what)()
            except Exception as error:  # seen in the widget, not lost in a log
                self._say(error_text(error))
            self._answered = str(content.get("id", ""))
            self._shown = {**self._shown, **self._standing()}

    def _move(self, content: Mapping[str, Any]) -> None:
        """Borders are where a hand has put them; a cut that stays keeps the name it was given."""
        hand, starts = str(content.get("hand", "")), content.get("cuts")
        if content.get("serial") != self._serial or not isinstance(starts, list):
            return  # of a split that is not shown any more
        old = [part.start for part in self.profile.stages(self.split)[1:]]
        kept = dict(zip(old, self.split.cuts, strict=True))
        layers = self.profile.layers
        if len(starts) != len(old) or not all(isinstance(n, int) and 0 < n < len(layers) for n in starts):
            return
        self._hand = hand
        try:
            self.split = Split(kept.get(start, layers[start]) for start in starts)
        finally:
            self._hand = ""
            if content.get("rests"):
                self._history.rest(self.split)

    def __repr__(self) -> str:
        return f"<SplitEditor: {self.split}>"
