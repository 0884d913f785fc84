"""The links of a sweep: which are asked for, what tells them apart, and what holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from pipelab.core.costs import Costs, Links
from pipelab.core.profile import Profile
from pipelab.errors import PipelabError

__all__ = ["check_bytes", "link_texts", "links_asked", "links_text"]


_PLAIN = "plain"
"""Neither serial nor blocking, where others are and nothing else is to be said."""


def links_asked(links: object) -> dict[Links | None, str]:
    """The different links asked for, each with what tells it from the others."""
    if links is None or isinstance(links, Links):
        return {links: ""}
    found: dict[Links, str] = {}
    for link in links if isinstance(links, Iterable) else [links]:
        if not isinstance(link, Links):
            raise TypeError(f"links must be Links, one or several, not {type(link).__name__}.")
        found[link] = ""
    return dict(zip(found, link_texts(list(found)), strict=True))


def check_bytes(links: Iterable[Links | None], costs: object, profile: Profile | None) -> None:
    """Refuse a bandwidth that no bytes are known for, before anything runs; a function of costs may know them."""
    knows = profile is not None or (
        costs.bytes is not None if isinstance(costs, Costs) else costs is not None
    )
    slow = next((link for link in links if link is not None and link.has_bandwidth), None)
    if slow is not None and not knows:
        raise PipelabError(
            f"How long transfers take over {slow!r} is not known: a bandwidth needs bytes, and there are none here. "
            f"Give costs with bytes (pp.StageBytes), a profile, or links with a latency only."
        )


def links_text(links: Sequence[Links | None]) -> str:
    """What holds for all links of a sweep; None stands for those of a function of costs."""
    if len(links) > 1:
        shared = {f.name: getattr(links[0], f.name) for f in fields(Links) if _is_shared(f.name, links)}
        alike = Links(**shared)
        return "links as in the rows" + ("" if alike == Links() else f", all with {repr(alike)[6:-1]}")
    if links[0] is None:
        return "links as the function has them"
    return "free links" if links[0] == Links() else repr(links[0])


def _is_shared(name: str, links: Sequence[Links | None]) -> bool:
    return len({getattr(link, name) for link in links}) == 1


def link_texts(links: Sequence[Links]) -> tuple[str, ...]:
    """For each of some links how it differs from the others, beside a latency that is one number.

    Example:
        >>> link_texts([Links(bandwidth=1e9), Links(0.5, bandwidth=1e9, serial=True)])
        ('plain', 'serial')
        >>> link_texts([Links(bandwidth=1e9), Links(bandwidth=[[1, 2], [3, 4]])])
        ('bandwidth 1e+09 B/s', 'bandwidth table 1')
    """
    columns = [
        _tables("latency", links, lambda seconds: ""),
        _tables("bandwidth", links, _rate),
        _switches(links),
    ]
    rows = [list(filter(None, parts)) for parts in zip(*columns, strict=True)]
    return tuple(", ".join([x for x in parts if x != _PLAIN] or parts) for parts in rows)


def _tables(name: str, links: Sequence[Links], text: Callable[[float], str]) -> list[str]:
    """Tables by their numbers, and numbers by a text; nothing where all are the same."""
    values = [getattr(link, name) for link in links]
    if len(set(values)) == 1:
        return [""] * len(links)
    tables = list(dict.fromkeys(value for value in values if isinstance(value, tuple)))
    return [f"{name} table {tables.index(x) + 1}" if isinstance(x, tuple) else text(x) for x in values]


def _rate(bandwidth: float) -> str:
    if math.isinf(bandwidth):
        return "bandwidth unlimited"
    short = f"{bandwidth:g}"
    return f"bandwidth {short if float(short) == bandwidth else bandwidth} B/s"


def _switches(links: Sequence[Links]) -> list[str]:
    """Which of serial and blocking are set, where that differs."""
    names = [n for n in ("serial", "blocking") if not _is_shared(n, links)]
    return [", ".join(n for n in names if getattr(link, n)) or _PLAIN * bool(names) for link in links]
