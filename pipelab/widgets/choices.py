"""The Lab's menus, sliders and lines of code. What moves together is one widget, so that one message moves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import traitlets as T

from pipelab.widgets.assets import css, esm

NUMBERS = ("num_ranks", "num_microbatches", "stages_per_rank")


class Choices(anywidget.AnyWidget):
    """A menu and three sliders with fields. They show what they are told, and a move is a changed trait.

    Attributes:
        schedule: a name of the menu.
        num_ranks, num_microbatches, stages_per_rank: numbers.
    """

    _esm = esm("keys.js", "choices.js")
    _css = css("base.css", "choices.css")

    schedule = T.Unicode("").tag(sync=True)
    num_ranks = T.Int(1).tag(sync=True)
    num_microbatches = T.Int(1).tag(sync=True)
    stages_per_rank = T.Int(1).tag(sync=True)
    _menu = T.List(T.Unicode()).tag(sync=True)
    _limits = T.Dict().tag(sync=True)

    def on_typed(self, hear: Callable[[str, str], None]) -> None:
        """Tell somebody of what is typed into a field and is no whole number: the name of the number, and the text."""

        def asked(_: object, content: Mapping[str, Any], __: object) -> None:
            if (
                isinstance(content, Mapping)
                and content.get("what") == "typed"
                and content.get("name") in NUMBERS
            ):
                hear(content["name"], str(content.get("text", "")))

        self.on_msg(asked)

    def show(self, menu: list[str], limits: Mapping[str, tuple[int, int]], **values: Any) -> None:
        """Show these values, in one message.

        Args:
            menu: names of schedules.
            limits: for each number the least and the most of its slider; equal ones hide it.
            **values: of the four traits.
        """
        with self.hold_sync():
            self._menu, self._limits = menu, {name: list(ends) for name, ends in limits.items()}
            for name, value in values.items():
                setattr(self, name, value)


class Menu(anywidget.AnyWidget):
    """A menu that works by keys in JupyterLab too, which takes arrows away from that of ipywidgets.

    Attributes:
        label: its name.
        options: pairs of what is read and what is chosen.
        value: what is chosen.
    """

    _esm = esm("keys.js", "menu.js")
    _css = css("base.css", "choices.css")
    label = T.Unicode("").tag(sync=True)
    options: Any = T.List().tag(sync=True)
    value = T.Unicode("").tag(sync=True)


class CodeBox(anywidget.AnyWidget):
    """Lines of code with a button that copies them.

    Attributes:
        code: the lines.
    """

    _esm = esm("keys.js", "code_box.js")
    _css = css("base.css", "code_box.css")
    code = T.Unicode("").tag(sync=True)
