"""Traces of other tools as a `Trace`: what a cluster run looked like, and how large its bubble was.

The file may come from a stranger. It is read by `skim`, which keeps only complete events whose name is an action.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelab.core.actions import as_index
from pipelab.core.interchange import columns, json_files
from pipelab.core.interchange.annotations import Annotations, read_annotations
from pipelab.core.interchange.steps import Step, steps_of
from pipelab.core.placement import Placement
from pipelab.core.quantities import as_seconds, counted
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

__all__ = ["MAX_BYTES", "read_trace"]

MAX_BYTES = 10**9

Path_ = str | os.PathLike[str]


def read_trace(
    paths: Path_ | Iterable[Path_],
    *,
    step: int = -1,
    placement: Placement | None = None,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Trace:
    """Read a trace that `save_chrome`, torch.profiler or another tool wrote, `.json` or `.json.gz`.

    A file of pipelab gives back the trace that was saved. Of all others these events count: complete ones (phase X)
    whose name is an action, such as `2F0` or, as torch's runtime writes it, `PP:2F0`. Their clock is "wall". To record
    a run of torch.distributed.pipelining, on every rank:

        with torch.profiler.profile() as profiler:
            schedule.step(inputs, target=target)
        profiler.export_chrome_trace(f"rank{rank}.json")

    and then `pp.read_trace(["rank0.json", "rank1.json"]).report()`. torch waits for what an action needs inside of the
    action's event; from its begin until what it needs has ended on the other rank, the rank is idle here.

    Args:
        paths: one file, or the files of all ranks. One file may hold several ranks: as its processes, or as the threads
            of its one process. Ranks that have no number are numbered by their first stage.
        step: which step, where several were recorded: from 0, or from the end: -1 is the last.
        placement: where the stages are; None reads it from the events, as one chain.
        name: what plots and tables call it; None is "imported", or for a file of pipelab the name in the file.
        max_bytes: the longest file, counted after decompression.

    Example:
        >>> import json, tempfile, os
        >>> events = [("0F0", 0, 0, 10), ("1F0", 1, 10, 10), ("1B0", 1, 20, 20), ("0B0", 0, 40, 20)]
        >>> file = [{"name": n, "ph": "X", "pid": rank, "ts": at, "dur": t} for n, rank, at, t in events]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.json")
        ...     with open(path, "w") as out:
        ...         json.dump({"traceEvents": file}, out)
        ...     read_trace(path)
        <Trace imported: makespan 60 us (wall clock), bubble fraction 50.0 %, 4 rows>

    Raises:
        PipelabError: no trace, no actions in it, a part of a step, an action or a rank that is missing.
        OSError: a file cannot be read.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise PipelabError("paths is empty. Give the file of each rank.")
    found: list[Annotations] = []
    for path in files:
        read = read_annotations(path, max_bytes)
        if isinstance(read, bytes):
            return _own(read, Path(path).name, len(files), step, name)
        found.append(read)
    ranks = _ranks_of_files(found) if len(found) > 1 else _ranks_of_tracks(found[0])
    chosen, notes = _choose(ranks, as_index("step", step))
    schedule = _schedule(chosen, found, placement, name or "imported")
    start, end = (np.concatenate([one[k] for one in chosen]) for k in (1, 2))
    start, end = (start - start.min()) * 1e-6, (end - start.min()) * 1e-6
    notes += _device_notes(found)
    start, more = _without_waiting(schedule, start, end)
    return Trace.from_times(schedule, start, end, clock="wall", notes=notes + more, label=schedule.name)


def _own(raw: bytes, file: str, num_files: int, step: int, name: str | None) -> Trace:
    if num_files > 1 or step not in (0, -1):
        raise PipelabError(
            f"{file} is a trace of pipelab: one step of all ranks. Give it alone, without step."
        )
    value = json_files.from_data(columns.parse(raw, what=file), file)
    if not isinstance(value, Trace):
        raise PipelabError(f"{file} holds a {type(value).__name__}, not a trace. Use load().")
    return value.with_label(name) if name else value


def _ranks_of_files(files: Sequence[Annotations]) -> list[Annotations]:
    """One rank a file: in the order of the ranks that the files name, else in the order in which they were given.

    In a job of several pipelines the ranks of one of them are not 0, 1, ...: only their order counts.
    """
    said = [file.rank for file in files if file.rank is not None]
    if len(said) == len(files):
        twice = next((rank for rank in said if said.count(rank) > 1), None)
        if twice is not None:
            raise PipelabError(f"Several of the files are of rank {twice}. Give one of each rank.")
        files = sorted(files, key=lambda file: file.rank or 0)
    base = min(file.base for file in files)
    ranks = []
    for whole in files:
        file = whole.on(range(len(whole.tracks)))
        later = (file.base - base) / 1000
        ranks.append(replace(file, start=file.start + later, end=file.end + later))
    return ranks


def _ranks_of_tracks(file: Annotations) -> list[Annotations]:
    """Processes are ranks; in a file of one process its threads are."""
    used = np.unique(file.track).tolist()
    processes = list(dict.fromkeys(file.tracks[k][0] for k in used))
    by = 0 if len(processes) > 1 or file.is_device else 1
    groups: dict[int | str, list[int]] = {}
    for k in used:
        groups.setdefault(file.tracks[k][by], []).append(k)
    if set(groups) == set(range(len(groups))):
        return [file.on(groups[rank]) for rank in range(len(groups))]
    return sorted((file.on(tracks) for tracks in groups.values()), key=_first_stage)


def _first_stage(rank: Annotations) -> int:
    """The lowest first number of its actions' names."""
    numbers = (re.search("[0-9]+", rank.names[k]) for k in np.unique(rank.action))
    return min(int(number[0]) for number in numbers if number)


def _choose(ranks: Sequence[Annotations], step: int) -> tuple[list[Step], list[str]]:
    """The chosen step of every rank."""
    names = [f"{rank.file}, rank {number}" for number, rank in enumerate(ranks)]
    steps = [steps_of(rank, name) for rank, name in zip(ranks, names, strict=True)]
    counts = [len(one) for one in steps]
    if min(counts) != max(counts):
        raise PipelabError(
            f"{names[counts.index(max(counts))]} has {max(counts)} steps, but {names[counts.index(min(counts))]} has "
            f"{min(counts)}. Record the same steps on all ranks."
        )
    if not -counts[0] <= step < counts[0]:
        raise PipelabError(
            f"step is {step}; there {'is' if counts[0] == 1 else 'are'} {counted(counts[0], 'step')}."
        )
    number = step % counts[0]
    notes = [f"step {number + 1} of {counts[0]} that were recorded"] if counts[0] > 1 else []
    return [one[number] for one in steps], notes


def _schedule(
    chosen: Sequence[Step], files: Sequence[Annotations], placement: Placement | None, name: str
) -> Schedule:
    table = "\n".join(",".join(cells) for cells, _, _ in chosen)
    try:
        schedule = Schedule.from_csv(table, placement, name=name)
    except PipelabError as error:
        raise PipelabError(
            "The actions that were recorded form no schedule. Record whole steps of all ranks of one pipeline.\n"
            f"{error}"
        ) from None
    last = max(file.sender for file in files)
    if last >= schedule.num_stages - 1:
        raise PipelabError(
            f"Stage {last} sends to stage {last + 1}, which nothing that was recorded belongs to. Give the files of "
            "all ranks of the pipeline, as a list."
        )
    return schedule


def _device_notes(files: Sequence[Annotations]) -> list[str]:
    partly = [file.file for file in files if file.has_device and not file.is_device]
    if not partly:
        return []
    return [
        f"{partly[0]} does not say of every action when it ran on the device; the times are those of the host, which "
        "launched the work"
    ]


def _without_waiting(schedule: Schedule, start: FloatArray, end: FloatArray) -> tuple[FloatArray, list[str]]:
    """Count an action from when all that it needs had ended on the other ranks."""
    needs = schedule.predecessors
    given = end[needs.needed]
    is_late = given > end[needs.cell]
    ready = np.full(len(start), -np.inf)
    np.maximum.at(ready, needs.cell[~is_late], given[~is_late])
    begin = np.maximum(start, ready)
    notes = []
    waited = float((begin - start).sum())
    if waited > 0:
        number = int(np.count_nonzero(begin > start))
        notes.append(
            f"{counted(number, 'action')} waited for input inside of the recorded event, {as_seconds(waited)} in all, "
            "which counts as idle here"
        )
    if is_late.any():
        notes.append(
            f"{counted(int(is_late.sum()), 'action')} ended before what they need had ended: the clocks of the ranks "
            "differ, or the times are those of launching"
        )
    return begin, notes
