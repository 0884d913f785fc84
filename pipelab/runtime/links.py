"""Measures the links between devices: how long a copy takes, as latency and bandwidth for each pair of ranks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelab.core.links import Links
from pipelab.errors import MANY, PipelabError, from_one_to
from pipelab.runtime.devices import resolve
from pipelab.runtime.rank_device import HostTimed

SMALL, LARGE = 2**12, 2**24
"""Bytes: a copy that is all latency, and one that is all bandwidth."""


def measure_links(devices: Sequence[str], *, repeats: int = 9) -> Links:
    """Copies between each two devices, a small value and a large one, and gives what a transfer takes.

    The link of two ranks is latency + bytes / bandwidth, a line through the medians of both sizes; each direction has
    its own. GPUs are timed with their own events, all else by the host's clock. Ranks that share a GPU have a free
    link: values pass between them without a copy. Two ranks on the CPU have the link of a copy in memory, as between
    processes; pipelab's own threads hand over without one.

    Args:
        devices: of the ranks, one each, as for `Pipeline`.
        repeats: timed copies of each size, after one to warm up.

    Returns:
        Links with a table for latency and bandwidth, to be handed on as `links=`. Its notes name GPUs without peer
        access to each other, whose copies go through the host.

    Raises:
        PipelabError: no list of devices, a device that does not exist, or no repeat.

    Example:
        >>> import pipelab as pp
        >>> links = pp.measure_links(["cpu", "cpu"])
        >>> links.num_ranks, links.seconds(0, 1, 2**20) > 0
        (2, True)
    """
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise PipelabError(
            f"devices is {devices!r}; it must be a list with one device a rank, such as ['cuda:0', 'cuda:1']."
        )
    from_one_to(MANY, repeats=repeats)
    names = resolve(devices, len(devices))
    assert isinstance(names, tuple)  # of a list, names come back
    ranks = range(len(names))
    pairs = {(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if i != j}
    found = {pair: _link(*pair, repeats) for pair in sorted(pairs)}
    table = [[found[names[a], names[b]] if a != b else (0.0, math.inf) for b in ranks] for a in ranks]
    return Links(
        latency=tuple(tuple(latency for latency, _ in row) for row in table),
        bandwidth=tuple(tuple(bandwidth for _, bandwidth in row) for row in table),
        notes=_without_peer_access(names),
    )


def _link(source: str, target: str, repeats: int) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes a second from one device to another."""
    if source == target and torch.device(source).type != "cpu":
        return 0.0, math.inf
    small, large = (_copy_seconds(source, target, size, repeats) for size in (SMALL, LARGE))
    return line_through(small, large)


def line_through(small: float, large: float) -> tuple[float, float]:
    """Latency and bandwidth from the seconds of a small copy and of a large one, neither of them negative.

    Args:
        small: seconds for `SMALL` bytes.
        large: seconds for `LARGE` bytes.

    Example:
        >>> latency, bandwidth = line_through(1e-5 + SMALL / 1e9, 1e-5 + LARGE / 1e9)
        >>> f"{latency:.6f} s, {bandwidth:.3g} bytes/s"
        '0.000010 s, 1e+09 bytes/s'
    """
    if large <= small:  # a clock too coarse, or a machine too busy, to tell the two apart
        return min(small, large), LARGE / max(large, 1e-9)
    per_byte = (large - small) / (LARGE - SMALL)
    return max(0.0, small - SMALL * per_byte), 1 / per_byte


def _copy_seconds(source: str, target: str, size: int, repeats: int) -> float:
    value = torch.ones(size, dtype=torch.uint8, device=source)
    place = torch.empty(size, dtype=torch.uint8, device=target)
    gpus = [name for name in (source, target) if torch.device(name).type == "cuda"]
    once = _seconds_by_events if gpus else _seconds_by_host
    on = torch.device(gpus[0] if gpus else source)
    times = [once(value, place, on) for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def _seconds_by_host(value: Tensor, place: Tensor, _: torch.device) -> float:
    ends = [HostTimed(value.device), HostTimed(place.device)]
    for end in ends:
        end.finish()
    begin = time.perf_counter()
    place.copy_(value)
    for end in ends:
        end.finish()
    return time.perf_counter() - begin


def _seconds_by_events(value: Tensor, place: Tensor, gpu: torch.device) -> float:
    """A copy between GPUs runs on a stream of the sender's, one to or from the host on the GPU's."""
    for device in {value.device, place.device}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    stream = torch.cuda.current_stream(gpu)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    place.copy_(value)
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _without_peer_access(names: Sequence[str]) -> tuple[str, ...]:
    gpus = [device for device in map(torch.device, dict.fromkeys(names)) if device.type == "cuda"]
    apart = [
        f"{a} and {b}"
        for k, a in enumerate(gpus)
        for b in gpus[k + 1 :]
        if not torch.cuda.can_device_access_peer(a.index, b.index)
    ]
    return (f"no peer access, so copies go through the host: {', '.join(apart)}",) if apart else ()
