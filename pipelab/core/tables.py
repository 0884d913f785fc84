"""Small tables as text and as HTML. Names in them are data: in HTML they are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Align columns with spaces: the first to the left, the others to the right.

    Args:
        header: the names of the columns.
        rows: cells as text, each row as long as the header.
        note: a last line.
    """
    lines = [header, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text.rstrip() for text in texts] + ([note] if note else []))


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
