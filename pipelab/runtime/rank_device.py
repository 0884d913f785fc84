"""A device as ranks use it: makes it current in a thread, orders the work of several ranks, and stamps the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelab.runtime.cores import Cores, keep, kept


class HostTimed:
    """A device whose work is done when a stamp is taken, so that the host's clock times it: the CPU, a Mac's GPU.

    Args:
        device: the device.
        cores: that threads keep to while they work for this rank; None for any.
    """

    def __init__(self, device: torch.device, cores: Cores | None = None) -> None:
        self.device = device
        self._cores = cores

    def begin_step(self) -> None:
        """Called once before a step."""
        self.finish()

    def activate(self, microbatch: int = 0) -> None:
        """Makes the device current in the calling thread, for what this rank does with a micro-batch."""
        self.place(0)

    def place(self, thread: int) -> None:
        """Lets a thread that will work for this rank run on its cores; 0 is the calling one."""
        keep(thread, self._cores)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Makes the device current in the calling thread for a while."""
        return kept(self._cores)

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
    """A rank on an NVIDIA GPU. Nothing inside a step waits for the GPU: its own events tell the time.

    A rank alone on its GPU has one stream. Ranks that share a GPU have as many streams in common, and micro-batch i
    runs on stream i modulo their number, on whichever rank:

        stream 0   0F0 . 1F0 . 1B0 . 0B0      a rank's actions follow each other by events,
        stream 1       0F1 . 1F1 . 1B1 . 0B1  so that the two ranks compute at the same time

    Per micro-batch and not per rank, since much passes from stage to stage that nobody sees (masks, positions): on one
    stream its memory is not handed out again before the last to read it is done.

    The events of two GPUs cannot be subtracted, so each rank records an anchor beside the host's time when a step
    begins, and reads its events against it when the step is over.

    Args:
        device: the GPU.
        streams: that micro-batches take turns on.
        cores: that threads keep to while they work for this rank; None for any.
    """

    def __init__(
        self, device: torch.device, streams: list[torch.cuda.Stream], cores: Cores | None = None
    ) -> None:
        self.device = device
        self._cores = cores
        self._streams = streams
        self._last: torch.cuda.Event | None = None  # where this rank's last action ended
        self._anchor: Any = None
        self._anchor_time = 0.0

    def begin_step(self) -> None:
        torch.cuda.synchronize(self.device)  # what the caller did to the weights is done
        self._last = None
        self._anchor = torch.cuda.Event(enable_timing=True)
        self._anchor.record(self._streams[0])
        self._anchor_time = time.perf_counter()

    def activate(self, microbatch: int = 0) -> None:
        self.place(0)
        torch.cuda.set_device(self.device)
        stream = self._streams[microbatch % len(self._streams)]
        torch.cuda.set_stream(stream)
        if self._last is not None and len(self._streams) > 1:
            stream.wait_event(self._last)

    def place(self, thread: int) -> None:
        keep(thread, self._cores)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[0])

    def wait(self, marks: list[Any]) -> None:
        stream = torch.cuda.current_stream(self.device)
        for mark in marks:
            if isinstance(mark, torch.cuda.Event):
                stream.wait_event(mark)

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._last = event
        return event

    def seconds(self, mark: Any) -> float:
        return self._anchor_time + float(self._anchor.elapsed_time(mark)) / 1000

    def finish(self) -> None:
        for stream in self._streams:
            stream.synchronize()


RankDevice = HostTimed | EventTimed


def rank_devices(
    names: Sequence[str], *, one_stream: bool = False, cores: Sequence[Cores | None] = ()
) -> list[RankDevice]:
    """The device of each rank.

    Args:
        names: one a rank; ranks may share a device.
        one_stream: whether the ranks of a GPU share one stream, so that nothing there runs at the same time.
        cores: that the threads of each rank keep to (`devices.cores_of_ranks`); left out, any.
    """
    streams: dict[str, list[torch.cuda.Stream]] = {}
    devices: list[RankDevice] = []
    for rank, name in enumerate(names):
        device, own = torch.device(name), cores[rank] if cores else None
        if device.type != "cuda":
            devices.append(HostTimed(device, own))
            continue
        if name not in streams:
            count = 1 if one_stream else list(names).count(name)
            streams[name] = [torch.cuda.Stream(device) for _ in range(count)]
        devices.append(EventTimed(device, streams[name], own))
    return devices


class CopyStreams:
    """Streams for copies off a GPU, one for each sender and receiver, beside those that compute."""

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, torch.device], torch.cuda.Stream] = {}

    @contextlib.contextmanager
    def copying(self, value: Tensor, receiver: torch.device) -> Iterator[None]:
        """Around a copy of `value` to another device: the sender's own streams compute on meanwhile.

        The copy waits for the receiver's stream of this thread, which has waited for the action that made the value (a
        CPU's thread has waited itself); and the value's memory stays taken until the copy is done.
        """
        if value.device.type != "cuda" or value.device == receiver:
            yield
            return
        key = (value.device, receiver)
        if key not in self._streams:
            self._streams[key] = torch.cuda.Stream(value.device)
        stream = self._streams[key]
        if receiver.type == "cuda":
            stream.wait_stream(torch.cuda.current_stream(receiver))
        value.record_stream(stream)
        with torch.cuda.stream(stream):
            yield
