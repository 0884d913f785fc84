"""A trace as the front end takes it: one buffer of columns, and what has to be said about them.

The columns are those of `plots.scene`, so that the live timeline shows what matplotlib draws. Everything is packed
without a loop over actions: a slider's tick waits for it.

    buffer   | start | end | top | bottom | row | of | number | stage | kind | lane | paint | later | ...
    meta       {"columns": {"start": ["f8", byte offset, length], ...}, "rows": ["rank 0", ...], ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelab.core.actions import KINDS
from pipelab.core.critical_path import name_of
from pipelab.core.feed import LOAD, PREPARE
from pipelab.core.memory import MemoryCurve
from pipelab.core.quantities import as_bytes, as_seconds
from pipelab.core.trace import COPY, Trace
from pipelab.plots.headline import describe_timeline, headline
from pipelab.plots.memory import describe_memory
from pipelab.plots.palette import INK, INKS, LEGEND, MEMORY, PAINTS, PATH
from pipelab.plots.scene import HALF, Scene, rows_of, scene

Columns = dict[str, NDArray[Any]]

_COLOURS = {"paints": [*PAINTS], "inks": [*INKS], "memory": MEMORY, "path": PATH, "edge": INK}


@dataclass(frozen=True)
class Overrun:
    """Where a rank begins to hold more than the limit.

    Attributes:
        rank: whose memory.
        time: seconds.
        row: of the trace: what starts then, or -1 where nothing does (weights alone are too much).
        words: all of it in a sentence.
    """

    rank: int
    time: float
    row: int
    words: str


def pack(
    trace: Trace,
    *,
    predicted: Trace | None = None,
    memory: bool = False,
    memory_limit: float | None = None,
    remark: str = "",
) -> tuple[bytes, dict[str, Any]]:
    """Lay out a trace for the front end.

    Args:
        trace: of any clock.
        predicted: of the same schedule, drawn as outlines.
        memory: also what each rank holds over time.
        memory_limit: bytes; which rank first holds more is marked.
        remark: a sentence for below the headline.

    Returns:
        The columns, and what has to be known about them: all of it plain values.
    """
    shown = scene([trace])
    columns = _in_order(shown, trace)
    curves = trace.memory() if memory or memory_limit is not None else ()
    over = overruns(trace, curves, memory_limit)
    meta: dict[str, Any] = {
        "count": len(shown.row),
        "rows": [plain(label) for label in shown.row_labels],
        "kinds": [kind.value for kind in KINDS],
        "lanes": [_form(lane) for lane in trace.lanes],
        "half": HALF,
        "colours": _COLOURS,
        "legend": legend_of(shown),
        "underlined": bool(shown.later.any()),
        "makespan": trace.makespan,
        "stop": max(shown.stop, 0.0 if predicted is None else predicted.makespan),
        "title": plain(headline(trace, trace.report(), remark, predicted)).split("\n"),
        "text": describe(trace, curves=memory, over=over, predicted=predicted),
        "over": [[one.rank, one.time, one.row] for one in over],
        "overrun": over[0].words if over else "",
        "predicted": predicted is not None,
    }
    meta["row_rank"], meta["own"] = _ranks(trace)
    if predicted is not None:
        columns |= _outlines(predicted, meta["row_rank"], meta["own"])
    if memory:
        columns |= _steps(curves)
        meta["memory"] = _memory(trace, curves, memory_limit)
    buffer, meta["columns"] = _joined(columns)
    return buffer, meta


def describe(
    trace: Trace, *, curves: bool, over: Sequence[Overrun] = (), predicted: Trace | None = None
) -> str:
    """A timeline in words, with its memory and its prediction where they are shown."""
    words = [describe_timeline(trace)]
    if predicted is not None:
        words.append(f"Outlines: predicted, makespan {as_seconds(predicted.makespan)}.")
    if curves:
        words.append(describe_memory(trace))
    return " ".join([*words, *(f"{one.words}." for one in over[:1])])


def overruns(trace: Trace, curves: Sequence[MemoryCurve], limit: float | None) -> list[Overrun]:
    """For each rank that holds more than the limit the first moment when it does; the earliest first."""
    found: list[Overrun] = []
    if limit is None:
        return found
    for curve in curves:
        over = np.flatnonzero(curve.value > limit)
        if not len(over):
            continue
        time = float(curve.time[over[0]])
        starting = np.flatnonzero((trace.rank == curve.rank) & (trace.start == time) & (trace.lane == 0))
        row = int(starting[0]) if len(starting) and over[0] > 0 else -1
        what = (
            f"with {name_of(trace, row)} at {as_seconds(time)}" if row >= 0 else f"from {as_seconds(time)} on"
        )
        words = f"rank {curve.rank} holds more than {as_bytes(limit)} {what}"
        found.append(Overrun(curve.rank, time, row, words[0].upper() + words[1:]))
    return sorted(found, key=lambda one: (one.time, one.rank))


def legend_of(shown: Scene) -> list[list[str]]:
    """What the colours that occur mean."""
    return [[*LEGEND[paint]] for paint in np.unique(shown.paint).tolist()]


def plain(text: str) -> str:
    """What was made safe for matplotlib as it was: other pictures know no mathematics."""
    return text.replace(r"\$", "$")


def _in_order(shown: Scene, trace: Trace) -> Columns:
    """The columns of the boxes by row, and within a row by start, so that the front end can search them."""
    columns: Columns = {
        "start": shown.start,
        "end": shown.end,
        "top": shown.top.astype(np.float32),
        "bottom": shown.bottom.astype(np.float32),
        "row": shown.row.astype(np.int32),
        "of": shown.of.astype(np.int32),
        "number": shown.number.astype(np.int32),
        "stage": shown.stage.astype(np.int32),
        "kind": shown.kind.astype(np.uint8),
        "lane": np.asarray(trace.lane, dtype=np.uint8)[shown.of],
        "paint": shown.paint.astype(np.uint8),
        "later": shown.later.astype(np.uint8),
    }
    step, forwards = np.diff(shown.row), np.diff(shown.start) >= 0
    if ((step > 0) | ((step == 0) & forwards)).all():
        return columns
    order = np.lexsort((shown.start, shown.row))
    return {name: column[order] for name, column in columns.items()}


def _ranks(trace: Trace) -> tuple[list[int], list[int]]:
    """For each row of the picture its rank, and whether it is the rank's own work."""
    row, names = rows_of(trace)
    rank = np.full(len(names), -1)
    rank[row] = trace.rank
    working = trace.working_rows
    idle = np.setdiff1d(np.arange(trace.num_ranks), trace.rank[working])
    empty = np.flatnonzero(rank < 0)  # only a rank that does nothing has a row without a box
    rank[empty] = idle
    own = np.zeros(len(names), dtype=int)
    own[row[working]] = own[empty] = 1
    return rank.tolist(), own.tolist()


def _outlines(predicted: Trace, row_rank: Sequence[int], own: Sequence[int]) -> Columns:
    row_of = {rank: row for row, rank in enumerate(row_rank) if own[row]}
    cells = np.flatnonzero(
        predicted.lane == 0
    )  # in table order: by rank, and in the order in which it runs them
    rows = np.array([row_of[rank] for rank in range(predicted.num_ranks)], dtype=np.int32)
    return {
        "outline_start": predicted.start[cells],
        "outline_end": predicted.end[cells],
        "outline_row": rows[predicted.rank[cells]],
    }


def _steps(curves: Sequence[MemoryCurve]) -> Columns:
    return {
        "memory_time": np.concatenate([curve.time for curve in curves]).astype(np.float64),
        "memory_value": np.concatenate([curve.value for curve in curves]).astype(np.float64),
        "memory_first": np.cumsum([0, *(len(curve.time) for curve in curves)]).astype(np.int32),
    }


def _memory(trace: Trace, curves: Sequence[MemoryCurve], limit: float | None) -> dict[str, Any]:
    in_bytes = curves[0].unit == "bytes"
    peaks = [as_bytes(curve.peak) if in_bytes else f"{curve.peak:g}" for curve in curves]
    most = max(curve.peak for curve in curves)
    what = "weights, gradients, activations" if in_bytes else "micro-batches in flight"
    return {
        "labels": [f"rank {curve.rank}" for curve in curves],
        "peaks": peaks,
        "most": max(most, limit or 0.0) or 1.0,
        "limit": -1.0 if limit is None else float(limit),
        "limit_text": "" if limit is None else f"limit {as_bytes(limit)}",
        "title": f"memory, {trace.clock}: {what}",
        "in_bytes": in_bytes,
    }


def _form(lane: str) -> str:
    """How the front end names what a lane does; the same words as `core.critical_path.name_of`."""
    if lane.startswith(LOAD):
        return "the loading of micro-batch {number}"
    if lane.startswith(PREPARE):
        return "the preparation of micro-batch {number}"
    return "the transfer of {action}" if lane == COPY else "{action}"


def _joined(columns: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, list[Any]]]:
    """The columns one after the other, the widest numbers first so that each begins where its type may begin."""
    parts, places, offset = [], {}, 0
    for name, column in sorted(columns.items(), key=lambda item: -item[1].itemsize):
        little = np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))
        places[name] = [f"{little.dtype.kind}{little.itemsize}", offset, len(little)]
        parts.append(little.tobytes())
        offset += little.nbytes
    return b"".join(parts), places
