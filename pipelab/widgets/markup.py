"""The few lines of HTML that the Lab writes; whatever stands in them is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pipelab.errors import PipelabError


def error_text(error: BaseException) -> str:
    """What is said of an error: a refusal's own sentence; of others the type, the message and the notes.

    Example:
        >>> error_text(PipelabError("too many ranks")), error_text(KeyError("x"))
        ('too many ranks', "KeyError: 'x'")
    """
    if isinstance(error, PipelabError):
        return str(error)
    notes = getattr(error, "__notes__", [])
    return "\n".join([f"{type(error).__name__}: {error}", *map(str, notes)])


def alert(message: str) -> str:
    """A message that a screen reader announces, in the looks of base.css; nothing for ""."""
    return f'<div role="alert" class="pl-alert">{escape(message)}</div>' if message else ""


def paragraphs(lines: Iterable[str]) -> str:
    """Lines below one another."""
    return "".join(f'<div style="line-height: 1.4">{escape(line)}</div>' for line in lines)


def heading(text: str) -> str:
    """A line that stands above something, and that a screen reader can jump to."""
    return f'<div role="heading" aria-level="4" style="font-weight: 600">{escape(text)}</div>'
