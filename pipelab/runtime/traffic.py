"""What crosses the borders between stages in a step: which value, from where to where, and how large it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelab.core.quantities import as_bytes, counted
from pipelab.core.tables import html_table, pretty, text_table

if TYPE_CHECKING:
    import pandas as pd

    from pipelab.runtime.microbatch import MicroBatch
    from pipelab.runtime.parameters import Parameters

ACTIVATION, GRADIENT, WITHOUT_GRADIENT = "activation", "gradient", "without gradient (ids, masks)"
REPLICA, REPLICA_GRADIENT = "parameter of another stage", "gradient of that parameter"

_ON_ONE_DEVICE = (
    " All stages share one device: values without gradients (ids, masks) are read in place and not listed."
)


@dataclass(frozen=True)
class Crossing:
    """The values of one sort that go from one stage to another.

    Attributes:
        source, target: the stages.
        what: "activation", "gradient", "without gradient (ids, masks)", "parameter of another stage" or "gradient of
            that parameter".
        tensors: how many.
        bytes: of all of them.
        once_a_step: True for parameters; everything else crosses for each micro-batch.
    """

    source: int
    target: int
    what: str
    tensors: int
    bytes: int
    once_a_step: bool = False


@dataclass(frozen=True)
class Traffic:
    """Everything that crosses a border between stages.

    Attributes:
        crossings: by source, target and sort, for one micro-batch or once a step.
        num_microbatches: how many micro-batches a step has.
        same_device: whether all stages share one device. Then nothing is really sent, and values without gradients
            (ids, masks), which every stage reads where they lie, are not seen.
    """

    crossings: tuple[Crossing, ...]
    num_microbatches: int
    same_device: bool = False

    @property
    def bytes_per_microbatch(self) -> int:
        """What crosses for one micro-batch, all borders together."""
        return sum(each.bytes for each in self.crossings if not each.once_a_step)

    @property
    def bytes_once(self) -> int:
        """What crosses once a step whatever the number of micro-batches: parameters that several stages use."""
        return sum(each.bytes for each in self.crossings if each.once_a_step)

    @property
    def bytes_per_step(self) -> int:
        """What crosses in a whole step."""
        return self.num_microbatches * self.bytes_per_microbatch + self.bytes_once

    def between(self, source: int, target: int) -> Traffic:
        """Only what goes from one stage to another.

        Args:
            source, target: the stages.
        """
        here = tuple(each for each in self.crossings if (each.source, each.target) == (source, target))
        return replace(self, crossings=here)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a crossing."""
        return {
            "from stage": np.array([each.source for each in self.crossings], dtype=np.int64),
            "to stage": np.array([each.target for each in self.crossings], dtype=np.int64),
            "what": np.array([each.what for each in self.crossings], dtype=object),
            "tensors": np.array([each.tensors for each in self.crossings], dtype=np.int64),
            "size [bytes]": np.array([each.bytes for each in self.crossings], dtype=np.int64),
            "times in a step": np.array([self._times(each) for each in self.crossings], dtype=np.int64),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _times(self, each: Crossing) -> int:
        return 1 if each.once_a_step else self.num_microbatches

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        header = ["from stage", "to stage", "what", "tensors", "size", "for each"]
        rows = [
            [
                str(each.source),
                str(each.target),
                each.what,
                str(each.tensors),
                as_bytes(each.bytes),
                "step" if each.once_a_step else "micro-batch",
            ]
            for each in self.crossings
        ]
        return header, rows

    def _sums(self) -> str:
        once = f" and {as_bytes(self.bytes_once)} once a step" if self.bytes_once else ""
        microbatches = counted(self.num_microbatches, "micro-batch", "micro-batches")
        return (
            f"{as_bytes(self.bytes_per_microbatch)} for each micro-batch{once}: "
            f"{as_bytes(self.bytes_per_step)} in a step of {microbatches}.{_ON_ONE_DEVICE * self.same_device}"
        )

    def __str__(self) -> str:
        return text_table(*self._rows(), self._sums()) if self.crossings else "Nothing crosses a border."

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        if not self.crossings:
            return f"<p>{self}</p>"
        return html_table(*self._rows(), "What crosses the borders between stages", self._sums())


def crossings(
    microbatch: MicroBatch, parameters: Parameters, devices: Sequence[torch.device]
) -> tuple[Crossing, ...]:
    """What crosses for one micro-batch whose forward has just ended.

    Args:
        microbatch: which.
        parameters: knows the replicas.
        devices: of the stages. A value without a gradient shows no stage that made it; it counts as sent by the first
            stage whose device it lies on.
    """
    found: dict[tuple[int, int, str, bool], list[int]] = defaultdict(list)
    for link in microbatch.links:
        if link.sent is not None:
            size = _size(link.sent)
            found[link.source, link.target, ACTIVATION, False].append(size)
            found[link.target, link.source, GRADIENT, False].append(size)
    for value, target in microbatch.moved:
        source = devices.index(value.device) if value.device in devices else 0
        found[source, target, WITHOUT_GRADIENT, False].append(_size(value))
    for parameter, target, copy in parameters.replicas():
        home = parameters.home(parameter)
        assert home is not None  # a parameter with a replica has a home
        found[home, target, REPLICA, True].append(_size(parameter))
        if copy.requires_grad:
            found[target, home, REPLICA_GRADIENT, True].append(_size(parameter))
    return tuple(
        Crossing(source, target, what, len(sizes), sum(sizes), once)
        for (source, target, what, once), sizes in sorted(found.items())
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
