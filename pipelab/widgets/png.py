"""Pixels to PNG in the least time: the general encoders try five filters on every line, a chart needs one."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # each line as its difference to the one above: in a chart of rows nearly all zeros


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of red, green and blue.

    Args:
        pixels: shape (height, width, 3), the first line on top.

    Example:
        >>> encode(np.zeros((2, 2, 3), np.uint8))[:4]
        b'\\x89PNG'
    """
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, 3 * width)
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, colours, no interlacing
    body = zlib.compress(lines.data, 1)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
