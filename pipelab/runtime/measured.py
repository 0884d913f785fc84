"""The trace of a step: measured times with what must be known to judge them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipelab.core.costs import Links, StageBytes
from pipelab.core.plan import VirtualDevices
from pipelab.core.quantities import as_seconds
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.runtime.devices import Devices, clock_notes
from pipelab.runtime.engine import Progress
from pipelab.runtime.virtual_clock import placed, steps_needed

Times = tuple[NDArray[np.float64], NDArray[np.float64]]
"""When each cell of a schedule started and ended: two arrays of shape (cells,), seconds, in table order."""

SHORT = 1e-3
"""Seconds. Of an action that is shorter, threads and Python take a share that is seen."""

SLOWED = {
    "learning": "this step also learned how values flow through the model: it is slower than the next, which is the "
    "one to time",
    "memory": "this step counted its memory, which makes it slower: time another one",
}
"""What makes a step slower than others, and what its trace says then."""


def extra_steps(schedule: Schedule, devices: Devices, slowed: Sequence[str]) -> int:
    """How many whole steps run besides, so that the virtual clock has five samples of each kind and stage.

    Args:
        schedule: what runs.
        devices: of the ranks; only virtual ones want more.
        slowed: what made the step itself slower (of `SLOWED`): then its own times are left out where others run.
    """
    if not isinstance(devices, VirtualDevices):
        return 0
    needed = steps_needed(schedule)
    return 0 if needed == 1 else needed if slowed else needed - 1


def part_of(progress: Progress | None, turn: int, turns: int) -> Progress | None:
    """Reports the progress of one of several runs as a part of all of them."""
    if progress is None or turns == 1:
        return progress

    def report(done: int, total: int) -> None:
        progress(turn * total + done, turns * total)

    return report


def measured_trace(
    schedule: Schedule,
    times: Times,
    *,
    devices: Devices,
    links: Links | None,
    bytes: StageBytes | None,
    leaks: int = 0,
    notes_of_stages: Sequence[str] = (),
    extra: Sequence[Times] = (),
    slowed: Sequence[str] = (),
) -> Trace:
    """The trace of a step that ran on `devices`.

    Args:
        schedule: what was run.
        times: when each cell ran, on the host's clock. Times on virtual devices are those of one worker that ran one
            action after the other; they are placed on devices of their own here.
        devices: of the ranks.
        links: between virtual devices.
        bytes: of each stage.
        leaks: values that crossed a border unseen and were repaired.
        notes_of_stages: what the stages say of their actions.
        extra: times of `extra_steps`, for virtual devices.
        slowed: what made the step slower than others, of `SLOWED`.
    """
    start, end = times
    notes = list(clock_notes(devices))
    if isinstance(devices, VirtualDevices):
        clock, names = "virtual", (devices.device,) * devices.count
        steps = [*extra] if extra and slowed else [times, *extra]
        start, end = placed(schedule, np.array([b - a for a, b in steps]), links, bytes)
    else:
        clock, names = "wall", devices
    notes += _too_short(schedule, end - start, devices)
    if not extra:
        notes += [SLOWED[reason] for reason in slowed]
    notes += notes_of_stages
    if leaks:
        notes.append(f"{leaks} values crossed a border unseen and were repaired; the next step learns")
    return Trace.from_times(schedule, start, end, clock=clock, bytes=bytes, devices=names, notes=tuple(notes))


def _too_short(schedule: Schedule, seconds: NDArray[np.float64], devices: Devices) -> list[str]:
    """Whether actions are so short that a large part of their time is not theirs; on each kind of device by itself."""
    if isinstance(devices, VirtualDevices):
        shortest = float(np.median(seconds))
        return [_SHORT_ALONE.format(as_seconds(shortest))] if shortest < SHORT else []
    types = np.array([torch.device(name).type for name in devices], dtype=object)
    notes = []
    for kind in dict.fromkeys(types.tolist()):
        own = types == kind
        median = float(np.median(seconds[own[schedule.table.cell_ranks]]))
        if own.sum() > 1 and median < SHORT:
            where = f" on {kind}" if len(set(types)) > 1 else ""
            notes.append(_SHORT_TOGETHER.format(where, as_seconds(median), len(devices)))
    return notes


_SHORT_ALONE = (
    "actions last {} in the median: below 1 ms what Python does around them is a part of their time"
)
_SHORT_TOGETHER = (
    "actions{} last {} in the median: below 1 ms handing over between threads costs as much as the work; the virtual "
    "clock (devices=pp.virtual({})) times them alone"
)
