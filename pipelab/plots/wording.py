"""Numbers and names as a figure prints them."""

from __future__ import annotations

from collections.abc import Iterable

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def literal(name: str, limit: int = 60) -> str:
    """A name given by a person, safe in a matplotlib text: no mathematics, one line, not endless.

    Example:
        >>> print(literal("cost in $ or $"))
        cost in \\$ or \\$
        >>> literal("a" * 99, limit=9)
        'aaaa…aaaa'
    """
    line = " ".join(str(name).split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return elided(line, limit).replace("$", r"\$")


def elided(text: str, limit: int) -> str:
    """The text, its middle replaced by an ellipsis where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time of about so many seconds reads well: its length in seconds, and its name.

    Example:
        >>> time_unit(33.0), time_unit(0.0021)
        ((1.0, 's'), (0.001, 'ms'))
    """
    for length, name in _UNITS:
        if seconds >= length:
            return length, name
    return _UNITS[-1] if seconds > 0 else _UNITS[0]


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "rank"), counted(8, "micro-batch", "micro-batches")
        ('1 rank', '8 micro-batches')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def devices_text(devices: Iterable[str]) -> str:
    """The devices, ranks that share a name said once.

    Example:
        >>> devices_text(["cpu", "cpu"]), devices_text(["cuda:0", "cuda:1"])
        ('cpu ×2', 'cuda:0, cuda:1')
    """
    names = list(devices)
    count = {name: names.count(name) for name in dict.fromkeys(names)}
    texts = [name if times == 1 else f"{name} ×{times}" for name, times in count.items()]
    return ", ".join(texts if len(texts) <= 4 else [*texts[:3], f"… {texts[-1]}"])
