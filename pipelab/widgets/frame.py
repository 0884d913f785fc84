"""A picture in the front end that says itself in words: ipywidgets' own Image has no alternative text."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets as T


class Frame(anywidget.AnyWidget):
    """Shows a PNG, replaced in place.

    Attributes:
        png: the picture.
        alt: the picture in words.
    """

    _esm = Path(__file__).with_name("frame.js")
    png = T.Bytes(b"").tag(sync=True)
    alt = T.Unicode("").tag(sync=True)

    def show(self, png: bytes, alt: str) -> None:
        """Replace picture and words in one message."""
        with self.hold_sync():
            self.alt, self.png = alt, png
