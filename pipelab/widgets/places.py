"""Which cell shows what, so that a widget goes when running its cell again has put another in its place.

ipywidgets keeps every widget until it is closed. A cell `lab = pp.Lab(...); lab` that is run fifty times would leave
fifty Labs behind, of which one can be seen.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any


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
        visible = {id(ref()) for one in self._cells.values() for ref in one.shown}
        gone = {id(old): old for ref in before.shown if (old := ref()) is not None}
        return [old for key, old in gone.items() if key not in visible]


_places = Places()


def close_replaced(widget: Any) -> None:
    """Close what this widget has replaced in its cell, unless a variable of the notebook holds it.

    Outside a notebook nothing is replaced.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    for old in _places.show(widget, _cell_of(shell), shell.execution_count):
        if not any(value is old for name, value in shell.user_ns.items() if not name.startswith("_")):
            old.close()


def _cell_of(shell: Any) -> str:
    """The cell that is running: its id where the front end tells it, else its text."""
    header = getattr(shell, "parent_header", None) or {}
    told = (header.get("metadata") or {}).get("cellId") if isinstance(header, dict) else None
    history = shell.user_ns.get("In") or [""]
    return str(told or history[-1])
