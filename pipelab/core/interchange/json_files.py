"""Values as strict JSON files: each says by its key `pipelab` what it is, so that one `load` reads them all.

    {"pipelab": "schedule", "version": 1, "name": "1f1b", ...}

Nothing in a file is run, and no path in it is opened. See `strict_json` for what is refused.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelab.core import strict_json
from pipelab.core.costs import Costs
from pipelab.core.interchange import columns
from pipelab.core.plan import Plan
from pipelab.core.profile import Profile
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split
from pipelab.core.strict_json import MAX_BYTES
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError, one_of

if TYPE_CHECKING:
    Value = Costs | Plan | Profile | Schedule | Split | Trace

__all__ = ["MAX_TRACE_BYTES", "load", "save"]

MAX_TRACE_BYTES = 64_000_000

_KINDS: dict[str, type[Value]] = {
    "costs": Costs,
    "plan": Plan,
    "profile": Profile,
    "schedule": Schedule,
    "split": Split,
    "trace": Trace,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_HEAD = ("pipelab", "version")
_LONG_TRACE = re.compile(rb'\s*\{\s*"pipelab"\s*:\s*"trace"\s*,')


def save(value: Value, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a value as JSON, atomically.

    Args:
        value: a schedule, a split, costs, a profile, a plan or a trace.
        path: where to.
        overwrite: replace a file that is there.

    Raises:
        PipelabError: the file exists and `overwrite` is False, or it is longer than `load` would read.
    """
    data = {"pipelab": _NAMES[type(value)], "version": 1} | value.to_dict()
    if isinstance(value, Trace):
        strict_json.write_text(path, [trace_text(data, Path(path).name)], overwrite=overwrite)
    else:
        strict_json.write(path, data, overwrite=overwrite)


def trace_text(data: dict[str, Any], what: str) -> str:
    """A trace as JSON with each of its fields on one line.

    Raises:
        PipelabError: it is longer than `load` would read.
    """
    numbers = 2 * len(data["start"]) + sum(map(len, data["others"].values()))
    if numbers > columns.MAX_NUMBERS:
        raise PipelabError(
            f"{what} would have {numbers:,} times and places; at most {columns.MAX_NUMBERS:,} can be read."
        )
    lines = {key: json.dumps(value, allow_nan=False, separators=(",", ":")) for key, value in data.items()}
    limits = {
        f"{what} would have": (sum(map(len, lines.values())), MAX_TRACE_BYTES),
        f"{what} without its columns of numbers would have": (
            sum(len(line) for key, line in lines.items() if key not in ("start", "end", "others")),
            MAX_BYTES,
        ),
    }
    for which, (size, limit) in limits.items():
        if size > limit:
            raise PipelabError(f"{which} {size:,} bytes; at most {limit:,} can be read back.")
    return "{\n " + ",\n ".join(f"{json.dumps(key)}: {line}" for key, line in lines.items()) + "\n}\n"


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_TRACE_BYTES) -> Value:
    """Read what `save` wrote: a schedule, a split, costs, a profile, a plan or a trace.

    The file may come from a stranger: all in it is checked.

    Args:
        path: a JSON file of at most 5 MB; a trace may have up to `max_bytes`.
        max_bytes: the longest trace.

    Example:
        >>> import pipelab as pp, tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "split.json")
        ...     pp.Split(["blocks.3"]).save(path)
        ...     pp.load(path)
        Split(['blocks.3'])

    Raises:
        PipelabError: names the field that is wrong.
        OSError: the file cannot be read.
    """
    name = Path(path).name
    if name.lower().endswith(".csv"):
        raise PipelabError(
            f"{name} is no JSON. torch's table is read by Schedule.from_csv(open(path).read())."
        )
    with open(path, "rb") as file:
        raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            if not _LONG_TRACE.match(raw):
                raise PipelabError(
                    f"{name} has more than {MAX_BYTES:,} bytes, the limit for all but traces. "
                    'A trace begins with {"pipelab": "trace".'
                )
            raw += file.read(max(0, max_bytes + 1 - len(raw)))
            if len(raw) > max_bytes:
                raise PipelabError(f"{name} has more than {max_bytes:,} bytes, the limit (max_bytes).")
    return from_data(columns.parse(raw, what=name), name)


def from_data(data: object, what: str) -> Value:
    """Make the value that parsed JSON describes.

    Args:
        data: an object with the keys `pipelab` and `version`.
        what: what it was read from, for messages.

    Raises:
        PipelabError: names the field that is wrong.
    """
    found = strict_json.fields(
        data, what, required=_HEAD[:1], optional=list(data) if isinstance(data, dict) else ()
    )
    if isinstance(found["pipelab"], dict):
        raise PipelabError(f"{what} is a trace for Perfetto and Chrome. Read it with read_trace().")
    kind = strict_json.text(found["pipelab"], f"{what}: pipelab")
    one_of(f"{what}: pipelab", kind, _KINDS)
    version = found.get("version")
    if version != 1 or isinstance(version, bool):
        raise PipelabError(
            f"{what} is a {kind} of version {str(version)[:20]}; this pipelab reads version 1. "
            "A newer pipelab may read it."
        )
    rest = {key: value for key, value in found.items() if key not in _HEAD}
    return _KINDS[kind].from_dict(rest, kind)
