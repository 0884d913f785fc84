"""Strict JSON whose long arrays of numbers become numpy columns without one Python object a number.

A trace of 64 MB holds millions of numbers. Each long array is checked by one regular expression and read by numpy;
what is left is short and goes through `strict_json.parse`, with an object in the place of each array whose key
nobody could have guessed.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelab.core import strict_json
from pipelab.errors import PipelabError

__all__ = ["MAX_NUMBERS", "parse"]

MAX_NUMBERS = 2**21
"""The most numbers in long arrays: enough for the longest order that a file can hold, and checked in a second."""
_AT_ONCE = 1_000_000
"""How many bytes become numbers at once."""
_LONG_ARRAY = re.compile(rb"\[[-+0-9.eE,\s]{2000,}+\]")
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,400})?(?:[eE][-+]?[0-9]{1,4})?"
_NUMBERS = re.compile(rb"\s*+%b\s*+(?:,\s*+%b\s*+)*+" % (_NUMBER, _NUMBER))
_BEYOND_INTEGERS = re.compile(rb"[.eE]")

Column = npt.NDArray[np.float64] | npt.NDArray[np.int64]


def parse(raw: bytes, *, what: str) -> Any:
    """Read strict JSON of any length; arrays of 2,000 bytes or more that hold only numbers become columns.

    Args:
        raw: the document; at most 5 MB of it may be something else than long arrays of numbers.
        what: what the document is, for messages.

    Returns:
        What `strict_json.parse` returns, with numpy arrays (int64 or float64) among it.

    Raises:
        PipelabError: as `strict_json.parse`, or more than 2,097,152 numbers (2**21).
    """
    spans = [match.span() for match in _LONG_ARRAY.finditer(raw)]
    if not spans:
        return strict_json.parse(raw, what=what)
    count = sum(raw.count(b",", *span) + 1 for span in spans)
    if count > MAX_NUMBERS:
        raise PipelabError(f"{what} has {count:,} numbers in long arrays; the limit is {MAX_NUMBERS:,}.")
    key = secrets.token_hex(16)
    pieces: list[bytes] = []
    found: list[Column] = []
    after = 0
    for start, stop in spans:
        pieces += [raw[after:start], b'{"%b":%d}' % (key.encode(), len(found))]
        found.append(_column(raw, start + 1, stop - 1, what))
        after = stop
    pieces.append(raw[after:])
    return _put_back(strict_json.parse(b"".join(pieces), what=what), key, found)


def _column(raw: bytes, start: int, stop: int, what: str) -> Column:
    """Read the numbers between two brackets, in pieces so that no second copy of all the text is made."""
    if not _NUMBERS.fullmatch(raw, start, stop):
        text = raw[start : start + 40].decode()
        raise PipelabError(f"{what}: the array that begins with [{text} is no list of JSON numbers.")
    is_float = _BEYOND_INTEGERS.search(raw, start, stop) is not None
    parts: list[npt.NDArray[Any]] = []
    while start < stop:
        cut = raw.find(b",", min(start + _AT_ONCE, stop), stop)
        cut = stop if cut < 0 else cut
        text = raw[start:cut].decode()
        part = np.fromstring(text, dtype=np.float64 if is_float else np.int64, sep=",")
        if is_float and not np.isfinite(part).all():
            place = sum(map(len, parts)) + int(np.argmin(np.isfinite(part)))
            raise PipelabError(f"{what}: number {place:,} of a long list is not finite.")
        parts.append(part)
        start = cut + 1
    column: Column = np.concatenate(parts)
    return column


def _put_back(data: Any, key: str, found: list[Column]) -> Any:
    if not isinstance(data, (dict, list)):
        return data
    stack: list[Any] = [[data]]
    top = stack[0]
    while stack:
        container = stack.pop()
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        for place, item in list(entries):
            if isinstance(item, dict) and key in item:
                container[place] = found[item[key]]
            elif isinstance(item, (dict, list)):
                stack.append(item)
    return top[0]
