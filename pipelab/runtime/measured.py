"""The trace of a step: measured times with what must be known to judge them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelab.core.costs import Links, StageBytes
from pipelab.core.plan import VirtualDevices
from pipelab.core.schedule import Schedule
from pipelab.core.trace import Trace
from pipelab.runtime.devices import Devices, clock_notes
from pipelab.runtime.virtual_clock import placed

Times = tuple[NDArray[np.float64], NDArray[np.float64]]
"""When each cell of a schedule started and ended: two arrays of shape (cells,), seconds, in table order."""


def measured_trace(
    schedule: Schedule,
    times: Times,
    *,
    devices: Devices,
    links: Links | None,
    bytes: StageBytes | None,
    leaks: int = 0,
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
    """
    start, end = times
    virtual = isinstance(devices, VirtualDevices)
    names = (devices.device,) * devices.count if isinstance(devices, VirtualDevices) else devices
    if virtual:
        start, end = placed(schedule, end - start, links, bytes)
    notes = list(clock_notes(devices))
    shortest = float(np.median(end - start)) if len(start) else 0.0
    if not virtual and names[0] == "cpu" and shortest < 1e-3:
        notes.append(
            f"actions last {shortest * 1e3:.2g} ms in the median: below 1 ms handing over between threads costs as "
            f"much as the work; the virtual clock (devices=pp.virtual({len(names)})) times them alone"
        )
    if leaks:
        notes.append(f"{leaks} values crossed a border unseen and were repaired; the next step learns")
    clock = "virtual" if virtual else "wall"
    return Trace.from_times(schedule, start, end, clock=clock, bytes=bytes, devices=names, notes=tuple(notes))
