"""Numbers with their units, as people read them: 12.3 ms, 4.00 MiB, 27.3 %."""

from __future__ import annotations

import math

__all__ = ["as_bytes", "as_percent", "as_seconds", "counted"]


def as_seconds(value: float) -> str:
    """Seconds with three significant digits and a fitting unit.

    Example:
        >>> as_seconds(33.0), as_seconds(0.0123), as_seconds(0)
        ('33 s', '12.3 ms', '0 s')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if abs(value) * factor >= 0.9995 or unit == "us":
            break
    if value == 0 or not math.isfinite(value):
        return f"{value:g} s"
    scaled = value * factor
    return f"{scaled:.3g} {unit}" if abs(scaled) < 999.5 else f"{scaled:,.0f} {unit}"


def as_bytes(value: float) -> str:
    """Bytes with three significant digits and a binary unit.

    Example:
        >>> as_bytes(4 * 2**20), as_bytes(100)
        ('4 MiB', '100 B')
    """
    for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB")):
        if abs(value) < 999.5 * 1024**power or unit == "TiB":
            break
    return f"{value / 1024**power:.3g} {unit}"


def as_percent(value: float) -> str:
    """A fraction as a percentage with one decimal.

    Example:
        >>> as_percent(3 / 11)
        '27.3 %'
    """
    return f"{100 * value:.1f} %"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 rank", "2 ranks".

    Args:
        number: how many.
        one: the noun for one.
        many: the noun for any other number; None adds an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
