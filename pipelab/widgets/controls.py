"""The Lab's controls. They hold no state of their own: `show` puts them where the setting is, a move is a wish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as W

from pipelab.widgets.choices import Choices, CodeBox, Menu
from pipelab.widgets.closing import close_with_parts
from pipelab.widgets.exhibit import VIEWS
from pipelab.widgets.setting import OFFERED, Setting, bounds_of_stages_per_rank
from pipelab.widgets.split_editor import SplitEditor

MOST_ON_A_SLIDER = 512  # micro-batches; more can be typed, or set from code
MOST_PINNED = 4

_VIEW_NAMES = {
    "over": "measured over predicted",
    "both": "predicted above measured",
    "predicted": "predicted",
    "measured": "measured",
}
_SIZES = ("schedule", "num_ranks", "num_microbatches", "stages_per_rank")
_BUTTONS = ("run", "stop", "pin", "unpin", "code")

Wish = Callable[[str, Any], None]


class Controls:
    """Choices, the split editor, and the row of buttons.

    A front end sends one message a widget at a time and keeps only the newest value meanwhile, so a hand that moves
    faster than pictures are made leaves no queue behind.

    Args:
        wish: called with a name and a value when a person moves something: a choice of `Setting.changed`, or `view`,
            `run`, `stop`, `pin`, `unpin`, `code`; `typed` with the name of a number and a text that is none.
    """

    def __init__(self, setting: Setting, wish: Wish) -> None:
        self._wish = wish
        self._silence = threading.local()
        self.choices = Choices()
        self.editor = SplitEditor(setting.profile, split=setting.split, batch_size=_size(setting))
        self.run = _button("Run", "play", "", style="success")
        self.stop = _button("Stop", "stop", "Stop the run")
        self.progress = W.IntProgress(min=0, max=1, tooltip="progress of the run", layout=_width(100))
        names = [[_VIEW_NAMES[view], view] for view in VIEWS]
        self.view = Menu(label="show", options=names, value=VIEWS[0])
        self.pin = _button("Pin", "thumb-tack", "Keep this timeline below, to compare others with it")
        self.unpin = _button("Unpin", "times", "Take all that was pinned away")
        self.unpin.disabled = True
        self.code = _button("Code", "code", "Lines that make this plan and run it")
        self.code_box = CodeBox(layout={"display": "none"})
        self._connect()
        actions = _row([self.run, self.stop, self.progress, self.view, self.pin, self.unpin, self.code])
        self.box = W.VBox([self.choices, self.editor, actions, self.code_box])

    def show(self, setting: Setting, *, view: str, memory_limit: float | None = None) -> None:
        """Put every control where the setting is; nobody hears of it."""
        layers = len(setting.profile.layers)
        least, most = bounds_of_stages_per_rank(setting.schedule.name)
        per_rank = setting.stages_per_rank
        limits = {
            "num_ranks": (1, max(layers, setting.num_ranks)),
            "num_microbatches": (
                1,
                max(setting.num_microbatches, min(setting.batch_size, MOST_ON_A_SLIDER)),
            ),
            "stages_per_rank": (least, max(per_rank, layers if most is None else most)),
        }
        sizes = {name: getattr(setting, name) for name in _SIZES[1:]}
        is_other = setting.split.num_stages != self.editor.num_stages  # undone, it would be for other ranks
        with self._silent():
            self.choices.show(_menu(setting), limits, schedule=setting.schedule.name, **sizes)
            self.editor.show(
                setting.split,
                batch_size=_size(setting),
                memory_limit=memory_limit,
                bytes_per_stage=_peaks(setting),
                bytes_say="at the peak of the step",
                forget=is_other,
            )
            self.view.value = view

    def show_run(self, *, running: bool, why_not: str = "") -> None:
        """Enable the button that can be pressed."""
        self.run.disabled = running or bool(why_not)
        self.run.tooltip = why_not or "Run this plan for real: warm-up steps, then a measured one"
        self.stop.disabled = not running

    def show_progress(self, done: int, total: int, style: str = "") -> None:
        """How far the run is; the style says how it ended."""
        self.progress.max, self.progress.value, self.progress.bar_style = total, done, style

    def show_code(self, code: str | None) -> None:
        """Show lines of code; None hides them."""
        self.code_box.layout.display = "none" if code is None else ""
        if code is not None:
            self.code_box.code = code

    @property
    def shows_code(self) -> bool:
        """Whether the lines of code can be seen."""
        return self.code_box.layout.display != "none"

    def show_pins(self, count: int) -> None:
        """Enable what can be pressed where so many timelines are pinned."""
        self.pin.disabled = count >= MOST_PINNED
        self.unpin.disabled = not count

    def close(self) -> None:
        """Drop the widgets, with the styles and layouts that each brought along."""
        close_with_parts(self.box)

    def _connect(self) -> None:
        for name in _SIZES:
            self.choices.observe(lambda change: self._moved(change.name, change.new), name)
        self.choices.on_typed(lambda name, text: self._wish("typed", (name, text)))
        self.editor.observe(lambda change: self._moved("split", change.new), "split")
        self.view.observe(lambda change: self._moved("view", change.new), "value")
        for name in _BUTTONS:
            getattr(self, name).on_click(lambda _, name=name: self._wish(name, None))

    def _moved(self, name: str, value: Any) -> None:
        if not self._depth:
            self._wish(name, value)

    @property
    def _depth(self) -> int:
        """How many times over this thread is showing something; a person may move something meanwhile in another."""
        return getattr(self._silence, "depth", 0)

    @contextmanager
    def _silent(self) -> Iterator[None]:
        self._silence.depth = self._depth + 1
        try:
            yield
        finally:
            self._silence.depth = self._depth - 1


def _size(setting: Setting) -> int:
    return max(1, round(setting.microbatch_size))


def _peaks(setting: Setting) -> tuple[float, ...] | None:
    """What each stage holds at its peak, where a rank holds one stage; None where it holds several."""
    placement = setting.schedule.placement
    if placement.ranks != tuple(range(placement.num_ranks)):
        return None
    return setting.report.peak_bytes


def _menu(setting: Setting) -> list[str]:
    """All names there are, and that of a table given by hand."""
    return [*OFFERED, *([setting.schedule.name] if setting.is_custom else [])]


def _button(description: str, icon: str, tooltip: str, style: str = "") -> W.Button:
    return W.Button(
        description=description, icon=icon, tooltip=tooltip, button_style=style, layout={"width": "auto"}
    )


def _width(pixels: int) -> dict[str, str]:
    return {"width": f"{pixels}px"}


def _row(children: list[W.Widget]) -> W.Box:
    return W.Box(children, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 12px"})
