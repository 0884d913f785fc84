"""The links between ranks: how long a transfer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from pipelab.core import strict_json
from pipelab.errors import PipelabError

__all__ = ["MOST", "Links"]

Matrix = tuple[tuple[float, ...], ...]

MOST = 1e100
"""The most seconds or bytes of anything, so that no sum over a step overflows."""

_LEAST_BANDWIDTH = 1e-50

_SWITCHES = ("serial", "blocking")


def _per_link(name: str, value: Any) -> float | Matrix:
    """Check one number for all links, or a square table whose diagonal (a rank to itself) is free."""
    if isinstance(value, Real):
        return _link_number(name, value)
    try:
        rows = tuple(tuple(row) for row in value)
    except TypeError:
        raise PipelabError(f"{name} must be a number or a p x p table, not {value!r}.") from None
    if not rows or any(len(row) != len(rows) for row in rows):
        raise PipelabError(f"{name} must be a square table, one row and one column a rank.")
    numbers = [
        [_link_number(f"{name}[{r}][{c}]", x, r == c) for c, x in enumerate(row)]
        for r, row in enumerate(rows)
    ]
    return tuple(map(tuple, numbers))


def _link_number(name: str, value: Any, is_free: bool = False) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise PipelabError(f"{name} is {value!r}; it must be a number.")
    number = float(value)
    if name.startswith("latency"):
        if is_free:
            return 0.0
        if not 0 <= number < math.inf:
            raise PipelabError(f"{name} is {value!r}; it must be finite and not negative, in seconds.")
        if number > MOST:
            raise PipelabError(f"{name} is {value!r}; the limit is {MOST:g} seconds.")
    elif is_free:
        return math.inf
    elif not number > 0:
        raise PipelabError(f"{name} is {value!r}; it must be positive, in bytes per second.")
    elif number < _LEAST_BANDWIDTH:
        raise PipelabError(f"{name} is {value!r}; the least is {_LEAST_BANDWIDTH:g} bytes per second.")
    return number


def _plain(value: float | Matrix) -> Any:
    if isinstance(value, tuple):
        return [[None if math.isinf(x) else x for x in row] for row in value]
    return None if math.isinf(value) else value


def _read_links(value: object, where: str) -> Any:
    def one(item: object, place: str) -> float:
        return math.inf if item is None else strict_json.number(item, place)

    if not isinstance(value, list):
        return one(value, where)
    return [
        [one(x, f"{where}[{r}][{c}]") for c, x in enumerate(strict_json.items(row, f"{where}[{r}]"))]
        for r, row in enumerate(value)
    ]


@dataclass(frozen=True, repr=False)
class Links:
    """How long a transfer between two ranks takes: latency + bytes / bandwidth. On one rank it takes nothing.

    Transfers run beside everything else, unless told otherwise. Each edge of the stage graph carries transfers of
    its own, also where two of them lead from one rank to one other.

    Attributes:
        latency: seconds; one number, or a p x p table from rank to rank.
        bandwidth: bytes per second; one number, or a p x p table. Infinite by default.
        serial: a link (from one rank to one other) carries one transfer at a time, in the order in which the
            sender made what travels; the two directions are two links.
        blocking: a send occupies its sender: the rank goes on when all that its last action gave has arrived.
            Then its links are serial too.
        notes: what to know about the numbers, such as which GPUs have no access to each other.

    Example:
        >>> Links(latency=1e-5, bandwidth=1e9).seconds(0, 1, 2e6)
        0.00201

    Raises:
        PipelabError: a negative latency, a bandwidth that is not positive, or a table that is not square.
        TypeError: `serial` or `blocking` is neither True nor False.
    """

    latency: float | Matrix = 0.0
    bandwidth: float | Matrix = math.inf
    serial: bool = False
    blocking: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", _per_link("latency", self.latency))
        object.__setattr__(self, "bandwidth", _per_link("bandwidth", self.bandwidth))
        sizes = {len(x) for x in (self.latency, self.bandwidth) if isinstance(x, tuple)}
        if len(sizes) > 1:
            raise PipelabError(f"latency and bandwidth are for different numbers of ranks: {sorted(sizes)}.")
        for name in _SWITCHES:
            value = getattr(self, name)
            if value is not True and value is not False:
                raise TypeError(f"{name} must be True or False, not {value!r}.")
        object.__setattr__(self, "notes", tuple(self.notes))

    def __repr__(self) -> str:
        parts = [] if self.latency == 0 else [f"latency={self.latency!r}"]
        parts += [] if self.bandwidth == math.inf else [f"bandwidth={self.bandwidth!r}"]
        parts += [f"{name}=True" for name in _SWITCHES if getattr(self, name)]
        return f"Links({', '.join(parts)})".replace("inf", "float('inf')")

    @property
    def has_bandwidth(self) -> bool:
        """Whether bytes matter: some link's bandwidth is finite."""
        table = self.bandwidth if isinstance(self.bandwidth, tuple) else ((self.bandwidth,),)
        return any(number < math.inf for row in table for number in row)

    @property
    def num_ranks(self) -> int | None:
        """For how many ranks there are tables; None when one number holds for all."""
        return next((len(x) for x in (self.latency, self.bandwidth) if isinstance(x, tuple)), None)

    def seconds(self, source: int, target: int, num_bytes: float) -> float:
        """How long `num_bytes` take from one rank to another."""
        if source == target:
            return 0.0
        latency = self.latency[source][target] if isinstance(self.latency, tuple) else self.latency
        bandwidth = self.bandwidth[source][target] if isinstance(self.bandwidth, tuple) else self.bandwidth
        return latency + num_bytes / bandwidth

    def to_dict(self) -> dict[str, Any]:
        """The links as plain values; an infinite bandwidth is None, since JSON has no infinity.

        `serial` and `blocking` are left out where they are False, `notes` where there are none.
        """
        more: dict[str, Any] = {name: True for name in _SWITCHES if getattr(self, name)}
        if self.notes:
            more["notes"] = list(self.notes)
        return {"latency": _plain(self.latency), "bandwidth": _plain(self.bandwidth), **more}

    @classmethod
    def from_dict(cls, data: object, where: str = "links") -> Links:
        """Read what `to_dict` wrote."""
        found = strict_json.fields(data, where, optional=("latency", "bandwidth", *_SWITCHES, "notes"))
        latency = _read_links(found.get("latency", 0.0), f"{where}.latency")
        bandwidth = _read_links(found.get("bandwidth"), f"{where}.bandwidth")
        switches = {name: found.get(name, False) for name in _SWITCHES}
        for name, value in switches.items():
            if type(value) is not bool:
                raise PipelabError(f"{where}.{name} must be true or false, not {str(value)[:40]!r}.")
        return cls(
            latency, bandwidth, **switches, notes=strict_json.texts(found.get("notes", []), f"{where}.notes")
        )
