"""A trace for ui.perfetto.dev and chrome://tracing, in the Trace Event Format.

A process is a rank, a thread is a lane; arrows lead from what an action gives to what waits for it on another rank; a
counter shows what each rank holds. Times are microseconds. The first key, `pipelab`, holds the trace itself in
seconds, so that `read_trace` gives back exactly what was saved; viewers take it for metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelab.core import strict_json
from pipelab.core.actions import KINDS
from pipelab.core.interchange import json_files
from pipelab.core.recurrence import FloatArray
from pipelab.core.trace import Trace

__all__ = ["save"]

_ARROW_INSET = 0.01
"""Arrows begin and end so far within their actions, as a part of these: at the very edge, viewers might choose the
neighbour."""


def save(trace: Trace, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a trace for Perfetto and Chrome, atomically.

    Args:
        trace: simulated or measured.
        path: where to, usually `.json`.
        overwrite: replace a file that is there.

    Raises:
        PipelabError: the file exists and `overwrite` is False, or the trace is too long to be read back.
    """
    data = {"pipelab": "trace", "version": 1} | trace.to_dict()
    whole = json_files.trace_text(data, Path(path).name).strip()
    strict_json.write_text(path, _pieces(trace, whole), overwrite=overwrite)


def _pieces(trace: Trace, whole: str) -> Iterator[str]:
    yield '{"pipelab": ' + _escaped(whole) + ',\n"displayTimeUnit": "ms",\n"traceEvents": [\n'
    before = ""
    for events in (_names(trace), _slices(trace), _arrows(trace), _counters(trace)):
        for event in events:
            yield before + _escaped(json.dumps(event, separators=(",", ":")))
            before = ",\n"
    yield "\n]}\n"


def _escaped(text: str) -> str:
    """Names are data, also where a viewer puts the file into a page; a `<` can only stand in a name."""
    return text.replace("<", "\\u003c")


def _microseconds(seconds: FloatArray) -> FloatArray:
    """To the nanosecond, so that an action never overlaps the one after it."""
    return np.rint(seconds * 1e9) / 1e3


def _names(trace: Trace) -> Iterator[dict[str, Any]]:
    def meta(about: str, pid: int, tid: int, **args: object) -> dict[str, Any]:
        return {"ph": "M", "name": about, "pid": pid, "tid": tid, "args": args}

    pairs = np.unique(np.stack([trace.rank, trace.lane]), axis=1).T.tolist()
    for rank in range(trace.num_ranks):
        device = f" ({trace.devices[rank]})" if trace.devices else ""
        yield meta("process_name", rank, 0, name=f"rank {rank}{device}")
        yield meta("process_sort_index", rank, 0, sort_index=rank)
    for rank, lane in pairs:
        yield meta("thread_name", rank, lane, name=trace.lanes[lane])
        yield meta("thread_sort_index", rank, lane, sort_index=lane)


def _texts(trace: Trace) -> list[str]:
    """The name of each row: a cell's own; of another lane's rows with the lane before it."""
    cells = trace.schedule.table.num_cells
    texts = trace.schedule.table.texts()
    columns = (getattr(trace, name)[cells:].tolist() for name in ("lane", "stage", "kind", "microbatch"))
    for lane, stage, kind, microbatch in zip(*columns, strict=True):
        texts.append(f"{trace.lanes[lane]} {stage}{KINDS[kind].value}{microbatch}")
    return texts


def _slices(trace: Trace) -> Iterator[dict[str, Any]]:
    start, end = _microseconds(trace.start), _microseconds(trace.end)
    columns = (trace.rank, trace.lane, trace.kind, trace.stage, trace.microbatch, start, end - start)
    rows = zip(_texts(trace), *(column.tolist() for column in columns), strict=True)
    for name, rank, lane, kind, stage, microbatch, at, duration in rows:
        yield {
            "name": name,
            "cat": KINDS[kind].value,
            "ph": "X",
            "pid": rank,
            "tid": lane,
            "ts": round(at, 3),
            "dur": round(duration, 3),
            "args": {"stage": stage, "micro-batch": microbatch},
        }


def _arrows(trace: Trace) -> Iterator[dict[str, Any]]:
    """From each action to those of other ranks that wait for it: F(s) to F(s+1), B(s+1) to B(s)."""
    needs = trace.schedule.predecessors
    inset = _ARROW_INSET * trace.durations
    leave = _microseconds((trace.end - inset)[needs.needed]).tolist()
    arrive = _microseconds((trace.start + inset)[needs.cell]).tolist()
    source, target = trace.rank[needs.needed].tolist(), trace.rank[needs.cell].tolist()
    rows = zip(source, leave, target, arrive, needs.hop.tolist(), strict=True)
    for number, (sender, begin, receiver, stop, hop) in enumerate(rows):
        about = {"name": "backward" if hop % 2 else "forward", "cat": "flow", "id": number, "tid": 0}
        yield {**about, "ph": "s", "pid": sender, "ts": round(begin, 3)}
        yield {**about, "ph": "f", "bp": "e", "pid": receiver, "ts": round(stop, 3)}


def _counters(trace: Trace) -> Iterator[dict[str, Any]]:
    for curve in trace.memory():
        times, values = _microseconds(curve.time).tolist(), curve.value.tolist()
        for at, value in zip(times, values, strict=True):
            yield {
                "name": "memory",
                "ph": "C",
                "pid": curve.rank,
                "ts": round(at, 3),
                "args": {curve.unit: value},
            }
