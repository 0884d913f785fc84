"""What is kept of one trace file: the complete events that are actions, as columns.

torch's runtime annotates each action with its name behind `PP:`, such as `PP:2F0`; sends, receives and everything else
are passed over. Where the file also says when the annotated work ran on a GPU, that is taken, if it is said of every
action: the host only launched it.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelab.core import strict_json
from pipelab.core.actions import IntArray
from pipelab.core.interchange.skim import EVENT, blocks, skim
from pipelab.core.recurrence import FloatArray
from pipelab.errors import PipelabError

__all__ = ["MAX_ACTIONS", "Annotations", "read_annotations"]

MAX_ACTIONS = 2**20
"""The most actions that are kept of one file."""

_CELL = r"(?:[0-9]{1,7}[FIWB][0-9]{1,7}|\([0-9FIWB;]{1,1000}\)OVERLAP_F_B)"
_STAGELESS = r"(?:Forward|Backward) [0-9]{1,7}"  # what torch's ScheduleGPipe writes
_SEND = "PP:([0-9]{1,7})SEND_F[0-9]{1,7}"
_WANTED = re.compile(rf'"name"\s*:\s*"(?:(?:PP:)?{_CELL}|{_SEND}|{_STAGELESS})"'.encode())
_NAME = re.compile(rf"(?:PP:)?({_CELL})|{_SEND}|{_STAGELESS}")
_KEYS = {"pipelab": 64_000_000, "distributedInfo": 1_000_000, "baseTimeNanoseconds": 0}
_ON_DEVICE = "gpu_user_annotation"

Track = tuple[int | str, int | str]


@dataclass(frozen=True, eq=False)
class Annotations:
    """The actions of one file.

    Attributes:
        file: its name, for messages.
        names: the distinct actions, such as "2F0".
        action: shape (n,): index into `names`.
        start: shape (n,): microseconds on the file's own clock.
        end: shape (n,): microseconds.
        track: shape (n,): index into `tracks`.
        tracks: the process and thread of each track (on a device: the device and its stream).
        rank: the rank that the file says it is of; None where it says none.
        sender: the highest stage that sends its output to another rank, as torch's runtime writes it; -1 for none.
        base: nanoseconds to add for the time of day.
        is_device: whether the times are those of a device.
        has_device: whether some of the actions were also timed on a device.
    """

    file: str
    names: tuple[str, ...]
    action: IntArray
    start: FloatArray
    end: FloatArray
    track: IntArray
    tracks: tuple[Track, ...]
    rank: int | None = None
    sender: int = -1
    base: int = 0
    is_device: bool = False
    has_device: bool = False

    def on(self, tracks: Sequence[int]) -> Annotations:
        """Only the actions on some tracks, in the order in which they started."""
        rows = np.flatnonzero(np.isin(self.track, tracks))
        rows = rows[np.lexsort((self.end[rows], self.start[rows]))]
        columns = {name: getattr(self, name)[rows] for name in ("action", "start", "end", "track")}
        return replace(self, **columns)


class _Columns:
    """Grows by one action at a time."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.tracks: dict[Track, int] = {}
        self.action, self.track, self.device = array("i"), array("i"), array("b")
        self.start, self.end = array("d"), array("d")
        self.stageless, self.sender = "", -1

    def add(self, event: dict[str, Any], what: str) -> None:
        """Take an event if it is a complete one with the name of an action."""
        name = event.get("name")
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or event.get("ph") != "X":
            return
        if match[2]:
            self.sender = max(self.sender, int(match[2]))
        elif not match[1]:
            self.stageless = match[0]
        else:
            self._add_action(match[1], event, what)

    def _add_action(self, name: str, event: dict[str, Any], what: str) -> None:
        where = f"{what}: {name[:60]}"
        if len(self.action) == MAX_ACTIONS:
            raise PipelabError(f"{what} has more than {MAX_ACTIONS:,} actions. Profile fewer steps.")
        start, duration = (_number(event, key, where) for key in ("ts", "dur"))
        if duration < 0:
            raise PipelabError(f"{where}: dur is {duration}; it must not be negative.")
        track = (_place(event, "pid", where), _place(event, "tid", where))
        self.action.append(self.names.setdefault(name, len(self.names)))
        self.track.append(self.tracks.setdefault(track, len(self.tracks)))
        self.device.append(event.get("cat") == _ON_DEVICE)
        self.start.append(start)
        self.end.append(start + duration)

    def frozen(self, file: str, about: dict[str, int]) -> Annotations:
        """Choose between the times of the host and those of a device."""
        kept = Annotations(
            file=file,
            names=tuple(self.names),
            action=np.array(self.action),
            start=np.array(self.start),
            end=np.array(self.end),
            track=np.array(self.track),
            tracks=tuple(self.tracks),
            rank=about.get("rank"),
            sender=self.sender,
            base=about.get("base", 0),
        )
        device = np.array(self.device, dtype=bool)
        if not device.any():
            return kept
        kept = replace(kept, has_device=True)
        counts = np.bincount(kept.action[~device], minlength=len(self.names))
        for track in np.unique(kept.track[device]).tolist():
            here = kept.on([track])
            if np.array_equal(np.bincount(here.action, minlength=len(self.names)), counts):
                return replace(here, is_device=True)
        host = np.unique(kept.track[~device]).tolist()
        return kept.on(host) if host else replace(kept, is_device=True)


def _number(event: dict[str, Any], key: str, where: str) -> float:
    if key not in event:
        raise PipelabError(
            f"{where}: {key} is missing; a complete event says when it began and how long it took."
        )
    value = strict_json.number(event[key], f"{where}: {key}")
    if abs(value) > 2**63:
        raise PipelabError(f"{where}: {key} is {value:.3g}; it must be microseconds.")
    return float(value)


def _place(event: dict[str, Any], key: str, where: str) -> int | str:
    value = event.get(key, 0)
    if type(value) is int and abs(value) < 2**63:
        return value
    return strict_json.text(value, f"{where}: {key}", limit=200)


def read_annotations(path: str | os.PathLike[str], max_bytes: int) -> Annotations | bytes:
    """Read the actions of one file.

    Args:
        path: a trace of Chrome, Perfetto or torch.profiler, `.json` or `.json.gz`.
        max_bytes: the longest file, counted after decompression.

    Returns:
        The actions; or, of a file that pipelab wrote, all that it says of its trace, as JSON.

    Raises:
        PipelabError: no such file, or none of its events is an action; a number that is none.
        OSError: it cannot be read.
    """
    file = Path(path).name
    columns, about = _Columns(), dict[str, int]()
    for key, raw in skim(blocks(path, max_bytes), _WANTED, _KEYS, file):
        if key == EVENT:
            columns.add(_parsed(raw, file), file)
        elif key == "pipelab":
            return raw
        elif key == "distributedInfo":
            about |= _rank(_parsed(raw, f"{file}: {key}"), f"{file}: {key}.rank")
        else:
            about["base"] = int(raw)
    if not columns.names:
        raise PipelabError(
            f"{file} holds no complete event whose name is an action, {_hint(columns.stageless)}"
        )
    return columns.frozen(file, about)


def _hint(stageless: str) -> str:
    if stageless:
        return (
            f"but events such as {stageless!r}, which name no stage: torch's ScheduleGPipe writes them. Run the same "
            "table, Schedule.to_csv(), with _PipelineScheduleRuntime."
        )
    return (
        "such as 2F0 or PP:2F0. torch's _PipelineScheduleRuntime and the schedules that build on it write them; "
        "Schedule1F1B does not."
    )


def _rank(found: dict[str, Any], where: str) -> dict[str, int]:
    if "rank" not in found:
        return {}
    rank = strict_json.integer(found["rank"], where)
    if not 0 <= rank < 2**20:
        raise PipelabError(f"{where} is {rank}; that is no number of a rank.")
    return {"rank": rank}


def _parsed(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode(), parse_constant=_not_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PipelabError(f"{what}: {raw[:60].decode(errors='replace')!r}... is no JSON: {error}.") from None
    return value if isinstance(value, dict) else {}


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
