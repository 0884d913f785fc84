"""The Lab's controls. They hold no state of their own: `show` puts them where the setting is, a move is a wish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as W

from pipelab.widgets.exhibit import VIEWS
from pipelab.widgets.markup import layer_name
from pipelab.widgets.setting import OFFERED, Setting, bounds_of_stages_per_rank

MOST_CUT_SLIDERS = 31
MOST_ON_A_SLIDER = 512  # micro-batches; more from code move the slider's end

_WIDE = {"description_width": "initial"}

Wish = Callable[[str, Any], None]


class Controls:
    """Sliders, menus and buttons.

    Args:
        wish: called with a name and a value when a person moves something: a choice of `Setting.changed`, or `cut`
            with (border, position), `view`, `memory`, `balance`, `run`, `stop`.
    """

    def __init__(self, setting: Setting, wish: Wish) -> None:
        self._wish = wish
        self._shown_by: int | None = None
        self.schedule = W.Dropdown(
            options=_menu(setting), description="schedule", style=_WIDE, layout=_width(230)
        )
        self.num_ranks = _slider("ranks", "How many devices, each with its own stages", 240)
        self.num_microbatches = _slider("micro-batches", "Into how many parts the whole batch is cut", 290)
        self.stages_per_rank = _slider("stages per rank", "How many stages each rank holds", 290)
        self.cuts: list[W.IntSlider] = []
        self._names: list[W.HTML] = []
        self._rows: list[W.HBox] = []
        self.balance = _button(
            "Balance", "balance-scale", "Move the cuts to where the slowest stage is fastest"
        )
        self.run = _button("Run", "play", "", style="success")
        self.stop = _button("Stop", "stop", "Stop the run")
        self.progress = W.IntProgress(description="progress", min=0, max=1, style=_WIDE, layout=_width(200))
        self.view = W.Dropdown(options=VIEWS, description="show", style=_WIDE, layout=_width(150))
        self.memory = W.Checkbox(description="memory", indent=False, layout={"width": "auto"})
        self._connect()
        choices = [self.schedule, self.num_ranks, self.num_microbatches, self.stages_per_rank]
        actions = [self.run, self.stop, self.progress, self.view, self.memory, self.balance]
        self._cut_box = _row([])
        self.box = W.VBox([_row(choices), self._cut_box, _row(actions)])

    def show(self, setting: Setting, *, view: str, memory: bool) -> None:
        """Put every control where the setting is; nobody hears of it."""
        with self._silent():
            self.schedule.options = _menu(setting)
            self.schedule.value = setting.schedule.name
            layers = len(setting.profile.layers)
            _place(self.num_ranks, setting.num_ranks, 1, layers)
            least, most = bounds_of_stages_per_rank(setting.schedule.name)
            _place(self.stages_per_rank, setting.stages_per_rank, least, layers if most is None else most)
            self.stages_per_rank.layout.display = "none" if least == most else ""
            most_microbatches = max(setting.num_microbatches, min(setting.batch_size, MOST_ON_A_SLIDER))
            _place(self.num_microbatches, setting.num_microbatches, 1, most_microbatches)
            self._show_cuts(setting)
            self.view.value = view
            self.memory.value = memory

    def show_run(self, *, running: bool, why_not: str = "") -> None:
        """Enable the button that can be pressed."""
        self.run.disabled = running or bool(why_not)
        self.run.tooltip = why_not or "Run this plan for real: warm-up steps, then a measured one"
        self.stop.disabled = not running

    def show_progress(self, done: int, total: int, style: str = "") -> None:
        """How far the run is; the style says how it ended."""
        self.progress.max, self.progress.value, self.progress.bar_style = total, done, style

    def close(self) -> None:
        """Drop the widgets, with the styles and layouts that each brought along."""
        close_with_parts(self.box)

    def _connect(self) -> None:
        for name in ("schedule", "num_ranks", "stages_per_rank", "num_microbatches", "view", "memory"):
            getattr(self, name).observe(lambda change, name=name: self._moved(name, change.new), "value")
        for name in ("balance", "run", "stop"):
            getattr(self, name).on_click(lambda _, name=name: self._wish(name, None))

    def _moved(self, name: str, value: Any) -> None:
        if self._shown_by != threading.get_ident():  # a person may move something while another thread shows
            self._wish(name, value)

    def _show_cuts(self, setting: Setting) -> None:
        positions, layers = setting.cut_positions, setting.profile.layers
        count = min(len(positions), MOST_CUT_SLIDERS)
        while len(self.cuts) < count:
            self._add_cut(len(self.cuts))
        limits = (0, *positions, len(layers))
        for border, (slider, name, row) in enumerate(zip(self.cuts, self._names, self._rows, strict=True)):
            row.layout.display = "" if border < count else "none"
            if border < count:
                least, most = limits[border] + 1, limits[border + 2] - 1
                _place(slider, positions[border], least, most)
                slider.disabled = least == most
                name.value = layer_name(layers[positions[border]])
        self._cut_box.children = tuple(self._rows)
        self.balance.disabled = not positions

    def _add_cut(self, border: int) -> None:
        slider = _slider(f"stage {border + 1} begins at", "Move the border between two stages", 290)
        slider.readout = False
        slider.observe(lambda change: self._moved("cut", (border, change.new)), "value")
        name = W.HTML(layout=_width(120))
        self.cuts.append(slider)
        self._names.append(name)
        self._rows.append(W.HBox([slider, name], layout=_width(415)))

    @contextmanager
    def _silent(self) -> Iterator[None]:
        before, self._shown_by = self._shown_by, threading.get_ident()
        try:
            yield
        finally:
            self._shown_by = before


def _menu(setting: Setting) -> list[str]:
    """All names there are, and that of a table given by hand."""
    return [*OFFERED, *([setting.schedule.name] if setting.is_custom else [])]


def _slider(description: str, tooltip: str, width: int) -> W.IntSlider:
    return W.IntSlider(
        value=1, min=1, max=2, description=description, tooltip=tooltip, style=_WIDE, layout=_width(width)
    )


def _button(description: str, icon: str, tooltip: str, style: str = "") -> W.Button:
    return W.Button(
        description=description, icon=icon, tooltip=tooltip, button_style=style, layout={"width": "auto"}
    )


def _width(pixels: int) -> dict[str, str]:
    return {"width": f"{pixels}px"}


def _place(slider: W.IntSlider, value: int, least: int, most: int) -> None:
    """Move a slider and its ends together, so that the front end never sees a value outside them."""
    most = max(least, most, value)
    with slider.hold_trait_notifications():
        slider.min, slider.max, slider.value = least, most, value


def _row(children: list[W.Widget]) -> W.Box:
    return W.Box(children, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 12px"})


def close_with_parts(widget: W.Widget) -> None:
    """Close a widget and what belongs to it: children, layout, style. Closing it alone would leave those behind."""
    for child in getattr(widget, "children", ()):
        close_with_parts(child)
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    widget.close()
    for part in parts:
        if isinstance(part, W.Widget):
            part.close()
