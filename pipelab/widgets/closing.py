"""Closing a widget whole: ipywidgets keeps what is not closed, also the parts that it made itself."""

from __future__ import annotations

import ipywidgets as W


def close_with_parts(widget: W.Widget) -> None:
    """Close a widget and what belongs to it: children, layout, style. Closing it alone would leave those behind."""
    for child in getattr(widget, "children", ()):
        close_with_parts(child)
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    widget.close()
    for part in parts:
        if isinstance(part, W.Widget):
            part.close()
