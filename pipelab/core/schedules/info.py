"""What `SCHEDULES` says about each schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap

from pipelab.core.closed_form import ClosedForm
from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, pretty
from pipelab.errors import PipelabError, one_of

__all__ = ["ScheduleInfo", "ScheduleTable", "UnknownScheduleError"]

_WIDTH = 110

_LEGEND = (
    "p ranks, m micro-batches, v stages per rank, r rank; F, I, W, B: seconds of one stage, F&B of a forward and "
    "a backward that overlap; c: latency of one hop, 0 where a formula has none. theory.closed_form(name) gives the "
    "formulas as functions and says when they hold."
)


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
        form: the formulas as functions with their assumptions, to which those v are added that the schedule takes;
            None where there are none.
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
    form: ClosedForm | None = None

    def __post_init__(self) -> None:
        if self.form is not None:
            object.__setattr__(self, "form", self.form.bounded(self.stages_per_rank))

    @property
    def chunks(self) -> str:
        """How many stages a rank may hold, as text: "1", "2", "1 or more"."""
        least, most = self.stages_per_rank
        return f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"


class UnknownScheduleError(PipelabError, KeyError):
    """There is no schedule of that name; also a `KeyError`, as every mapping promises."""

    __str__ = Exception.__str__  # that of KeyError shows the message in quotes, on one line


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
        try:
            one_of("schedule", name, self._infos)
        except PipelabError as error:
            raise UnknownScheduleError(str(error)) from None
        return self._infos[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __str__(self) -> str:
        width = max(map(len, self))
        lines = []
        for family in dict.fromkeys(info.family for info in self.values()):
            lines.append(f"{family}:")
            for info in (info for info in self.values() if info.family == family):
                first, *more = wrap(info.description, _WIDTH - width - 4)
                for details in (info.formulas, f"sizes: {info.constraint}" if info.constraint else ""):
                    more += wrap(details, _WIDTH - width - 4)
                lines.append(f"  {info.name:<{width}}  {first}")
                lines += [" " * (width + 4) + line for line in more]
        return "\n".join([*lines, *wrap(_LEGEND, _WIDTH)])

    def __repr__(self) -> str:
        return f"<SCHEDULES: {', '.join(self)}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        header = ["schedule", "family", "what it is", "sizes", "v", "per rank", "source"]
        rows = [
            [i.name, i.family, i.description, i.constraint or "any", i.chunks, i.formulas, i.paper]
            for i in self.values()
        ]
        return html_table(header, rows, note=_LEGEND)
