"""Values as text and as HTML: small tables. Names in them are data: in HTML they are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["html_table", "pretty", "text_table"]

_NUMBER = re.compile(r"-?[0-9][0-9.,e+-]*( [%\w]{1,3})?")
"""A number, perhaps with its unit, such as 12.3 ms."""


def pretty(value: object, printer: Any, cycle: bool) -> None:
    """IPython's `_repr_pretty_` for values that it should show as `print` does, in a terminal and a notebook's text.

    A class takes it over as `_repr_pretty_ = pretty`; inherited, IPython would prefer the class's own `__repr__`.
    """
    printer.text("..." if cycle else str(value))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Align columns with spaces: the first, and those that hold words, to the left; numbers to the right.

    Args:
        header: the names of the columns.
        rows: cells as text, each row as long as the header.
        note: a last line.
    """
    columns = []
    for k, name in enumerate(header):
        cells = [row[k] for row in rows]
        width = max(map(len, [name, *cells]))
        is_words = k == 0 or not any(map(_NUMBER.fullmatch, cells))
        columns.append([cell.ljust(width) if is_words else cell.rjust(width) for cell in (name, *cells)])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([*lines, note] if note else lines)


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", note: str = ""
) -> str:
    """The same as an HTML table, every name escaped.

    Args:
        header: the names of the columns.
        rows: cells as text.
        caption: a line above.
        note: a line below.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    below = f"<p><small>{escape(note)}</small></p>" if note else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
