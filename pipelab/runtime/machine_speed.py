"""How fast a device is at the moment: the time of a fixed piece of work."""

from __future__ import annotations

import statistics
import time

import torch

from pipelab.runtime.rank_device import rank_devices

_SIDE = {"cpu": 256}
_SIDE_ELSEWHERE = 2048
_REPEATS = 15


def reference_seconds(device: str = "cpu") -> float:
    """Seconds of a product of two matrices on one device, on the CPU in one thread: the median of 15, after one more.

    Machines change their speed, since others use them too or since they get warm. Two such times say by how much a
    prediction made at the first can be off at the second.

    Args:
        device: such as "cpu" or "cuda:0".

    Example:
        >>> reference_seconds() > 0
        True
    """
    (rank,) = rank_devices([device])
    side = _SIDE.get(rank.device.type, _SIDE_ELSEWHERE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with rank.active(), torch.no_grad():
            matrix = torch.full((side, side), 1 / side, device=rank.device)
            times = []
            for _ in range(_REPEATS + 1):
                rank.finish()
                begin = time.perf_counter()
                matrix @ matrix
                rank.finish()
                times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:])
