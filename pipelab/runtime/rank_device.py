"""A device as ranks use it: makes it current in a thread, orders the work of several ranks, and stamps the time."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch


class HostTimed:
    """A device whose work is done when a stamp is taken, so that the host's clock times it: the CPU, a Mac's GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin_step(self) -> None:
        """Called once before a step."""
        self.finish()

    def activate(self) -> None:
        """Makes the device current in the calling thread."""

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Makes the device current in the calling thread for a while."""
        return contextlib.nullcontext()

    def wait(self, marks: list[Any]) -> None:
        """What comes next on this device waits for other ranks' marks."""
        for mark in marks:
            if isinstance(mark, torch.cuda.Event):
                mark.synchronize()

    def mark(self) -> Any:
        """The end of what this device was given so far: others wait for it, and it is a time stamp."""
        self.finish()
        return time.perf_counter()

    def seconds(self, mark: Any) -> float:
        """When a mark was reached, on the host's clock; only after the step."""
        return float(mark)

    def finish(self) -> None:
        """Returns when the device has done all it was given."""
        if self.device.type == "mps":
            torch.mps.synchronize()


class EventTimed:
    """An NVIDIA GPU with a stream of its own. Nothing inside a step waits for it: its own events tell the time.

    The events of two GPUs cannot be subtracted, so each device records an anchor beside the host's time when a step
    begins, and reads its events against it when the step is over.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._anchor: Any = None
        self._anchor_time = 0.0

    def begin_step(self) -> None:
        torch.cuda.synchronize(self.device)  # what the caller did to the weights is done
        self._anchor = torch.cuda.Event(enable_timing=True)
        self._anchor.record(self.stream)
        self._anchor_time = time.perf_counter()

    def activate(self) -> None:
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self.stream)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def wait(self, marks: list[Any]) -> None:
        for mark in marks:
            if isinstance(mark, torch.cuda.Event):
                self.stream.wait_event(mark)

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def seconds(self, mark: Any) -> float:
        return self._anchor_time + float(self._anchor.elapsed_time(mark)) / 1000

    def finish(self) -> None:
        self.stream.synchronize()


RankDevice = HostTimed | EventTimed


def rank_devices(names: list[str]) -> list[RankDevice]:
    """The device of each rank.

    Ranks on one GPU share its stream: values without gradients (masks, ids) pass from stage to stage uncopied, and with
    two streams the allocator could hand their memory to one stream while the other still reads it.
    """
    made: dict[str, RankDevice] = {}
    for name in names:
        if name not in made:
            device = torch.device(name)
            made[name] = EventTimed(device) if device.type == "cuda" else HostTimed(device)
    return [made[name] for name in names]
