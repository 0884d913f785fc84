"""Static truth: a widget shows itself as a picture with words, and beneath as the live thing.

A saved notebook holds the picture, so GitHub, nbconvert, slides and a reopened notebook without its kernel show what
was there. Where the live widget is at work, its own script hides the picture (static/shown.js). They are two outputs,
not two kinds of one, because JupyterLab takes the live kind whenever there is one, also when nothing is alive any more.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as T

from pipelab.errors import PipelabError
from pipelab.widgets.closing import close_with_parts
from pipelab.widgets.places import close_replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIVE = "application/vnd.jupyter.widget-view+json"
FORMATS = (".png", ".svg", ".pdf")

_DPI = 100
_TAIL = 64  # characters of base64: a checksum and compressed pixels, which no other picture ends with
_TAILS_KEPT = 8  # a widget may be shown in several places, at each as it was then
_SAME_EVERY_TIME = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

Bundle = tuple[dict[str, Any], dict[str, Any]]


class Shown(T.HasTraits):
    """What every widget of ours is besides a widget: a picture that can be kept, and words.

    A class that mixes this in defines `static_figure` and `text`. Its script calls `hideStatic(el, model)`.
    """

    _static_tail = T.Unicode("").tag(sync=True)
    comm: Any
    layout: Any

    @property
    def text(self) -> str:
        """The picture in words: its alternative text."""
        raise NotImplementedError

    def static_figure(self) -> Figure:
        """The picture as it is now: a matplotlib figure of its own, unknown to pyplot."""
        raise NotImplementedError

    def png(self) -> bytes:
        """The picture as it is now."""
        return _render(self.static_figure(), ".png")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep the picture as it is now; the same picture gives the same bytes.

        Args:
            path: ends in .png, .svg or .pdf; a file that is there is replaced.

        Raises:
            PipelabError: it ends otherwise.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise PipelabError(
                f"A picture is saved as one of {', '.join(FORMATS)}, told by the end of its name; {path.name!r} has "
                f"none of them."
            )
        path.write_bytes(_render(self.static_figure(), path.suffix.lower()))

    def _still(self) -> Bundle:
        """The picture and its words, as an output that needs nobody alive. The live view learns how it ends."""
        encoded, text = base64.b64encode(self.png()).decode("ascii"), self.text
        self._announce(encoded[-_TAIL:])
        return {"image/png": encoded, "text/plain": text}, {"image/png": {"alt": text}}

    def _announce(self, tail: str) -> None:
        """Tell whoever will hide the picture: this widget's own script, or that of the first part which has one."""
        others = [kept for kept in self._static_tail.split() if kept != tail]
        self._static_tail = " ".join([tail, *others[: _TAILS_KEPT - 1]])
        if isinstance(self, W.Box):
            for part in parts_shown(self)[:1]:
                part._announce(tail)

    def _live(self) -> dict[str, Any]:
        if self.comm is None:  # closed
            return {}
        bundle: dict[str, Any] = W.DOMWidget._repr_mimebundle_(self)  # type: ignore[arg-type]
        return {LIVE: bundle[LIVE], "text/plain": ""} if LIVE in bundle else {}

    def close(self) -> None:
        """Drop the live widget with its parts; the picture and the values can still be had."""
        if self.comm is None:
            return
        layout = self.layout
        for part in getattr(self, "children", ()):
            close_with_parts(part)
        layout.close()
        super().close()  # type: ignore[misc]
        self.__dict__.pop("_repr_mimebundle_", None)  # ipywidgets hides what is closed

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        """Everything in one, for those who ask for a representation rather than to be shown."""
        data, metadata = self._still()
        return {**self._live(), **data}, metadata

    def _stills(self) -> list[Bundle]:
        """All pictures that stand for this widget where nothing is alive."""
        return [self._still()]

    def _ipython_display_(self, **_: Any) -> None:
        _publish(self._stills(), self._live())
        close_replaced(self)


def parts_shown(box: W.Widget) -> list[Shown]:
    """The widgets of ours in a box, in order, also in boxes in it; what is inside one of them is its own affair."""
    parts: list[Shown] = []
    for child in getattr(box, "children", ()):
        parts += [child] if isinstance(child, Shown) else parts_shown(child)
    return parts


def _render(figure: Figure, suffix: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "pipelab"}):
        figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=_SAME_EVERY_TIME[suffix])
    return _with_palette(buffer) if suffix == ".png" else buffer.getvalue()


def _with_palette(png: io.BytesIO) -> bytes:
    """The same picture with a palette: a chart has few colours, and a notebook keeps every picture for ever."""
    from PIL import Image

    with Image.open(png) as picture:
        opaque = Image.new("RGBA", picture.size, "white")
        opaque.alpha_composite(picture.convert("RGBA"))
    buffer = io.BytesIO()
    few = opaque.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    few.save(buffer, "png")
    return buffer.getvalue()


def _publish(stills: list[Bundle], live: dict[str, Any]) -> None:
    from IPython.display import display

    for data, metadata in stills:
        display(data, metadata=metadata, raw=True)
    if live:
        display(live, raw=True)


def _display_box(box: W.Box) -> None:
    """Show a box of ipywidgets' with the pictures of what it holds above it; a class with a way of its own keeps it."""
    own = getattr(box, "_ipython_display_", None)  # ours have one too
    if own is not None:
        own()
        return
    parts = parts_shown(box)
    if not parts:
        raise NotImplementedError  # IPython then shows it as ever
    bundle = box._repr_mimebundle_()
    live = bundle[0] if isinstance(bundle, tuple) else bundle
    _publish(
        [still for part in parts for still in part._stills()], {**live, "text/plain": ""} if live else {}
    )
    close_replaced(box)


def _register() -> None:
    """Let IPython show boxes our way. Outside IPython nobody shows boxes, and nothing is registered."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.ipython_display_formatter.for_type(W.Box, _display_box)


_register()
