"""What each rank held while a step ran, measured, to be laid beside what was predicted.

weights       of the stages on the rank, and gradients as large as they: counted, there all the time, as in the
gradients     prediction
activations   tensors that the stage's actions made and left alive: followed, and looked at when an action ends
outputs       of these the model's outputs that the caller wants (`step(outputs=True)`), once no backward needs them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import IntArray
from pipelab.core.memory import PARTS, MemoryCurve, resident
from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AllocatorMemory", "MeasuredMemory", "Peak"]

_LEFT = 0.01
"""Of the highest activations of a stage: more than this that is still alive after the step is worth a sentence."""


@dataclass(frozen=True)
class Peak:
    """The most that was held at once.

    Attributes:
        bytes: how much.
        time: when first, seconds.
    """

    bytes: float
    time: float


@dataclass(frozen=True, eq=False)
class AllocatorMemory:
    """What the allocator of a device had given out, beyond what was out when the step began.

    Attributes:
        device: such as "cuda:0".
        time: shape (n,): seconds, ascending.
        value: shape (n,): bytes when an action ended on one of the device's ranks.
        peak: bytes; the most at any moment, also inside an action.
    """

    device: str
    time: FloatArray
    value: FloatArray
    peak: float


@dataclass(frozen=True, eq=False)
class MeasuredMemory:
    """What each stage and rank held while a step ran: `step.memory` of `pipe.step(..., memory=True)`.

    Attributes:
        trace: the step, with its own prediction (`trace.memory()`).
        cell: shape (looks,): after which cell it was looked what is alive, in table order; after each member of an
            overlap, so that such a cell is there several times.
        activations: shape (looks, stages): bytes that a stage's actions had made and that were alive then; of no
            meaning for stages of other ranks than the cell's.
        outputs: shape (looks, stages): bytes of outputs kept for the caller.
        left: for each stage bytes that its actions made and that are alive after the step.
        allocators: of the GPUs; () without any.

    Raises:
        PipelabError: arrays of other shapes, or a trace without bytes.
    """

    trace: Trace
    cell: IntArray
    activations: FloatArray
    outputs: FloatArray
    left: tuple[float, ...]
    allocators: tuple[AllocatorMemory, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.cell), self.trace.schedule.placement.num_stages)
        for name in ("activations", "outputs"):
            if getattr(self, name).shape != shape:
                raise PipelabError(
                    f"{name} has shape {getattr(self, name).shape}, not (looks, stages) = {shape}."
                )
        if len(self.left) != shape[1]:
            raise PipelabError(f"left has {len(self.left)} entries for {shape[1]} stages.")
        if self.trace.bytes is None:
            raise PipelabError("The trace has no bytes of its stages, so there is nothing to compare with.")

    def memory(self) -> tuple[MemoryCurve, ...]:
        """What each rank held over time, all parts together; as `Trace.memory` predicts it."""
        return self._curves

    @cached_property
    def _curves(self) -> tuple[MemoryCurve, ...]:
        held = self.activations + self.outputs
        curves = []
        for rank in range(self.trace.num_ranks):
            looks, stages = self._of_rank(rank)
            value = self._resident[rank].sum() + np.append(0.0, held[np.ix_(looks, stages)].sum(axis=1))
            curves.append(MemoryCurve(rank, np.append(0.0, self._time[looks]), value, "bytes"))
        return tuple(curves)

    @cached_property
    def _resident(self) -> FloatArray:
        """Shape (ranks, parts)."""
        schedule = self.trace.schedule
        assert self.trace.bytes is not None  # checked when this was made
        return resident(schedule.placement, self.trace.bytes, has_backward=schedule.has_backward)

    @property
    def _time(self) -> FloatArray:
        """When it was looked."""
        ends: FloatArray = self.trace.end[self.cell]
        return ends

    def _of_rank(self, rank: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Which looks were at a rank, and its stages."""
        schedule = self.trace.schedule
        looks = np.flatnonzero(schedule.table.cell_ranks[self.cell] == rank)
        return looks, np.flatnonzero(np.array(schedule.placement.ranks) == rank)

    @property
    def rank_peaks(self) -> tuple[Peak, ...]:
        """For each rank the most that it held, all parts together, and when."""
        return tuple(_peak(curve.time, curve.value) for curve in self._curves)

    @property
    def stage_peaks(self) -> tuple[Peak, ...]:
        """For each stage the most activations that it held, and when."""
        peaks = []
        for stage, rank in enumerate(self.trace.schedule.placement.ranks):
            looks, _ = self._of_rank(rank)
            peaks.append(_peak(self._time[looks], self.activations[looks, stage]))
        return tuple(peaks)

    @property
    def predicted_peaks(self) -> tuple[float, ...]:
        """For each rank the peak that follows from the order of the actions and the bytes of one micro-batch.

        It takes all micro-batches to be as large as the first, and leaves out gradients on their way between stages.
        """
        return tuple(curve.peak for curve in self.trace.memory())

    @property
    def error(self) -> tuple[float, ...]:
        """For each rank by which fraction the measured peak is above the predicted one."""
        pairs = zip(self.rank_peaks, self.predicted_peaks, strict=True)
        return tuple(peak.bytes / predicted - 1 if predicted else 0.0 for peak, predicted in pairs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about these numbers, in sentences."""
        notes = []
        for stage, (left, peak) in enumerate(zip(self.left, self.stage_peaks, strict=True)):
            if left > _LEFT * peak.bytes:
                notes.append(
                    f"{as_bytes(left)} that stage {stage} made are still alive after the step: something keeps them, "
                    f"such as a list, an attribute of a module or a hook"
                )
        if self.outputs.any():
            notes.append(
                f"{as_bytes(float(self.outputs.max(axis=0).sum()))} of outputs are kept for the caller; "
                f"step(outputs=False) keeps none"
            )
        notes += [
            f"the allocator of {each.device} gave out at most {as_bytes(each.peak)} more than when the step began"
            for each in self.allocators
        ]
        return tuple(notes)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row for each look and stage of its rank, in table order."""
        schedule = self.trace.schedule
        ranks = schedule.table.cell_ranks[self.cell]
        look, stage = np.nonzero(ranks[:, None] == np.array(schedule.placement.ranks)[None, :])
        names = [str(cell) for order in schedule.orders for cell in order]
        return {
            "rank": ranks[look],
            "stage": stage,
            "after": np.array(names, dtype=object)[self.cell[look]],
            "time [s]": self._time[look],
            "activations [bytes]": self.activations[look, stage],
            "outputs [bytes]": self.outputs[look, stage],
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        header = ["rank", "at", *PARTS[:2], PARTS[3], "outputs", "total", "predicted", "difference"]
        rows = []
        for rank, (peak, predicted, error) in enumerate(
            zip(self.rank_peaks, self.predicted_peaks, self.error, strict=True)
        ):
            looks, stages = self._of_rank(rank)
            row = int(np.argmax(self._curves[rank].value)) - 1  # the first is before any look
            held = [
                float(part[looks[row], stages].sum()) if row >= 0 else 0.0
                for part in (self.activations, self.outputs)
            ]
            amounts = [*self._resident[rank][:2].tolist(), *held, peak.bytes, predicted]
            sign = "+" if error >= 0 else ""
            rows.append(
                [str(rank), as_seconds(peak.time), *map(as_bytes, amounts), f"{sign}{as_percent(error)}"]
            )
        if not self.outputs.any():
            column = header.index("outputs")
            header, rows = _without(header, column), [_without(row, column) for row in rows]
        return header, rows

    def _stage_rows(self) -> tuple[list[str], list[list[str]]]:
        ranks = self.trace.schedule.placement.ranks
        rows = [
            [str(stage), str(rank), as_seconds(peak.time), as_bytes(peak.bytes)]
            for stage, (rank, peak) in enumerate(zip(ranks, self.stage_peaks, strict=True))
        ]
        return ["stage", "rank", "at", PARTS[3]], rows

    def _note(self) -> str:
        return "; ".join([f"measured when each holds most, {self.trace.clock} clock", *self.notes])

    def __str__(self) -> str:
        tables = [text_table(*self._rows(), self._note())]
        if self.trace.schedule.stages_per_rank > 1:
            tables.insert(0, text_table(*self._stage_rows()))
        return "\n\n".join(tables)

    def __repr__(self) -> str:
        highest = max(self.rank_peaks, key=lambda peak: peak.bytes)
        return f"<MeasuredMemory: {self.trace.label}, peak {as_bytes(highest.bytes)}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        tables = html_table(*self._rows(), f"Memory of each rank, {self.trace.label}", self._note())
        if self.trace.schedule.stages_per_rank > 1:
            tables = html_table(*self._stage_rows(), "Activations of each stage") + tables
        return tables

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeasuredMemory):
            return NotImplemented
        arrays = (
            (self.cell, other.cell),
            (self.activations, other.activations),
            (self.outputs, other.outputs),
        )
        return (
            all(np.array_equal(a, b) for a, b in arrays)
            and self.left == other.left
            and self.trace == other.trace
        )

    def __hash__(self) -> int:
        return hash((self.trace, self.left))


def _peak(time: FloatArray, value: FloatArray) -> Peak:
    if not len(value):
        return Peak(0.0, 0.0)
    k = int(np.argmax(value))
    return Peak(float(value[k]), float(time[k]))


def _without(row: Sequence[str], column: int) -> list[str]:
    return [*row[:column], *row[column + 1 :]]
