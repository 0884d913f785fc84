"""Finding a few events in a trace file of any length, without building the rest.

Profilers write hundreds of megabytes of JSON of which a schedule needs some thousand lines. The file is read in
blocks; numpy finds the brackets outside of texts and how deep they are nested, a regular expression finds names that
look like actions, and only the events around those names are cut out. Memory is that of one block and of what is
cut out.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from pipelab.core.actions import IntArray
from pipelab.errors import PipelabError

__all__ = ["EVENT", "MAX_EVENT", "blocks", "skim"]

EVENT = "event"
"""What `skim` calls an event; everything else goes by its key."""

MAX_EVENT = 2**16
"""The longest event that is looked at, in bytes."""

_BLOCK = 2**18
_MAX_VALUES = 10_000
_LOOK_BACK = 2**12
_KEY = re.compile(rb'"([^"\\]{1,100})"\s*:\s*\Z')
_EVENTS_KEY = "traceEvents"
_OPEN, _CLOSE, _QUOTE = ord("{"), ord("}"), ord('"')
_TO_CURLY = 0x20  # [ and ] differ from { and } in this bit


def blocks(path: str | os.PathLike[str], max_bytes: int) -> Iterator[bytes]:
    """Read a file, decompressed where it is gzip, in blocks.

    Args:
        path: of the file.
        max_bytes: after so many bytes, counted after decompression, it is refused.

    Raises:
        PipelabError: it is longer, or damaged gzip.
        OSError: it cannot be read.
    """
    name, count = Path(path).name, 0
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if is_gzip else raw  # type: ignore[assignment]
        try:
            while block := file.read(_BLOCK):
                count += len(block)
                if count > max_bytes:
                    after = " after decompression" if is_gzip else ""
                    raise PipelabError(
                        f"{name} has more than {max_bytes:,} bytes{after}, the limit. Pass max_bytes= to read more."
                    )
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PipelabError(f"{name} is damaged: {error}.") from None


def skim(
    source: Iterator[bytes], wanted: re.Pattern[bytes], keys: Mapping[str, int], what: str
) -> Iterator[tuple[str, bytes]]:
    """Cut out events and the values of some keys, each as the bytes of a JSON value.

    Args:
        source: the file, block by block: an array of events, or an object with the key traceEvents.
        wanted: what an event must hold to be cut out. Events of more than 64 KB are passed over.
        keys: further keys of the outermost object whose value is wanted, with its greatest length; 0 for a value that
            is a whole number.
        what: the name of the file, for messages.

    Yields:
        ("event", bytes) or (key, bytes), about in the order of the file.

    Raises:
        PipelabError: no such file, one that ends in the middle, or a value that is too long.
    """
    reader = _Reader(wanted, keys, what)
    for piece in _pieces(source):
        yield from reader.read(piece)
    reader.end()


def _pieces(source: Iterator[bytes]) -> Iterator[bytes]:
    """Cut the blocks anew behind a comma, so that no key is torn from its value and no name in two."""
    rest = b""
    for block in source:
        text = rest + block
        cut = text.rfind(b",") + 1
        if cut < len(text) - MAX_EVENT:  # no comma far and wide: anywhere but within an escape
            slashes = len(text) - len(text.rstrip(b"\\"))
            cut = len(text) - slashes % 2
        yield text[:cut]
        rest = text[cut:]
    yield rest


class _Reader:
    """Where the reading stands.

    Attributes:
        depth: how many brackets are open.
        in_text: 1 within a text, else 0.
        region: within which value of the outermost object: the key, "event" for the array of events, or "".
        level: how deep the array of events lies.
        held: the beginning of a value that did not end in the last piece; None where there is none.
    """

    def __init__(self, wanted: re.Pattern[bytes], keys: Mapping[str, int], what: str) -> None:
        self.wanted, self.what = wanted, what
        self.keys = {key: limit for key, limit in keys.items() if limit}
        numbers = b"|".join(re.escape(key.encode()) for key, limit in keys.items() if not limit)
        self.number = re.compile(rb'"(%b)"\s*:\s*([0-9]{1,19})(?=[\s,}])' % (numbers or b"(?!)"))
        self.depth = self.in_text = self.num_values = 0
        self.region, self.level = "", 2
        self.has_begun = self.is_array = self.has_events = False
        self.held: bytearray | None = None

    def read(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Go through one piece."""
        if not self.has_begun:
            piece = piece.removeprefix(b"\xef\xbb\xbf").lstrip()
            if not piece:
                return
            self._begin(piece)
        before = self.depth
        place, steps = self._brackets(piece)
        if self.is_array:
            yield from self._events(piece, place, steps)
        else:
            yield from self._numbers(piece, place, steps, before)
            yield from self._outermost(piece, place, steps)

    def end(self) -> None:
        """Check that the file was whole. (Of an array of events the last bracket may be missing, says the format.)"""
        if self.in_text or self.depth > int(self.is_array) or not self.has_begun:
            raise PipelabError(f"{self.what} ends in the middle; it is not whole.")
        if not self.has_events:
            raise PipelabError(
                f"{self.what} has no key traceEvents, so it is no trace of Chrome, Perfetto or torch.profiler. "
                "(What pipelab saved with save() is read by load().)"
            )

    def _begin(self, piece: bytes) -> None:
        if piece[:1] not in (b"[", b"{"):
            raise PipelabError(
                f"{self.what} begins with {piece[:20]!r}: that is no JSON. A trace is an array of events, or an object "
                "with the key traceEvents. (Perfetto can export its own binary form as JSON.)"
            )
        self.has_begun = True
        if piece[:1] == b"[":
            self.is_array = self.has_events = True
            self.level = 1

    def _brackets(self, piece: bytes) -> tuple[IntArray, IntArray]:
        """Where brackets outside of texts are, and which: k opens the k-th level, -k closes it."""
        plain = piece
        for escape in (b"\\\\", b'\\"'):
            plain = plain.replace(escape, b"__") if escape in plain else plain
        letters = np.frombuffer(plain, dtype=np.uint8)
        curly = letters | _TO_CURLY
        place = np.flatnonzero((letters == _QUOTE) | (curly == _OPEN) | (curly == _CLOSE))
        found = curly[place]
        within = np.cumsum(found == _QUOTE, dtype=np.uint8) + np.uint8(self.in_text)  # odd or even is enough
        is_bracket = (found != _QUOTE) & (within & 1 == 0)
        place, closes = place[is_bracket], found[is_bracket] == _CLOSE
        depths = self.depth + np.cumsum(np.where(closes, -1, 1))
        self.in_text = int(within[-1]) & 1 if len(within) else self.in_text
        if len(depths):
            if depths.min() < 0:
                raise PipelabError(f"{self.what} closes more brackets than it opens.")
            self.depth = int(depths[-1])
        return place, np.where(closes, -depths - 1, depths)

    def _numbers(
        self, piece: bytes, place: IntArray, steps: IntArray, before: int
    ) -> Iterator[tuple[str, bytes]]:
        for match in self.number.finditer(piece):
            bracket = int(np.searchsorted(place, match.start())) - 1
            step = int(steps[bracket]) if bracket >= 0 else before
            if step in (1, -2) and piece[match.start() - 1 : match.start()] != b"\\":
                yield match[1].decode(), match[2]

    def _outermost(self, piece: bytes, place: IntArray, steps: IntArray) -> Iterator[tuple[str, bytes]]:
        """Follow the values of the outermost object: each opens the second level and closes it."""
        begin = first = 0
        for edge in np.flatnonzero(np.abs(steps) == 2).tolist():
            here = int(place[edge])
            if steps[edge] == 2:
                self._enter(piece, here)
                begin, first = here, edge
            elif self.region == EVENT:
                yield from self._events(piece, place[first:edge], steps[first:edge])
            elif self.region:
                self._keep(piece[begin : here + 1])
                yield self.region, bytes(self.held or b"")
                self.held = None
            self.region = self.region if steps[edge] == 2 else ""
        if self.region == EVENT:
            yield from self._events(piece, place[first:], steps[first:])
        elif self.region:
            self._keep(piece[begin:])

    def _enter(self, piece: bytes, here: int) -> None:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise PipelabError(
                f"{self.what} has more than {_MAX_VALUES:,} lists and objects beside its events."
            )
        key = _KEY.search(piece, max(0, here - _LOOK_BACK), here)
        name = key[1].decode(errors="replace") if key else ""
        if name == _EVENTS_KEY and piece[here : here + 1] == b"[":
            self.region, self.has_events = EVENT, True
        elif name in self.keys:
            self.region, self.held = name, bytearray()

    def _keep(self, part: bytes) -> None:
        self.held = (self.held or bytearray()) + part
        if len(self.held) > self.keys[self.region]:
            raise PipelabError(
                f"{self.what}: {self.region} has more than {self.keys[self.region]:,} bytes, the limit."
            )

    def _events(self, piece: bytes, place: IntArray, steps: IntArray) -> Iterator[tuple[str, bytes]]:
        """Cut out the wanted ones among the entries of the array; one may have begun in an earlier piece."""
        inner = self.level + 1
        opens, closes = place[steps == inner], place[steps == -inner]
        if self.held is not None:
            stop = int(closes[0]) + 1 if len(closes) else len(piece)
            if len(self.held) <= MAX_EVENT:
                self.held += piece[:stop]
            if not len(closes):
                return
            if len(self.held) <= MAX_EVENT and self.wanted.search(self.held):
                yield EVENT, bytes(self.held)
            self.held, closes = None, closes[1:]
        if len(closes):
            matches = np.array([match.start() for match in self.wanted.finditer(piece)], dtype=np.int64)
            entries = np.searchsorted(opens[: len(closes)], matches) - 1
            entries = np.unique(entries[(entries >= 0) & (matches < closes[entries])])
            for entry in entries[closes[entries] - opens[entries] < MAX_EVENT].tolist():
                yield EVENT, piece[opens[entry] : closes[entry] + 1]
        if len(opens) > len(closes):
            self.held = bytearray(piece[opens[-1] :][: MAX_EVENT + 1])
