"""Which cell shows what, so that a widget goes when running its cell again has put another in its place.

ipywidgets keeps every widget until it is closed. A cell `lab = pp.Lab(...); lab` that is run fifty times would leave
fifty Labs behind, of which one can be seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import ipywidgets as W

from pipelab.widgets.closing import close_with_parts


@dataclass
class _Cell:
    """What one cell shows since it was run last.

    Attributes:
        run: the number of that run.
        shown: references to what it showed in it.
    """

    run: int
    shown: list[weakref.ref[Any]] = field(default_factory=list)


class Places:
    """The cells of a notebook and what they show."""

    def __init__(self) -> None:
        self._cells: dict[str, _Cell] = {}

    def show(self, widget: Any, cell: str, run: int) -> list[Any]:
        """Take down that a cell shows a widget.

        Args:
            widget: what is shown.
            cell: whatever tells one cell from another.
            run: the number of the run of the cell: what it showed in an earlier one cannot be seen any more.

        Returns:
            What it showed in an earlier run and no cell shows any more.
        """
        before = self._cells.get(cell)
        if before is None or before.run != run:
            self._cells[cell] = _Cell(run)
        self._cells[cell].shown.append(weakref.ref(widget))
        if before is None or before.run == run:
            return []
        visible = {id(part) for one in self._visible() for part in _with_children(one)}
        gone = {id(old): old for ref in before.shown if (old := ref()) is not None}
        return [old for key, old in gone.items() if key not in visible]

    def _visible(self) -> list[Any]:
        """What cells show now."""
        found = [ref() for one in self._cells.values() for ref in one.shown]
        return [widget for widget in found if widget is not None]


_places = Places()


def close_replaced(widget: Any) -> None:
    """Close what this widget has replaced in its cell, unless the notebook can still get at it.

    It can where a variable holds it, or an attribute or an item of what a variable holds, or an item of such an
    attribute: `lab`, `labs[0]`, `labs["mine"]`, `page.lab`, `page.labs[0]`. What is further in is taken for lost;
    what IPython keeps by itself, such as `_` and `Out`, does not count. Of a box that has gone, what is in it is
    looked at in the same way. Outside a notebook nothing is replaced.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    gone = _places.show(widget, _cell_of(shell), shell.execution_count)
    if not gone:
        return
    kept = {id(one) for one in _held(shell.user_ns)}
    kept |= {id(part) for one in _places._visible() for part in _with_children(one)}
    for old in gone:
        _close(old, kept)


def _close(widget: Any, kept: set[int]) -> None:
    """Close a widget, unless it is to be kept, and of a mere box also what is in it."""
    if id(widget) in kept:
        return
    if hasattr(widget, "_stills"):  # ours: its parts are its own
        widget.close()
        return
    children = getattr(widget, "children", ())
    widget.children = ()
    for child in children:
        _close(child, kept)
    close_with_parts(widget)


def _with_children(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()) if isinstance(widget, W.Widget) else ():
        yield from _with_children(child)


def _held(names: dict[str, Any]) -> Iterator[Any]:
    """What the variables of a notebook hold, and what is in that."""
    for name, value in names.items():
        if name.startswith("_") or name in ("In", "Out") or isinstance(value, ModuleType):
            continue
        yield from _with_children(value)
        for inner in _inside(value):
            yield inner
            yield from _items(inner)


def _inside(value: Any) -> Iterable[Any]:
    own = getattr(value, "__dict__", None)
    return [*_items(value), *(own.values() if isinstance(own, dict) else ())]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set | frozenset) else ()


def _cell_of(shell: Any) -> str:
    """The cell that is running: its id where the front end tells it, else its text."""
    header = getattr(shell, "parent_header", None) or {}
    told = (header.get("metadata") or {}).get("cellId") if isinstance(header, dict) else None
    history = shell.user_ns.get("In") or [""]
    return str(told or history[-1])
