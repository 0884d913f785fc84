"""Which devices a pipeline runs on, and how far its clock can be trusted there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelab.core.plan import VirtualDevices
from pipelab.errors import PipelabError
from pipelab.runtime.cores import Cores, usable

Devices = tuple[str, ...] | VirtualDevices


def num_cores() -> int:
    """The CPU cores this process may use."""
    return len(usable())


def resolve(devices: str | Sequence[str] | VirtualDevices, num_ranks: int) -> Devices:
    """One device a rank, checked; "auto" chooses what this machine can do.

    "auto" takes a GPU per rank if there are enough; else deals the ranks over the GPUs there are; else the CPU on the
    wall clock if it has a core per rank; else virtual devices, which run one action at a time. A Mac's
    GPU is one device and takes the virtual clock.

    Args:
        devices: "auto", one name a rank (as `torch.device` takes them; repeats allowed), or `pp.virtual(n)`.
        num_ranks: ranks of the schedule.

    Raises:
        PipelabError: the number does not fit, or a device does not exist on this machine.
    """
    if isinstance(devices, VirtualDevices):
        if devices.count != num_ranks:
            raise PipelabError(
                f"The schedule has {num_ranks} ranks, but there are {devices.count} virtual devices. "
                f"Use pp.virtual({num_ranks})."
            )
        _check(devices.device)
        return devices
    if isinstance(devices, str):
        if devices != "auto":
            raise PipelabError(
                f"devices is {devices!r}; it must be 'auto', a list with one device a rank such as "
                f"{[devices] * num_ranks}, or pp.virtual({num_ranks})."
            )
        return choose(num_ranks)
    names = tuple(str(device) for device in devices)
    if len(names) != num_ranks:
        raise PipelabError(
            f"The schedule has {num_ranks} ranks, but devices names {len(names)}: {list(names)}. Give one a rank."
        )
    return tuple(_check(name) for name in names)


def choose(num_ranks: int) -> Devices:
    """What "auto" means on this machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        return tuple(
            f"cuda:{rank * gpus // num_ranks if gpus < num_ranks else rank}" for rank in range(num_ranks)
        )
    if torch.backends.mps.is_available():
        return VirtualDevices(num_ranks, device="mps")
    if num_cores() >= num_ranks:
        return ("cpu",) * num_ranks
    return VirtualDevices(num_ranks)


def threads_per_rank(devices: Devices) -> int:
    """Intra-op threads for each rank: the cores shared out evenly, at least one."""
    if isinstance(devices, VirtualDevices):
        return devices.threads
    on_cpu = sum(torch.device(name).type == "cpu" for name in devices)
    return max(1, num_cores() // max(1, on_cpu))


def cores_of_ranks(devices: Devices) -> tuple[Cores | None, ...]:
    """The CPU cores that each rank's threads keep to; None where they run wherever the system puts them.

    A forward goes from thread to thread, and at each hand-over the system puts the thread that wakes where it ran last:
    mostly on the core of the rank before, which is busy, so that both wait milliseconds for their turn while a core is
    free. Ranks with a core each keep to it, and those on other devices may have any. With more cores a rank the threads
    of an operation would stay behind where the first stage ran.
    """
    count = devices.count if isinstance(devices, VirtualDevices) else len(devices)
    on_cpu = (
        [] if isinstance(devices, VirtualDevices) else [n for n, name in enumerate(devices) if name == "cpu"]
    )
    if threads_per_rank(devices) > 1 or not 1 < len(on_cpu) <= num_cores():
        return (None,) * count
    cores = usable()
    shares = {rank: frozenset(sorted(cores)[n :: len(on_cpu)]) for n, rank in enumerate(on_cpu)}
    return tuple(shares.get(rank, cores) for rank in range(count))


def clock_notes(devices: Devices) -> tuple[str, ...]:
    """Why times measured on these devices are not those of one device a rank; empty if they are."""
    if isinstance(devices, VirtualDevices):
        return ()
    notes = []
    on_cpu = sum(torch.device(name).type == "cpu" for name in devices)
    if on_cpu > num_cores():
        notes.append(f"{on_cpu} ranks share {num_cores()} CPU cores: not the time of {on_cpu} devices")
    gpus = [name for name in devices if torch.device(name).type == "cuda"]
    if len(gpus) > len(set(gpus)):
        notes.append(f"{len(gpus)} ranks share {len(set(gpus))} GPUs: not the time of {len(gpus)} GPUs")
    return tuple(notes)


def describe(devices: Devices) -> str:
    """Devices in a line for people."""
    if isinstance(devices, VirtualDevices):
        return f"{devices.count} virtual devices on {devices.device} (virtual clock: one action at a time)"
    return f"{', '.join(devices)} (wall clock)"


def _check(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PipelabError(f"There is no device {name!r}. Use names like 'cpu', 'cuda:0' or 'mps'.") from None
    if device.type == "cpu":
        return "cpu"
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            have = f"has {count} GPU{'s' if count != 1 else ''}" if count else "has no GPU that torch can use"
            raise PipelabError(
                f"There is no device {name!r}: this machine {have}. Use 'cpu', or pp.virtual(n)."
            )
        return f"cuda:{index}"
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise PipelabError("There is no device 'mps' on this machine. Use 'cpu', or pp.virtual(n).")
        return "mps"
    raise PipelabError(
        f"pipelab does not run on {device.type!r} devices (given: {name!r}). Use 'cpu', 'cuda:N' or 'mps'."
    )
