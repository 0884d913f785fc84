"""Reading JSON from strangers, and writing it so that a crash leaves no half file.

Python's own reader raises RecursionError on deep nesting, turns NaN and 1e400 into floats and keeps the last
of two equal keys. Here each of these is refused, with the field named, before much memory is taken.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelab.errors import PipelabError

__all__ = ["MAX_BYTES", "MAX_LEVELS", "parse", "write", "write_text"]

MAX_BYTES = 5_000_000
MAX_LEVELS = 64
MAX_CONTAINERS = 200_000
"""The most lists and objects, and the most keys, in 5 MB: `[],` is 3 bytes on disk and 64 in memory."""

_HUGE = 2**63


def parse(text: str | bytes, *, max_bytes: int = MAX_BYTES, what: str = "JSON") -> Any:
    """Read strict JSON: no NaN, no infinity, no equal keys, bounded size and depth.

    Args:
        text: the document.
        max_bytes: the longest document that is accepted, in bytes of UTF-8.
        what: what the document is, for messages.

    Returns:
        Dicts, lists, strings, finite floats, ints, booleans and None.

    Raises:
        PipelabError: anything else; the message names the field or the place.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    if len(raw) > max_bytes:
        raise PipelabError(f"{what} has {len(raw):,} bytes; the limit is {max_bytes:,}.")
    _check_nesting(raw, what, MAX_CONTAINERS * max(1, max_bytes // MAX_BYTES))
    try:
        data = json.loads(
            raw.decode("utf-8"),
            parse_constant=float,
            parse_int=_parse_int,
            object_pairs_hook=lambda pairs: _unique(pairs, what),
        )
    except PipelabError:
        raise
    except UnicodeDecodeError as error:
        raise PipelabError(f"{what} is not UTF-8 text (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise PipelabError(
            f"{what} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise PipelabError(f"{what} is nested too deeply; the limit is {MAX_LEVELS} levels.") from None
    _check_numbers(data, what)
    return data


def _check_nesting(raw: bytes, what: str, max_containers: int) -> None:
    """Count brackets outside strings before anything is built, so that a hostile file costs no memory."""
    plain = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    outside = np.bitwise_and(np.cumsum(plain == ord('"'), dtype=np.int32), 1) == 0
    opening = outside & ((plain == ord("[")) | (plain == ord("{")))
    for count, things in ((opening, "lists and objects"), (outside & (plain == ord(":")), "keys")):
        if int(count.sum()) > max_containers:
            raise PipelabError(f"{what} has {int(count.sum()):,} {things}; the limit is {max_containers:,}.")
    closing = outside & ((plain == ord("]")) | (plain == ord("}")))
    steps = opening.astype(np.int8) - closing.astype(np.int8)
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > MAX_LEVELS:
        raise PipelabError(f"{what} is nested {depth:,} levels deep; the limit is {MAX_LEVELS} levels.")


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else math.inf  # found, named and refused by _check_numbers


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1) if len(keys) < 1000 else "..."
        raise PipelabError(f"{what} has the key {twice[:60]!r} twice in one object. Keep one.")
    return found


def _check_numbers(data: Any, what: str) -> None:
    """Refuse the numbers that no field may hold, naming where they are."""
    stack: list[tuple[str, Any]] = [("", data)]
    while stack:
        where, value = stack.pop()
        if type(value) is dict:
            entries: Iterable[tuple[Any, Any]] = value.items()
        else:
            entries = enumerate(value) if type(value) is list else [("", value)]
        for key, item in entries:
            if type(item) in (list, dict):
                stack.append((_place(where, key), item))
            elif type(item) in (int, float) and not -_HUGE < item < _HUGE and not _is_large_float(item):
                place = _place(where, key) or "the number"
                raise PipelabError(f"{what}: {place} is not finite, or an integer beyond 2**63.")


def _is_large_float(item: float) -> bool:
    return type(item) is float and math.isfinite(item)


def _place(where: str, key: object) -> str:
    return f"{where}[{key}]" if isinstance(key, int) else f"{where}.{str(key)[:60]}".lstrip(".")


def write(
    path: str | os.PathLike[str], data: object, *, overwrite: bool = False, max_bytes: int = MAX_BYTES
) -> None:
    """Write JSON atomically: the file is there in full, or as it was before.

    Args:
        path: where to; its folder must exist.
        data: plain dicts, lists, strings, finite numbers, booleans and None.
        overwrite: replace a file that is there.
        max_bytes: the longest file that will be read back.

    Raises:
        PipelabError: the file exists and `overwrite` is False, a number is not finite, or it is too long.
    """
    name = Path(path).name
    try:
        text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise PipelabError(f"{name} cannot be written: {error}.") from None
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise PipelabError(f"{name} would have {size:,} bytes; at most {max_bytes:,} can be read back.")
    write_text(path, [text], overwrite=overwrite)


def write_text(path: str | os.PathLike[str], pieces: Iterable[str], *, overwrite: bool = False) -> None:
    """Write text atomically: the file is there in full, or as it was before.

    Args:
        path: where to; its folder must exist.
        pieces: the text, piece by piece.
        overwrite: replace a file that is there.

    Raises:
        PipelabError: the file exists and `overwrite` is False, or the text holds half a character.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise PipelabError(f"{target} exists. Pass overwrite=True to replace it.")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            for piece in pieces:
                file.write(piece.encode())
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _link(temporary, target)
    except UnicodeEncodeError:
        raise PipelabError(f"{target.name} cannot be written: a name holds half a character.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> None:
    """Give the finished file its name unless someone else took it in the meantime."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise PipelabError(f"{target} exists. Pass overwrite=True to replace it.") from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise PipelabError(f"{target} exists. Pass overwrite=True to replace it.") from None
        os.replace(temporary, target)


def fields(
    data: object, where: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Check that `data` is an object with the required keys and no unknown one.

    Raises:
        PipelabError: names the field.
    """
    if not isinstance(data, dict):
        raise PipelabError(
            f"{where} must be an object with the keys {', '.join(required)}, not {_kind(data)}."
        )
    for key in required:
        if key not in data:
            raise PipelabError(f"{where}.{key} is missing.")
    allowed = (*required, *optional)
    for key in data:
        if key not in allowed:
            raise PipelabError(f"{where} has the unknown key {str(key)[:60]!r}. Known: {', '.join(allowed)}.")
    return data


def items(value: object, where: str, limit: int = 2**22) -> list[Any]:
    """Check that `value` is a list (or a column of numbers) of at most `limit` items."""
    if isinstance(value, np.ndarray) and len(value) <= limit:
        return list(value.tolist())
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise PipelabError(f"{where} must be a list, not {_kind(value)}.")
    if len(value) > limit:
        raise PipelabError(f"{where} has {len(value):,} items; the limit is {limit:,}.")
    return list(value)


def text(value: object, where: str, limit: int = 1000) -> str:
    """Check that `value` is a string of at most `limit` characters."""
    if not isinstance(value, str):
        raise PipelabError(f"{where} must be text, not {_kind(value)}.")
    if len(value) > limit:
        raise PipelabError(f"{where} has {len(value):,} characters; the limit is {limit:,}.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PipelabError(f"{where} holds half a character (a lone surrogate).")
    return value


def texts(value: object, where: str, limit: int = 1000) -> tuple[str, ...]:
    """Check that `value` is a list of strings."""
    return tuple(text(item, f"{where}[{n}]", limit) for n, item in enumerate(items(value, where)))


def integer(value: object, where: str) -> int:
    """Check that `value` is an integer that fits 63 bits."""
    if type(value) is not int or abs(value) >= _HUGE:
        raise PipelabError(f"{where} must be an integer, not {_kind(value)}.")
    return value


def integers(value: object, where: str) -> tuple[int, ...]:
    """Check that `value` is a list of integers."""
    return tuple(integer(item, f"{where}[{n}]") for n, item in enumerate(items(value, where)))


def number(value: object, where: str) -> float:
    """Check that `value` is a finite number."""
    if type(value) is int:
        return integer(value, where)
    if type(value) is not float or not math.isfinite(value):
        raise PipelabError(f"{where} must be a finite number, not {_kind(value)}.")
    return value


def numbers(value: object, where: str) -> tuple[float, ...]:
    """Check that `value` is a list of finite numbers."""
    return tuple(number(item, f"{where}[{n}]") for n, item in enumerate(items(value, where)))


def column(value: object, where: str) -> npt.NDArray[np.float64] | npt.NDArray[np.int64]:
    """Check that `value` is a list of finite numbers, and make it a column: of integers where all are."""
    if not isinstance(value, np.ndarray):
        found = items(value, where)
        if all(type(item) is int for item in found):
            return np.array(integers(found, where), dtype=np.int64)
        return np.array(numbers(found, where), dtype=np.float64)
    if len(value) > 2**22:
        raise PipelabError(f"{where} has {len(value):,} items; the limit is {2**22:,}.")
    return value


def integer_column(value: object, where: str) -> npt.NDArray[np.int64]:
    """Check that `value` is a list of integers, and make it a column."""
    found = column(value, where)
    if found.dtype.kind != "i":
        raise PipelabError(f"{where} must hold integers only.")
    return found.astype(np.int64)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    names[np.ndarray] = names[list]
    return names.get(type(value)) or (
        str(value)[:40] if isinstance(value, (int, float)) else type(value).__name__
    )
