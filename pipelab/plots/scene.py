"""Where everything of a timeline goes, as numbers: rows, boxes and their colours, before anything is drawn.

    y = 0   header of the first trace
        1   rank 0   ┌0┐┌1┐      ┌─0─┐
        2   rank 1      ┌0┐┌─0─┐      ...      a row is the band from y - 0.5 to y + 0.5
        3   header of the second trace
        4   rank 0   ...

Both ways of drawing (polygons with numbers, or coverage per pixel) read the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelab.core.trace import COMPUTE, COPY, UPDATE, Trace
from pipelab.plots.palette import FORWARD_PAINT, OTHER_PAINT, OVERLAP_CODE, PAINT_OF_CODE
from pipelab.plots.wording import literal

FEEDING = ("load", "prepare")
"""How the lanes begin that bring micro-batches."""

HALF = 0.4  # of a box's height; what is left between two rows shows where one ends


@dataclass(frozen=True, eq=False)
class Scene:
    """The boxes of one or more traces on a shared time axis.

    Attributes:
        row_y: centre of each row, downwards.
        row_labels: what stands beside each row.
        row_spans: shape (rows, 2): begin and end of the step that the row belongs to, seconds.
        header_y: centre of the header above each trace's rows; empty when there is one trace.
        row: for each box the index of its row.
        start, end: seconds.
        top, bottom: offsets from the row's centre; they differ only for overlapped actions, which share a row.
        paint: index into `palette.PAINTS`.
        number: the micro-batch.
        later: whether it is of another than the first stage that its rank holds.
        of: the row of its own trace that it shows; the members of an overlap show the same one.
        kind: code, an index into `KINDS`; of a member its own.
        stage: of a member its own.
    """

    row_y: NDArray[np.float64]
    row_labels: tuple[str, ...]
    row_spans: NDArray[np.float64]
    header_y: tuple[float, ...]
    row: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    paint: NDArray[np.int64]
    number: NDArray[np.int64]
    later: NDArray[np.bool_]
    of: NDArray[np.int64]
    kind: NDArray[np.int64]
    stage: NDArray[np.int64]

    @property
    def bottom_y(self) -> float:
        """The lower end of the last row."""
        return float(self.row_y[-1]) + 0.5 if len(self.row_y) else 0.5

    @property
    def stop(self) -> float:
        """The end of the time axis, seconds; positive also when nothing takes any time."""
        longest = float(self.row_spans[:, 1].max(initial=0.0))
        return longest if longest > 0 else 1.0

    def boxes(self) -> NDArray[np.float64]:
        """The corners, shape (boxes, 4, 2): x in seconds, y downwards."""
        centre = self.row_y[self.row]
        corners = np.empty((len(self.row), 4, 2))
        corners[:, 0, 0] = corners[:, 1, 0] = self.start
        corners[:, 2, 0] = corners[:, 3, 0] = self.end
        corners[:, 0, 1] = corners[:, 3, 1] = centre + self.top
        corners[:, 1, 1] = corners[:, 2, 1] = centre + self.bottom
        return corners

    def spans(self) -> NDArray[np.float64]:
        """The corners of what lies behind each row's boxes, shape (rows, 4, 2)."""
        corners = np.empty((len(self.row_y), 4, 2))
        corners[:, :2, 0] = self.row_spans[:, :1]
        corners[:, 2:, 0] = self.row_spans[:, 1:]
        corners[:, (0, 3), 1] = (self.row_y - HALF)[:, None]
        corners[:, (1, 2), 1] = (self.row_y + HALF)[:, None]
        return corners

    def crowded(self, pixels: float, most: int) -> bool:
        """Whether there are too many boxes, or too narrow ones, to be drawn one by one on so many pixels."""
        if not len(self.row):
            return False
        return len(self.row) > most or bool(np.bincount(self.row).max() * 3 > pixels)


def scene(traces: Sequence[Trace]) -> Scene:
    """Lay out traces below one another; each begins at 0.

    A rank has one row for its own work, updates included, and one more for each other lane (copies, loaders) that did
    something.
    """
    parts, headers, labels, spans, row_y = [], [], [], [], []
    rows, y = 0, 0.0
    for trace in traces:
        if len(traces) > 1:
            headers.append(y)
            y += 1.0
        row_of_box, names = rows_of(trace)
        parts.append(_boxes(trace, rows + row_of_box))
        labels += names
        spans += [(0.0, trace.makespan)] * len(names)
        row_y += [y + n for n in range(len(names))]
        rows, y = rows + len(names), y + len(names)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 11
    row, start, end, top, bottom, paint, number, later, of, kind, stage = columns
    return Scene(
        row_y=np.array(row_y),
        row_labels=tuple(labels),
        row_spans=np.array(spans, dtype=float).reshape(-1, 2),
        header_y=tuple(headers),
        row=row.astype(np.int64),
        start=start,
        end=end,
        top=top,
        bottom=bottom,
        paint=paint.astype(np.int64),
        number=number.astype(np.int64),
        later=later.astype(bool),
        of=of.astype(np.int64),
        kind=kind.astype(np.int64),
        stage=stage.astype(np.int64),
    )


def rows_of(trace: Trace) -> tuple[NDArray[np.int64], list[str]]:
    """For each row of the trace its row in the picture, and the labels of these rows.

    What feeds a rank stands above it and what leaves it below; an update is work of the rank itself.
    """
    rank = np.asarray(trace.rank, dtype=np.int64)
    names = [f"rank {number}" for number in range(trace.num_ranks)]
    if len(trace.lanes) == 1:
        return rank, names
    order = [COMPUTE, *(lane for lane in trace.lanes if lane not in (COMPUTE, UPDATE))]
    order.sort(key=lambda lane: (not lane.startswith(FEEDING), lane != COMPUTE))
    place = np.array([order.index(COMPUTE if lane == UPDATE else lane) for lane in trace.lanes])
    key = rank * len(order) + place[trace.lane]
    own = np.arange(trace.num_ranks) * len(order) + order.index(COMPUTE)
    used = np.union1d(key, own)  # a rank has a row even if it does nothing
    labels = {k: names[n] for n, k in enumerate(own.tolist())}
    return np.searchsorted(used, key), [
        labels.get(k) or literal(order[k % len(order)], 20) for k in used.tolist()
    ]


def _boxes(trace: Trace, row: NDArray[np.int64]) -> tuple[NDArray[np.generic], ...]:
    start, end = np.asarray(trace.start, dtype=float), np.asarray(trace.end, dtype=float)
    kind = np.asarray(trace.kind)
    top, bottom = np.full(len(row), -HALF), np.full(len(row), HALF)
    paint = np.where(np.asarray(trace.lane) == 0, PAINT_OF_CODE[kind], OTHER_PAINT)
    copies = trace.rows_of(
        COPY
    )  # both ways at once: outputs in the upper half of their row, gradients in the lower
    is_output = PAINT_OF_CODE[kind[copies]] == FORWARD_PAINT
    bottom[copies[is_output]] = top[copies[~is_output]] = 0.0
    number, later = (
        np.asarray(trace.microbatch),
        _is_later(trace, trace.stage) & (np.asarray(trace.lane) == 0),
    )
    overlapped = np.flatnonzero(kind == OVERLAP_CODE)
    if not len(overlapped):
        return row, start, end, top, bottom, paint, number, later, np.arange(len(row)), kind, trace.stage
    # An overlapped cell becomes one box per member, stacked within the row.
    table = trace.schedule.table
    member = np.flatnonzero(np.isin(table.cell, overlapped))
    cell = table.cell[member]
    size = np.bincount(cell)[cell]
    place = np.arange(len(member)) - np.searchsorted(cell, cell)
    upper = -HALF + 2 * HALF * place / size
    shown = np.delete(np.arange(len(row)), overlapped)
    return (
        np.concatenate([row[shown], row[cell]]),
        np.concatenate([start[shown], start[cell]]),
        np.concatenate([end[shown], end[cell]]),
        np.concatenate([top[shown], upper]),
        np.concatenate([bottom[shown], upper + 2 * HALF / size]),
        np.concatenate([paint[shown], PAINT_OF_CODE[table.kind[member]]]),
        np.concatenate([number[shown], table.microbatch[member]]),
        np.concatenate([later[shown], _is_later(trace, table.stage[member])]),
        np.concatenate([shown, cell]),
        np.concatenate([kind[shown], table.kind[member]]),
        np.concatenate([np.asarray(trace.stage)[shown], table.stage[member]]),
    )


def _is_later(trace: Trace, stage: NDArray[np.integer]) -> NDArray[np.bool_]:
    ranks = np.array(trace.schedule.placement.ranks)
    _, first = np.unique(ranks, return_index=True)
    is_later = np.ones(len(ranks), dtype=bool)
    is_later[first] = False
    return is_later[stage]
