"""One rank's device: makes it current in a thread, orders work of several ranks, and stamps the time."""

from __future__ import annotations

import time
from typing import Any

import torch


class CpuRank:
    """A rank on the CPU: everything has happened when the call returns, so a stamp is the host's time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin_step(self) -> None:
        """Called once before a step."""

    def activate(self) -> None:
        """Makes the device current in the calling thread."""

    def wait(self, marks: list[Any]) -> None:
        """What comes next on this rank waits for other ranks' marks."""

    def mark(self) -> Any:
        """The end of what this rank has done so far, for others to wait for. Doubles as the end's time stamp."""
        return time.perf_counter()

    def seconds(self, mark: Any) -> float:
        """When a mark was reached, on the host's clock; only after the step."""
        return float(mark)

    def finish(self) -> None:
        """Returns when the rank has done all it was given."""


class CudaRank:
    """A rank on a GPU, with a stream of its own. Nothing inside a step waits for the GPU.

    The events of two GPUs cannot be subtracted, so each rank records an anchor beside the host's time when a step
    begins, and reads its events against it when the step is over.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._anchor: Any = None
        self._anchor_time = 0.0

    def begin_step(self) -> None:
        torch.cuda.synchronize(self.device)  # the caller's own work on the weights is done
        self._anchor = torch.cuda.Event(enable_timing=True)
        self._anchor.record(self.stream)
        self._anchor_time = time.perf_counter()

    def activate(self) -> None:
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self.stream)

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


RankDevice = CpuRank | CudaRank


def rank_device(device: torch.device) -> RankDevice:
    """The rank's side of `device`. A Mac's GPU (mps) has no streams to offer: it is timed by the host."""
    return CudaRank(device) if device.type == "cuda" else CpuRank(device)
