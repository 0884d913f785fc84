"""What a step costs: seconds for each stage and kind, bytes for each stage, and the links between ranks.

Costs hold at one micro-batch size; a `Profile` makes them for any size and any split.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from pipelab.core import strict_json
from pipelab.core.actions import Kind, as_index
from pipelab.errors import PipelabError

__all__ = ["Costs", "Links", "StageBytes"]

Matrix = tuple[tuple[float, ...], ...]


_PER_STAGE = ("forward", "input_grad", "weight_grad", "backward", "update", "overlap")
_SWITCHES = ("serial", "blocking")


def _amounts(name: str, values: Iterable[float], unit: str) -> tuple[float, ...]:
    try:
        found = tuple(values)
        total = math.fsum(found)
        found = tuple(map(float, found)) if unit == "seconds" else found
    except (TypeError, OverflowError, ValueError):
        raise PipelabError(
            f"{name} must be numbers of {unit}, one a stage, not {str(values)[:60]!r}."
        ) from None
    if not math.isfinite(total) or (found and min(found) < 0):
        wrong = next((n for n, x in enumerate(found) if not (math.isfinite(x) and x >= 0)), 0)
        raise PipelabError(f"{name}[{wrong}] is {found[wrong]!r}; it must be finite and not negative.")
    return found


def _same_length(value: object, names: Sequence[str]) -> None:
    lengths = {name: len(getattr(value, name)) for name in names if getattr(value, name) is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise PipelabError(f"All must be for the same number of stages: {found}.")


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
    elif is_free:
        return math.inf
    elif not number > 0:
        raise PipelabError(f"{name} is {value!r}; it must be positive, in bytes per second.")
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


@dataclass(frozen=True)
class StageBytes:
    """Bytes per model stage.

    Attributes:
        parameters: of the stage's parameters; its gradients are as large.
        activations: kept for one micro-batch from its forward to the end of its backward.
        outputs: sent to the next stage for one micro-batch; the gradient that returns is as large.
        optimizer: of the optimizer's state, such as two parameters' worth for Adam; None means none.

    Raises:
        PipelabError: tuples of different lengths, or a negative or infinite number.
    """

    parameters: tuple[float, ...]
    activations: tuple[float, ...]
    outputs: tuple[float, ...]
    optimizer: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if values is not None or field.name != "optimizer":
                object.__setattr__(self, field.name, _amounts(field.name, values, "bytes"))
        _same_length(self, [field.name for field in fields(self)])

    @property
    def num_stages(self) -> int:
        """How many model stages there are."""
        return len(self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The bytes as plain lists; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(amounts) for name, amounts in values.items() if amounts is not None}

    @classmethod
    def from_dict(cls, data: object, where: str = "bytes") -> StageBytes:
        """Read what `to_dict` wrote."""
        names = [field.name for field in fields(cls)]
        found = strict_json.fields(data, where, required=names[:3], optional=names[3:])
        return cls(**{name: strict_json.numbers(found[name], f"{where}.{name}") for name in found})


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

    def __repr__(self) -> str:
        parts = [] if self.latency == 0 else [f"latency={self.latency!r}"]
        parts += [] if self.bandwidth == math.inf else [f"bandwidth={self.bandwidth!r}"]
        parts += [f"{name}=True" for name in _SWITCHES if getattr(self, name)]
        return f"Links({', '.join(parts)})".replace("inf", "float('inf')")

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

        `serial` and `blocking` are left out where they are False.
        """
        switches = {name: True for name in _SWITCHES if getattr(self, name)}
        return {"latency": _plain(self.latency), "bandwidth": _plain(self.bandwidth), **switches}

    @classmethod
    def from_dict(cls, data: object, where: str = "links") -> Links:
        """Read what `to_dict` wrote."""
        found = strict_json.fields(data, where, optional=("latency", "bandwidth", *_SWITCHES))
        latency = _read_links(found.get("latency", 0.0), f"{where}.latency")
        bandwidth = _read_links(found.get("bandwidth"), f"{where}.bandwidth")
        switches = {name: found.get(name, False) for name in _SWITCHES}
        for name, value in switches.items():
            if type(value) is not bool:
                raise PipelabError(f"{where}.{name} must be true or false, not {str(value)[:40]!r}.")
        return cls(latency, bandwidth, **switches)


@dataclass(frozen=True)
class Costs:
    """Seconds per model stage, for one micro-batch.

    Attributes:
        forward: seconds of F.
        input_grad: seconds of I.
        weight_grad: seconds of W.
        backward: seconds of B; None means I + W.
        update: seconds of U, the optimizer's step. Where it is given, an update of every stage ends the step of its
            rank, unless the schedule has no backward or updates of its own; None adds no update, and one that a
            schedule has takes 0.
        overlap: seconds of a cell that overlaps several actions, by the stage of its first member; None means
            the sum of its members.
        bytes: bytes per stage, for transfers and memory; None when they are not known.
        links: the links between ranks.
        microbatch_size: samples per micro-batch at which all this holds; None when it is not known.

    Example:
        >>> costs = Costs.uniform(4, latency=0.5)
        >>> costs.seconds(Kind.B, 0), costs.num_stages
        (2.0, 4)

    Raises:
        PipelabError: tuples of different lengths, a negative or infinite number, or no stage.
    """

    forward: tuple[float, ...]
    input_grad: tuple[float, ...]
    weight_grad: tuple[float, ...]
    backward: tuple[float, ...] | None = None
    update: tuple[float, ...] | None = None
    overlap: tuple[float, ...] | None = None
    bytes: StageBytes | None = None
    links: Links = Links()
    microbatch_size: int | None = None

    def __post_init__(self) -> None:
        for name in _PER_STAGE:
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, _amounts(name, values, "seconds"))
            elif name in _PER_STAGE[:3]:
                raise PipelabError(f"{name} is None; it must be seconds per stage.")
        _same_length(self, _PER_STAGE)
        if not self.forward:
            raise PipelabError("Costs need at least one stage; forward is empty.")
        if self.bytes is not None:
            if not isinstance(self.bytes, StageBytes):
                raise TypeError(f"bytes must be StageBytes, not {type(self.bytes).__name__}.")
            if self.bytes.num_stages != self.num_stages:
                raise PipelabError(
                    f"bytes are for {self.bytes.num_stages} stages, seconds for {self.num_stages}."
                )
        if not isinstance(self.links, Links):
            raise TypeError(f"links must be Links, not {type(self.links).__name__}.")
        if self.microbatch_size is not None:
            object.__setattr__(self, "microbatch_size", as_index("microbatch_size", self.microbatch_size))
            if self.microbatch_size < 1:
                raise PipelabError(f"microbatch_size is {self.microbatch_size}; it must be at least 1.")

    @classmethod
    def uniform(
        cls,
        num_stages: int,
        forward: float = 1.0,
        input_grad: float = 1.0,
        weight_grad: float = 1.0,
        latency: float = 0.0,
        update: float | None = None,
    ) -> Costs:
        """The same seconds for every stage.

        Args:
            num_stages: how many model stages.
            forward: seconds of F.
            input_grad: seconds of I.
            weight_grad: seconds of W; B takes I + W.
            latency: seconds of every transfer between ranks.
            update: seconds of the optimizer's step; None leaves it out.
        """
        count = as_index("num_stages", num_stages)
        return cls(
            (forward,) * count,
            (input_grad,) * count,
            (weight_grad,) * count,
            update=None if update is None else (update,) * count,
            links=Links(latency),
        )

    @property
    def num_stages(self) -> int:
        """For how many model stages there are costs."""
        return len(self.forward)

    def seconds(self, kind: Kind, stage: int) -> float:
        """How long one action takes.

        Args:
            kind: F, I, W, B or U. (For an overlap see `seconds_of`.)
            stage: number of the model stage.
        """
        if kind is Kind.B:
            return (
                self.input_grad[stage] + self.weight_grad[stage]
                if self.backward is None
                else self.backward[stage]
            )
        if kind is Kind.U:
            return 0.0 if self.update is None else self.update[stage]
        return {Kind.F: self.forward, Kind.I: self.input_grad, Kind.W: self.weight_grad}[kind][stage]

    def seconds_of(self, work: Sequence[tuple[Kind, int]]) -> float:
        """How long one cell takes.

        Args:
            work: the kind and model stage of each of its members; several members are an overlap.
        """
        if len(work) > 1 and self.overlap is not None:
            return self.overlap[work[0][1]]
        return sum(self.seconds(kind, stage) for kind, stage in work)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the costs as JSON, atomically; `pp.load` reads them.

        Args:
            path: where to.
            overwrite: replace a file that is there.

        Raises:
            PipelabError: the file exists and `overwrite` is False, or they are longer than `load` would read.
        """
        from pipelab.core.interchange import json_files  # files are about values

        json_files.save(self, path, overwrite)

    def to_dict(self) -> dict[str, Any]:
        """The costs as plain values, ready for JSON; what is None is left out."""
        data: dict[str, Any] = {
            name: list(getattr(self, name)) for name in _PER_STAGE if getattr(self, name) is not None
        }
        if self.bytes is not None:
            data["bytes"] = self.bytes.to_dict()
        data["links"] = self.links.to_dict()
        if self.microbatch_size is not None:
            data["microbatch_size"] = self.microbatch_size
        return data

    @classmethod
    def from_dict(cls, data: object, where: str = "costs") -> Costs:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        optional = (*_PER_STAGE[3:], "bytes", "links", "microbatch_size")
        found = strict_json.fields(data, where, required=_PER_STAGE[:3], optional=optional)
        values: dict[str, Any] = {
            n: strict_json.numbers(found[n], f"{where}.{n}") for n in _PER_STAGE if n in found
        }
        if "bytes" in found:
            values["bytes"] = StageBytes.from_dict(found["bytes"], f"{where}.bytes")
        if "links" in found:
            values["links"] = Links.from_dict(found["links"], f"{where}.links")
        if "microbatch_size" in found:
            values["microbatch_size"] = strict_json.integer(
                found["microbatch_size"], f"{where}.microbatch_size"
            )
        return cls(**values)
