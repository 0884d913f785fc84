"""The text form of a schedule, for people to read, edit and paste.

    # pipelab schedule 1
    name: "1f1b"
    ranks: 0 1
    rank 0: 0F0 0F1 0B0 0B1
    rank 1: 1F0 1B0 1F1 1B1

`chains`, `tied` (replica:original), `edges` (source>target), `minibatches` and `slices` follow `ranks` where they
say something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipelab.core.placement import MAX_STAGES, Placement
from pipelab.core.strict_json import MAX_BYTES
from pipelab.errors import PipelabError

__all__ = ["dump", "load"]

_FIRST = "# pipelab schedule 1"


def dump(name: str, placement: Placement, numbering: Mapping[str, int], orders: Sequence[str]) -> str:
    """Write the parts of a schedule as text."""
    lines = [_FIRST, f"name: {json.dumps(name)}", f"ranks: {' '.join(map(str, placement.ranks))}"]
    if placement.chains != 1:
        lines.append(f"chains: {placement.chains}")
    if placement.tied:
        lines.append("tied: " + " ".join(f"{replica}:{original}" for replica, original in placement.tied))
    if placement.edges is not None:
        lines.append("edges: " + " ".join(f"{source}>{target}" for source, target in placement.edges))
    lines += [f"{part}: {count}" for part, count in numbering.items() if count != 1]
    lines += [f"rank {rank}: {order}".rstrip() for rank, order in enumerate(orders)]
    return "\n".join(lines) + "\n"


def load(text: str) -> tuple[str, Placement, dict[str, int], list[str]]:
    """Read the parts of a schedule: its name, its placement, its numbering and each rank's line of cells.

    Raises:
        PipelabError: names the line that is wrong.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}.")
    if len(text) > MAX_BYTES:
        raise PipelabError(f"The text has {len(text):,} characters; the limit is {MAX_BYTES:,}.")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != _FIRST:
        raise PipelabError(
            f"The text of a schedule begins with {_FIRST!r}, not {lines[0][:40] if lines else ''!r}."
        )
    fields: dict[str, str] = {}
    for line in lines[1:]:
        key, colon, value = line.partition(":")
        if not colon or key in fields:
            raise PipelabError(
                f"{line[:60]!r} is {'there twice' if colon else 'not of the form key: value'}."
            )
        fields[key] = value.strip()
    name = _name(fields.pop("name", '"custom"'))
    ranks = _numbers("ranks", fields.pop("ranks", ""))
    chains = _count("chains", fields)
    tied = _pairs("tied", fields.pop("tied", ""), ":")
    edges = _pairs("edges", fields.pop("edges"), ">") if "edges" in fields else None
    placement = Placement(ranks, chains, tied, edges)
    numbering = {part: _count(part, fields) for part in ("minibatches", "slices")}
    orders = [fields.pop(f"rank {rank}", "") for rank in range(placement.num_ranks)]
    if fields:
        raise PipelabError(
            f"{next(iter(fields))[:60]!r} is no field of a schedule with {placement.num_ranks} ranks."
        )
    return name, placement, numbering, orders


def _name(value: str) -> str:
    try:
        name = json.loads(value)
    except (ValueError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise PipelabError(f'name is {value[:60]!r}; it must be in double quotes, such as "1f1b".')
    return name


def _count(key: str, fields: dict[str, str]) -> int:
    numbers = _numbers(key, fields.pop(key, "1"))
    if len(numbers) != 1:
        raise PipelabError(f"{key} must be one number, not {len(numbers)}.")
    return numbers[0]


def _numbers(key: str, value: str) -> tuple[int, ...]:
    words = value.split()
    if len(words) > MAX_STAGES:
        raise PipelabError(f"{key} has {len(words):,} entries; the limit is {MAX_STAGES:,} (2**16).")
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and len(word) < 19)]
    if wrong:
        raise PipelabError(f"{key} holds {wrong[0][:40]!r}, which is no number of a stage or rank.")
    return tuple(map(int, words))


def _pairs(key: str, value: str, sign: str) -> tuple[tuple[int, int], ...]:
    pairs = []
    words = value.split()
    if len(words) > MAX_STAGES:
        raise PipelabError(f"{key} has {len(words):,} pairs; the limit is {MAX_STAGES:,} (2**16).")
    for word in words:
        numbers = _numbers(key, word.replace(sign, " ", 1))
        if len(numbers) != 2:
            raise PipelabError(f"{key} holds {word[:40]!r}; it must be two stage ids with {sign!r} between.")
        pairs.append((numbers[0], numbers[1]))
    return tuple(pairs)
