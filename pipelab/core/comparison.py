"""Several runs side by side: five schedules, or the predicted run beside the measured one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.report import Report
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]

_NOTE = (
    "Bubble fraction: idle / (p x makespan). Bubble ratio: idle / busy.\n"
    "Span bubble: 1 - busy / (p x longest span of a rank). Peaks: of the rank that holds most."
)


@dataclass(frozen=True)
class Comparison:
    """The reports of several runs, as one table.

    Attributes:
        reports: one a run, in the order given.
    """

    reports: tuple[Report, ...]

    def __len__(self) -> int:
        return len(self.reports)

    def columns(self, *, causes: bool = False, period: bool = False) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a run.

        Args:
            causes: whether the idle time by cause is among them, in seconds of all ranks together.
            period: whether `Report.period` is among them, not a number where it is not known. It takes longer than
                all the others: seconds for steps of some hundred thousand actions.
        """
        columns: dict[str, list[Any]] = {
            "schedule": [report.label for report in self.reports],
            "ranks": [report.num_ranks for report in self.reports],
            "stages per rank": [report.stages_per_rank for report in self.reports],
            "micro-batches": [report.num_microbatches for report in self.reports],
            "clock": [report.clock for report in self.reports],
            "makespan [s]": [report.makespan for report in self.reports],
            "bubble fraction": [report.bubble_fraction for report in self.reports],
            "bubble ratio": [report.bubble_ratio for report in self.reports],
            "span bubble": [report.span_bubble for report in self.reports],
            "peak in flight": [max(report.peak_in_flight) for report in self.reports],
        }
        if any(report.peak_bytes is not None for report in self.reports):
            peaks = [np.nan if r.peak_bytes is None else max(r.peak_bytes) for r in self.reports]
            columns["peak memory [bytes]"] = peaks
            sent = [np.nan if r.bytes_sent is None else sum(r.bytes_sent) for r in self.reports]
            columns["sent [bytes]"] = sent
        if period:
            columns["period [s]"] = [np.nan if r.period is None else r.period for r in self.reports]
        if causes:
            found = [report.idle_by_cause for report in self.reports]
            for name in ("input", "communication", "imbalance", "order", "fill_and_drain"):
                columns[f"{name.replace('_', ' ')} [s]"] = [getattr(one, name) for one in found]
        texts = ("schedule", "clock")
        return {n: np.array(values, dtype=object if n in texts else None) for n, values in columns.items()}

    def to_frame(self, *, causes: bool = False, period: bool = False) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns.

        Args:
            causes: whether the idle time by cause is among them.
            period: whether the seconds are among them that each further step takes (see `columns`).
        """
        import pandas as pd

        return pd.DataFrame(self.columns(causes=causes, period=period))

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        shown: dict[str, Callable[[Any], str]] = {
            "makespan [s]": as_seconds,
            "bubble fraction": as_percent,
            "bubble ratio": as_percent,
            "span bubble": as_percent,
            "peak memory [bytes]": lambda value: "" if np.isnan(value) else as_bytes(value),
        }
        columns = self.columns()
        columns.pop("sent [bytes]", None)  # for frames: a printed line is long enough
        if (columns["stages per rank"] == 1).all():
            del columns["stages per rank"]
        header = [name.partition(" [")[0] for name in columns]
        texts = [
            [shown.get(name, str)(value) for value in column.tolist()] for name, column in columns.items()
        ]
        return header, [list(row) for row in zip(*texts, strict=True)]

    def __str__(self) -> str:
        header, rows = self._rows()
        return text_table(header, rows, _NOTE)

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        header, rows = self._rows()
        return html_table(header, rows, note=_NOTE)


def compare(traces: Iterable[Trace] | Mapping[str, Trace]) -> Comparison:
    """Lay several runs side by side.

    Args:
        traces: simulated or measured, in any mixture; a mapping names each run by its key.

    Example:
        >>> import pipelab as pp
        >>> names = ("gpipe", "1f1b")
        >>> schedules = [pp.schedule(name, num_ranks=4, num_microbatches=8) for name in names]
        >>> table = compare(pp.simulate(s, pp.Costs.uniform(4)) for s in schedules)
        >>> table.columns()["peak in flight"]
        array([8, 4])

    Raises:
        PipelabError: no trace at all.
        TypeError: something that is no `Trace`.
    """
    if isinstance(traces, Trace) or not isinstance(traces, Iterable):
        traces = (traces,)
    named = traces if isinstance(traces, Mapping) else dict(enumerate(traces))
    for trace in named.values():
        if not isinstance(trace, Trace):
            raise TypeError(
                f"compare() takes traces, not {type(trace).__name__}. Call simulate(schedule, costs) first."
            )
    if not named:
        raise PipelabError("compare() needs at least one trace.")
    if isinstance(traces, Mapping):
        return Comparison(tuple(trace.with_label(name).report() for name, trace in traces.items()))
    return Comparison(tuple(trace.report() for trace in named.values()))
