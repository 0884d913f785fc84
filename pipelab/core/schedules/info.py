"""What `SCHEDULES` says about each schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, text_table

__all__ = ["ScheduleInfo", "ScheduleTable"]


@dataclass(frozen=True)
class ScheduleInfo:
    """One schedule: where it comes from, what it promises, how it is built.

    Attributes:
        name: how `schedule(name, ...)` calls it.
        family: which idea it belongs to.
        paper: where it was published, or "" where it is folklore.
        constraint: what the sizes must fulfil, in words; "" for none.
        formulas: idle time and peak in formulas of p ranks, m micro-batches, v stages per rank, rank r.
        description: one line.
        builder: called with (num_ranks, num_microbatches, stages_per_rank, **options).
        stages_per_rank: the least and the most v; None for no bound.
        keywords: the options that the builder takes.
        is_step: whether the table is one training step over whole micro-batches. Of several mini-batches or of
            slices it is not, and a batch that is held fixed means something else there.
    """

    name: str
    family: str
    paper: str
    constraint: str
    formulas: str
    description: str
    builder: Callable[..., Schedule]
    stages_per_rank: tuple[int, int | None] = (1, 1)
    keywords: tuple[str, ...] = ()
    is_step: bool = True


class ScheduleTable(Mapping[str, ScheduleInfo]):
    """Every named schedule: a read-only mapping from name to `ScheduleInfo`, which prints as a table.

    Example:
        >>> import pipelab as pp
        >>> pp.SCHEDULES["gpipe"].paper
        'GPipe, arXiv 1811.06965'
    """

    def __init__(self, infos: Iterable[ScheduleInfo]) -> None:
        """Collect what is known.

        Args:
            infos: in the order in which menus and tables show them.
        """
        self._infos = {info.name: info for info in infos}

    def __getitem__(self, name: str) -> ScheduleInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [[info.name, info.description, info.formulas, info.paper] for info in self.values()]
        return ["schedule", "what it is", "per rank", "source"], rows

    def __str__(self) -> str:
        header, rows = self._rows()
        return text_table(header[:2], [row[:2] for row in rows])

    def __repr__(self) -> str:
        return f"<SCHEDULES: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        note = "p ranks, m micro-batches, v stages per rank, r rank; F and B: seconds of one stage."
        return html_table(*self._rows(), note=note)
