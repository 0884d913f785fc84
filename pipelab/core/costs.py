"""What a step costs: seconds for each stage and kind, bytes for each stage, and the links between ranks.

Costs hold at one micro-batch size; a `Profile` makes them for any size and any split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipelab.core import strict_json
from pipelab.core.actions import Kind, as_index
from pipelab.core.links import MOST, Links
from pipelab.core.placement import MAX_STAGES
from pipelab.core.saving import Saved
from pipelab.errors import PipelabError

__all__ = ["Costs", "Links", "StageBytes"]


_PER_STAGE = ("forward", "input_grad", "weight_grad", "backward", "update", "overlap")


def as_amounts(name: str, values: Iterable[float], unit: str) -> tuple[float, ...]:
    """Numbers that are finite, not negative and not too large.

    Args:
        name: of the field, for errors.
        values: the numbers.
        unit: "seconds" or "bytes".

    Raises:
        PipelabError: something else.
    """
    try:
        found = tuple(values)
        total = math.fsum(found)
        found = tuple(map(float, found)) if unit == "seconds" else found
    except (TypeError, OverflowError, ValueError):
        raise PipelabError(
            f"{name} must be numbers of {unit}, one a stage, at most {MOST:g}, not {str(values)[:60]!r}."
        ) from None
    if not math.isfinite(total) or (found and min(found) < 0):
        wrong = next((n for n, x in enumerate(found) if not (math.isfinite(x) and x >= 0)), 0)
        raise PipelabError(f"{name}[{wrong}] is {found[wrong]!r}; it must be finite and not negative.")
    if found and max(found) > MOST:
        wrong = found.index(max(found))
        raise PipelabError(f"{name}[{wrong}] is {found[wrong]:.6g}; the limit is {MOST:g} {unit}.")
    return found


def as_band(name: str, value: Iterable[float] | None, ordered: bool = True) -> tuple[float, float] | None:
    """Two positive numbers, the lower one first; None stays None.

    Args:
        name: of the field, for errors.
        value: the two numbers.
        ordered: whether the second must be at least the first.

    Raises:
        PipelabError: something else.
    """
    if value is None:
        return None
    pair = as_amounts(name, value, "seconds")
    if len(pair) != 2 or min(pair) <= 0 or (ordered and pair[0] > pair[1]):
        what = "two positive numbers, the lower one first" if ordered else "two positive numbers"
        raise PipelabError(f"{name} is {pair}; it must be {what}.")
    return pair[0], pair[1]


def _same_length(value: object, names: Sequence[str]) -> None:
    lengths = {name: len(getattr(value, name)) for name in names if getattr(value, name) is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise PipelabError(f"All must be for the same number of stages: {found}.")


@dataclass(frozen=True)
class StageBytes:
    """Bytes per model stage.

    Attributes:
        parameters: of the stage's parameters; its gradients are as large.
        activations: kept for one micro-batch from its forward to the end of its backward.
        outputs: sent to the next stage for one micro-batch; the gradient that returns is as large.
        optimizer: of the optimizer's state, such as two parameters' worth for Adam; None means none.
        until_weight_grad: where the backward is split, kept from the end of I to the end of W: the inputs of the
            weights and the gradients of their outputs. None means all of `activations`, so that I frees nothing.

    Raises:
        PipelabError: tuples of different lengths, or a negative or infinite number.
    """

    parameters: tuple[float, ...]
    activations: tuple[float, ...]
    outputs: tuple[float, ...]
    optimizer: tuple[float, ...] | None = None
    until_weight_grad: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        names = [one.name for one in fields(self)]
        for name in names:
            values = getattr(self, name)
            if values is not None or name in names[:3]:
                object.__setattr__(self, name, as_amounts(name, values, "bytes"))
        _same_length(self, names)

    @property
    def num_stages(self) -> int:
        """How many model stages there are."""
        return len(self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The bytes as plain lists; what is None is left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: list(amounts) for name, amounts in values.items() if amounts is not None}

    @classmethod
    def from_dict(cls, data: object, where: str = "bytes") -> StageBytes:
        """Read what `to_dict` wrote."""
        names = [one.name for one in fields(cls)]
        found = strict_json.fields(data, where, required=names[:3], optional=names[3:])
        return cls(**{name: strict_json.numbers(found[name], f"{where}.{name}") for name in found})


@dataclass(frozen=True)
class Costs(Saved):
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
        bytes: bytes per stage, for transfers and memory; None when they are not known. Links of a finite bandwidth
            need them.
        links: the links between ranks.
        microbatch_size: samples per micro-batch at which all this holds; None when it is not known.
        band: between which multiples of these costs the machine ran while they were measured; None when that is not
            known. See `Trace.band`.

    Example:
        >>> costs = Costs.uniform(4, latency=0.5)
        >>> costs.seconds(Kind.B, 0), costs.num_stages
        (2.0, 4)

    Raises:
        PipelabError: tuples of different lengths, a negative or infinite number, no stage, or a bandwidth without
            bytes.
    """

    forward: tuple[float, ...]
    input_grad: tuple[float, ...]
    weight_grad: tuple[float, ...]
    backward: tuple[float, ...] | None = None
    update: tuple[float, ...] | None = None
    overlap: tuple[float, ...] | None = None
    bytes: StageBytes | None = None
    links: Links = field(default_factory=Links)
    microbatch_size: int | None = None
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in _PER_STAGE:
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, as_amounts(name, values, "seconds"))
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
        if self.bytes is None and self.links.has_bandwidth:
            raise PipelabError(
                "links have a bandwidth, but bytes is None: how long transfers take is not known. Give "
                "bytes=StageBytes(...), or leave the bandwidth out."
            )
        if self.microbatch_size is not None:
            object.__setattr__(self, "microbatch_size", as_index("microbatch_size", self.microbatch_size))
            if self.microbatch_size < 1:
                raise PipelabError(f"microbatch_size is {self.microbatch_size}; it must be at least 1.")
        object.__setattr__(self, "band", as_band("band", self.band))

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

        Raises:
            PipelabError: no stage, or more than 65,536.
        """
        count = as_index("num_stages", num_stages)
        if count > MAX_STAGES:
            raise PipelabError(f"num_stages is {count:,}; the limit is {MAX_STAGES:,} (2**16).")
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
        if self.band is not None:
            data["band"] = list(self.band)
        return data

    @classmethod
    def from_dict(cls, data: object, where: str = "costs") -> Costs:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        optional = (*_PER_STAGE[3:], "bytes", "links", "microbatch_size", "band")
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
        if "band" in found:
            values["band"] = strict_json.numbers(found["band"], f"{where}.band")
        return cls(**values)
