"""What each layer of a model costs, as a function of the micro-batch size.

A profile is measured at two or more sizes and keeps a straight line per layer and kind: seconds = a + b n.
The fixed part a is why many small micro-batches do not cost the same as a few large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core import strict_json
from pipelab.core.actions import as_index
from pipelab.core.costs import Costs, Links, StageBytes, as_amounts, as_band
from pipelab.core.quantities import as_bytes, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.saving import Saved
from pipelab.core.split import Split, first_doubled
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.errors import PipelabError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Affine", "Profile"]


@dataclass(frozen=True)
class Affine:
    """A straight line in the micro-batch size n: fixed + per_sample n.

    Attributes:
        fixed: at n = 0, in seconds or bytes. A fit may make it negative.
        per_sample: for each sample.

    Example:
        >>> Affine(1.0, 0.5).at(4)
        3.0

    Raises:
        PipelabError: a number that is not finite.
    """

    fixed: float
    per_sample: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed", "per_sample"):
            value = getattr(self, name)
            if isinstance(value, str) or not math.isfinite(value):
                raise PipelabError(f"{name} is {value!r}; it must be a finite number.")
            object.__setattr__(self, name, float(value))

    def at(self, size: float) -> float:
        """The value at micro-batch size `size`; never below 0, whatever the fit says."""
        return max(0.0, self.fixed + self.per_sample * size)


_NANOSECOND = 1e-9
"""No clock here tells less: what a fit leaves below it is printed as 0."""

_LINES = ("forward", "input_grad", "weight_grad", "activation_bytes", "output_bytes")


@dataclass(frozen=True, repr=False)
class Profile(Saved):
    """What each layer of a model costs, as a function of the micro-batch size.

    Attributes:
        layers: module names, in the order of their first call.
        forward: seconds of F for each layer.
        input_grad: seconds of I for each layer.
        weight_grad: seconds of W for each layer.
        parameter_bytes: bytes of the parameters of each layer.
        activation_bytes: bytes kept from forward to backward, for one micro-batch, without what is sent.
        output_bytes: bytes of each layer's output, for one micro-batch.
        batch_size: samples in the example batch; the micro-batch size where none is given.
        measured_sizes: the sizes that were measured.
        device: where it was measured.
        notes: what to know about the numbers.
        backward: seconds of B for each layer; None means I + W.
        border: seconds of F and of B (as of I) that every stage but the first takes besides those of its layers, to
            receive values and to send their gradients back.
        reference: seconds that a fixed piece of work took before the measurement and after it; see `drift`.
        band: between which multiples of these seconds the machine ran while they were measured; None when that is not
            known. Predictions carry it on (`Trace.band`).

    Raises:
        PipelabError: a doubled layer, columns of different lengths, no layer at all.
    """

    layers: tuple[str, ...]
    forward: tuple[Affine, ...]
    input_grad: tuple[Affine, ...]
    weight_grad: tuple[Affine, ...]
    parameter_bytes: tuple[int, ...]
    activation_bytes: tuple[Affine, ...]
    output_bytes: tuple[Affine, ...]
    batch_size: int
    measured_sizes: tuple[int, ...]
    device: str
    notes: tuple[str, ...] = ()
    backward: tuple[Affine, ...] | None = None
    border: tuple[float, float] = (0.0, 0.0)
    reference: tuple[float, float] | None = None
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", *_LINES, "parameter_bytes", "measured_sizes", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.backward is not None:
            object.__setattr__(self, "backward", tuple(self.backward))
        if not self.layers:
            raise PipelabError("A profile needs at least one layer.")
        doubled = first_doubled(self.layers)
        if doubled is not None:
            raise PipelabError(f"Layer {doubled!r} is there twice.")
        lines = _LINES if self.backward is None else (*_LINES, "backward")
        for name in (*lines, "parameter_bytes"):
            if len(getattr(self, name)) != len(self.layers):
                raise PipelabError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.layers)} layers."
                )
        for name in lines:
            if not all(isinstance(line, Affine) for line in getattr(self, name)):
                raise TypeError(f"{name} must hold an Affine for each layer.")
        if min(self.parameter_bytes) < 0:
            raise PipelabError(f"parameter_bytes holds {min(self.parameter_bytes)}; bytes are not negative.")
        object.__setattr__(self, "batch_size", _size(self.batch_size))
        for name in ("reference", "band"):
            object.__setattr__(self, name, as_band(name, getattr(self, name), ordered=name == "band"))
        object.__setattr__(self, "border", as_amounts("border", self.border, "seconds"))
        if len(self.border) != 2:
            raise PipelabError(f"border is {self.border}; it must be seconds of F and of B.")

    @property
    def drift(self) -> float | None:
        """By which fraction a fixed piece of work took longer after the measurement than before; None: not known.

        So much did the machine's own speed change meanwhile; a prediction cannot be better than that.
        """
        return None if self.reference is None else self.reference[1] / self.reference[0] - 1

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def seconds(self, batch_size: int | None = None) -> FloatArray:
        """Shape (layers,): seconds of F + B of each layer; B is I + W where it was not measured.

        Args:
            batch_size: the micro-batch size; None takes `self.batch_size`.
        """
        size = self._size(batch_size)
        backward = (self.input_grad, self.weight_grad) if self.backward is None else (self.backward,)
        return np.array(
            [sum(line.at(size) for line in one) for one in zip(self.forward, *backward, strict=True)]
        )

    def stages(self, split: Split) -> tuple[slice, ...]:
        """Which layers form which stage.

        Args:
            split: cuts at names of `layers`, or of modules that contain some of them.

        Raises:
            PipelabError: a cut that is no layer here, is out of order, or leaves a stage without layers.
        """
        if not isinstance(split, Split):
            raise TypeError(
                f"split must be a Split such as Split([{self.layers[-1]!r}]), not {type(split).__name__}."
            )
        starts = [0]
        for cut in split.cuts:
            start = self._find(cut)
            if start <= starts[-1]:
                where = (
                    "the model's first layer" if start == 0 else f"at or before {self.layers[starts[-1]]!r}"
                )
                raise PipelabError(
                    f"The cut {cut!r} is {where}, so a stage before it would have no layers. "
                    "Give the cuts in the order in which the model calls the layers."
                )
            starts.append(start)
        return tuple(slice(a, b) for a, b in zip(starts, [*starts[1:], self.num_layers], strict=True))

    def _find(self, cut: str) -> int:
        for number, name in enumerate(self.layers):
            if name == cut or name.startswith(f"{cut}."):
                return number
        near = nearest(cut, self.layers) or list(self.layers[:3])
        raise PipelabError(
            f"The cut {cut!r} is no layer of this profile; near it: {', '.join(map(repr, near))}."
        )

    def costs(self, split: Split, batch_size: int | None = None, links: Links | None = None) -> Costs:
        """What each stage of a split costs.

        Args:
            split: the cut points.
            batch_size: samples per micro-batch; None takes `self.batch_size`. At a fixed batch, twice as many
                micro-batches are half as large each.
            links: the links between ranks; None is free links.

        Returns:
            Seconds and bytes per stage: those of its layers summed, and the seconds of its border; its output is that
            of its last layer, which it keeps, too, until its backward.
        """
        size, stages = self._size(batch_size), self.stages(split)

        def total(lines: Sequence[Affine], border: float = 0.0) -> tuple[float, ...]:
            own = [math.fsum(line.at(size) for line in lines[stage]) for stage in stages]
            return (own[0], *(seconds + border for seconds in own[1:]))

        outputs = tuple(self.output_bytes[stage.stop - 1].at(size) for stage in stages)
        kept = zip(total(self.activation_bytes), (*outputs[:-1], 0.0), strict=True)
        held = StageBytes(
            parameters=tuple(sum(self.parameter_bytes[stage]) for stage in stages),
            activations=tuple(map(sum, kept)),
            outputs=outputs,
        )
        first, second = self.border
        seconds = (total(self.forward, first), total(self.input_grad, second), total(self.weight_grad))
        whole = None if self.backward is None else total(self.backward, second)
        return Costs(
            *seconds,
            backward=whole,
            bytes=held,
            links=links or Links(),
            microbatch_size=size,
            band=self.band,
        )

    def _size(self, batch_size: int | None) -> int:
        return self.batch_size if batch_size is None else _size(batch_size)

    def _rows(self) -> tuple[list[str], list[list[str]], str]:
        whole = ["B"] if self.backward is not None else []
        header = ["layer", "F", *whole, "I", "W", "parameters", "activations", "output"]
        rows = []
        for n, name in enumerate(self.layers):
            forward, input_grad, weight_grad, kept, output = (
                getattr(self, x)[n].at(self.batch_size) for x in _LINES
            )
            backward = [] if self.backward is None else [self.backward[n].at(self.batch_size)]
            seconds = [
                as_seconds(x if x >= _NANOSECOND else 0.0)
                for x in (forward, *backward, input_grad, weight_grad)
            ]
            rows.append([name, *seconds, *(as_bytes(x) for x in (self.parameter_bytes[n], kept, output))])
        sizes = ", ".join(map(str, self.measured_sizes))
        note = f"at {self.batch_size} samples; measured at {sizes} on {self.device}"
        drift = "" if self.drift is None else f"; the machine's speed changed by {self.drift:+.1%} meanwhile"
        return header, rows, " ".join([note + drift, *self.notes])

    def __str__(self) -> str:
        return text_table(*self._rows())

    def __repr__(self) -> str:
        step = as_seconds(float(self.seconds().sum()))
        return f"<Profile: {self.num_layers} layers, {step} for {self.batch_size} samples on {self.device}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        header, rows, note = self._rows()
        return html_table(header, rows, note=note)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer at `batch_size`: seconds and bytes, units in the names of the columns."""
        import pandas as pd

        columns: dict[str, Any] = {"layer": self.layers}
        for name, unit in zip(_LINES, ("s", "s", "s", "bytes", "bytes"), strict=True):
            label = f"{name.removesuffix('_bytes').replace('_', ' ')} [{unit}]"
            columns[label] = [line.at(self.batch_size) for line in getattr(self, name)]
        if self.backward is not None:
            columns["backward [s]"] = [line.at(self.batch_size) for line in self.backward]
        columns["parameters [bytes]"] = self.parameter_bytes
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain values, ready for JSON; a line is [fixed, per_sample]."""
        data: dict[str, Any] = {
            name: list(getattr(self, name)) for name in ("layers", "measured_sizes", "notes")
        }
        for name in _LINES if self.backward is None else (*_LINES, "backward"):
            data[name] = [[line.fixed, line.per_sample] for line in getattr(self, name)]
        for name in ("border", "reference", "band"):
            if getattr(self, name) not in (None, (0.0, 0.0)):
                data[name] = list(getattr(self, name))
        data["parameter_bytes"] = list(self.parameter_bytes)
        return {**data, "batch_size": self.batch_size, "device": self.device}

    @classmethod
    def from_dict(cls, data: object, where: str = "profile") -> Profile:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        required = ("layers", *_LINES, "parameter_bytes", "batch_size", "measured_sizes", "device")
        optional = ("notes", "backward", "border", "reference", "band")
        found = strict_json.fields(data, where, required=required, optional=optional)
        lines: dict[str, Any] = {
            name: _read_lines(found[name], f"{where}.{name}")
            for name in (*_LINES, "backward")
            if name in found
        }
        for name in ("border", "reference", "band"):
            if name in found:
                lines[name] = strict_json.numbers(found[name], f"{where}.{name}")
        return cls(
            layers=strict_json.texts(found["layers"], f"{where}.layers"),
            **lines,
            parameter_bytes=strict_json.integers(found["parameter_bytes"], f"{where}.parameter_bytes"),
            batch_size=strict_json.integer(found["batch_size"], f"{where}.batch_size"),
            measured_sizes=strict_json.integers(found["measured_sizes"], f"{where}.measured_sizes"),
            device=strict_json.text(found["device"], f"{where}.device"),
            notes=strict_json.texts(found.get("notes", []), f"{where}.notes"),
        )


def _size(value: int) -> int:
    size = as_index("batch_size", value)
    if size < 1:
        raise PipelabError(f"batch_size is {size}; it must be at least 1.")
    return size


def _read_lines(value: object, where: str) -> tuple[Affine, ...]:
    lines = []
    for n, item in enumerate(strict_json.items(value, where)):
        pair = strict_json.numbers(item, f"{where}[{n}]")
        if len(pair) != 2:
            raise PipelabError(f"{where}[{n}] must be [fixed, per_sample], not {len(pair)} numbers.")
        lines.append(Affine(*pair))
    return tuple(lines)
