"""A plan: all that an engine needs, in one value that is saved as strict JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelab.core import strict_json
from pipelab.core.actions import as_index
from pipelab.core.costs import Links
from pipelab.core.saving import Saved
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split
from pipelab.errors import MANY, PipelabError, from_one_to

__all__ = ["Devices", "Plan", "VirtualDevices", "virtual"]


@dataclass(frozen=True)
class VirtualDevices:
    """Devices that are not there: actions really run, one at a time, then placed on as many as one likes.

    Attributes:
        count: how many devices, one a rank.
        threads: how many CPU threads each action may use while it runs.
        device: the one real device that runs every action.

    Raises:
        PipelabError: less than 1, or too many.
    """

    count: int
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, most in (("count", 2**20), ("threads", MANY)):
            value = as_index(name, getattr(self, name))
            from_one_to(most, **{name: value})
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device", _device_name(str(self.device)))


def virtual(count: int, threads: int = 1, device: str = "cpu") -> VirtualDevices:
    """Run on virtual devices: real gradients and an honest timeline of `count` devices on a laptop.

    Args:
        count: how many devices, one a rank.
        threads: how many CPU threads each action may use.
        device: the one real device that runs every action, such as "cpu", "cuda:0" or "mps".

    Example:
        >>> virtual(8)
        VirtualDevices(count=8, threads=1, device='cpu')
    """
    return VirtualDevices(count, threads, device)


Devices = str | tuple[str, ...] | VirtualDevices
"""The text "auto", the name of a device for each rank, or virtual devices."""


@dataclass(frozen=True, repr=False)
class Plan(Saved):
    """All that an engine needs: which stages, in which order, where.

    Its `repr` is code: with `from pipelab import *` it evaluates to an equal plan. An order that its name and sizes
    do not say is written out, cell by cell.

    Attributes:
        split: the cut points; as many stages as the schedule has model stages.
        schedule: the order of each rank.
        devices: "auto", one name a rank such as ("cuda:0", "cuda:1"), or `virtual(count)`.
        links: the links between ranks, for predictions; None when they are not known.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
        >>> Plan(Split(["blocks.3"]), one).devices
        'auto'
        >>> Plan(Split(["blocks.3"]), one, devices=pp.virtual(2))
        Plan(Split(['blocks.3']), schedule('1f1b', num_ranks=2, num_microbatches=4), devices=virtual(2))

    Raises:
        PipelabError: parts that do not fit each other.
    """

    split: Split
    schedule: Schedule
    devices: Devices = "auto"
    links: Links | None = None

    def __post_init__(self) -> None:
        for name, kind in (("split", Split), ("schedule", Schedule)):
            if not isinstance(getattr(self, name), kind):
                found = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be a {kind.__name__}, not {found}.")
        if self.links is not None and not isinstance(self.links, Links):
            raise TypeError(f"links must be Links or None, not {type(self.links).__name__}.")
        object.__setattr__(self, "devices", _devices(self.devices))
        wanted = self.schedule.num_model_stages
        if self.split.num_stages != wanted:
            raise PipelabError(
                f"The split has {self.split.num_stages} stages, but {self.schedule.name} wants {wanted}. "
                f"Use a split with {wanted - 1} cuts."
            )
        ranks = self.schedule.num_ranks
        count = self.num_devices
        if count not in (None, ranks):
            raise PipelabError(
                f"devices names {count} devices, but {self.schedule.name} has {ranks} ranks. Name one a rank, "
                f"repeats allowed; or pp.virtual({ranks})."
            )
        if self.links is not None and self.links.num_ranks not in (None, ranks):
            raise PipelabError(
                f"links are for {self.links.num_ranks} ranks, but the schedule has {ranks}. Give a table of {ranks} "
                f"rows, or one latency and one bandwidth for all."
            )

    @property
    def num_devices(self) -> int | None:
        """How many devices are named; None for "auto"."""
        if isinstance(self.devices, VirtualDevices):
            return self.devices.count
        return None if isinstance(self.devices, str) else len(self.devices)

    def __repr__(self) -> str:
        from pipelab.core.plan_code import plan_code  # which builds schedules by their names

        return plan_code(self)

    def __str__(self) -> str:
        if isinstance(self.devices, VirtualDevices):
            where = f"{self.devices.count} virtual devices on {self.devices.device}"
        else:
            where = self.devices if isinstance(self.devices, str) else ", ".join(self.devices)
        return f"plan: {self.split}; devices: {where}\n{self.schedule}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        devices: object = self.devices
        if isinstance(self.devices, VirtualDevices):
            devices = {
                "virtual": self.devices.count,
                "threads": self.devices.threads,
                "device": self.devices.device,
            }
        elif isinstance(self.devices, tuple):
            devices = list(self.devices)
        return {
            "split": self.split.to_dict(),
            "schedule": self.schedule.to_dict(),
            "devices": devices,
            "links": None if self.links is None else self.links.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: object, where: str = "plan") -> Plan:
        """Read what `to_dict` wrote; unknown keys and wrong types are refused.

        Raises:
            PipelabError: names the field.
        """
        required = ("split", "schedule", "devices")
        found = strict_json.fields(data, where, required=required, optional=("links",))
        links = found.get("links")
        return cls(
            Split.from_dict(found["split"], f"{where}.split"),
            Schedule.from_dict(found["schedule"], f"{where}.schedule"),
            _read_devices(found["devices"], f"{where}.devices"),
            None if links is None else Links.from_dict(links, f"{where}.links"),
        )


def _devices(devices: str | Iterable[str] | VirtualDevices) -> Devices:
    if isinstance(devices, VirtualDevices) or devices == "auto":
        return devices
    if isinstance(devices, str):
        raise PipelabError(f'devices is {devices!r}; it must be "auto", one name a rank, or pp.virtual(n).')
    if not isinstance(devices, Iterable):
        raise TypeError(
            f"devices must be 'auto', one name a rank, or pp.virtual(n), not {type(devices).__name__}."
        )
    return tuple(_device_name(str(device)) for device in devices)


def _device_name(name: str) -> str:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise PipelabError(f"{name[:40]!r} is not the name of a device, such as 'cpu' or 'cuda:0'.")
    return name


def _read_devices(value: object, where: str) -> Devices:
    if isinstance(value, dict):
        found = strict_json.fields(value, where, required=("virtual",), optional=("threads", "device"))
        return VirtualDevices(
            strict_json.integer(found["virtual"], f"{where}.virtual"),
            strict_json.integer(found.get("threads", 1), f"{where}.threads"),
            strict_json.text(found.get("device", "cpu"), f"{where}.device"),
        )
    return strict_json.text(value, where) if isinstance(value, str) else strict_json.texts(value, where)
