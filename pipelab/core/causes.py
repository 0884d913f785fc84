"""Why ranks idle: the idle time of a step, split by cause.

Causes are taken away one after the other, in one fixed order; what each takes from the makespan is its share:

    T    the step as it is                        input           p (T  - T0)
    T0   every micro-batch there from the start   communication   p (T0 - T1)
    T1   free links                               imbalance       p (T1 - T2)
    T2   each kind costs the same in every stage  order           p (T2 - T3)
    T3   the lower bound of any order             fill and drain  p T3 - work

T2 gives each cell the mean over all cells of its kind, so that the work stays what it is; overlaps are kinds of their
own, one for each combination of kinds. T3 is the maximum over ranks of (work + shortest head + shortest tail), see
`lower_bound`. The sum telescopes to p T - work, all the idle time there is. Uneven stages may even shorten a step:
then imbalance is negative.

Of a measured step no links are known. T1 is its own durations run again with free links, so that its first share is
all that T0 has over it: communication, waiting and overhead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import IntArray, Kind
from pipelab.core.lower_bound import lower_bound
from pipelab.core.quantities import as_percent, as_seconds
from pipelab.core.recurrence import FloatArray
from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import UPDATE, Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["IdleByCause", "idle_by_cause"]

_ROUNDING = 1e-12
"""Makespans that differ by less than this fraction are one: additions in another order differ that much."""


@dataclass(frozen=True)
class IdleByCause:
    """The idle time of all ranks together, by cause, in seconds.

    Attributes:
        makespan: T, the step as it is.
        without_feed: T0, with every micro-batch there from the start; None where nothing feeds the step.
        free_links: T1, with free links besides.
        even_stages: T2, with each kind's mean cost besides.
        bound: T3, the lower bound at these costs.
        work: seconds that all ranks compute.
        num_ranks: p.
        measured: whether the step really ran, so that `communication` holds waiting and overhead too.

    Example:
        >>> import pipelab as pp
        >>> one = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
        >>> costs = pp.Costs((1, 1, 1, 2), (1, 1, 1, 2), (1, 1, 1, 2), links=pp.Links(latency=0.25))
        >>> print(pp.simulate(one, costs).report().idle_by_cause)
        cause           all ranks  of the step
        communication         6 s        2.6 %
        imbalance            63 s       26.9 %
        order                 0 s        0.0 %
        fill and drain       45 s       19.2 %
        together            114 s       48.7 %
    """

    makespan: float
    without_feed: float | None
    free_links: float
    even_stages: float
    bound: float
    work: float
    num_ranks: int
    measured: bool

    @property
    def input(self) -> float:
        """p (T - T0): ranks wait for micro-batches to be loaded and prepared; 0 without a feed."""
        return 0.0 if self.without_feed is None else self.num_ranks * (self.makespan - self.without_feed)

    @property
    def communication(self) -> float:
        """p (T0 - T1): ranks wait for transfers; in a measured step also for threads, and with overhead."""
        fed = self.makespan if self.without_feed is None else self.without_feed
        return self.num_ranks * (fed - self.free_links)

    @property
    def imbalance(self) -> float:
        """p (T1 - T2): ranks wait for a stage that costs more than others. Negative where that helps."""
        return self.num_ranks * (self.free_links - self.even_stages)

    @property
    def order(self) -> float:
        """p (T2 - T3): ranks wait since the schedule is not a shortest one (or since the bound is not tight)."""
        return self.num_ranks * (self.even_stages - self.bound)

    @property
    def fill_and_drain(self) -> float:
        """p T3 - work: ranks wait for the first micro-batch to come and for the last to go."""
        return self.num_ranks * self.bound - self.work

    @property
    def causes(self) -> dict[str, float]:
        """Seconds by the name of the cause, in the order in which they are taken away; input only with a feed."""
        fed = {} if self.without_feed is None else {"input": self.input}
        first = "communication, waiting, overhead" if self.measured else "communication"
        return fed | {
            first: self.communication,
            "imbalance": self.imbalance,
            "order": self.order,
            "fill and drain": self.fill_and_drain,
        }

    @property
    def total(self) -> float:
        """All causes together, seconds: p T - work, the sum of `bubble_time`."""
        return math.fsum(self.causes.values())

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a cause, fractions of p x makespan."""
        seconds = np.array(list(self.causes.values()))
        all_ranks = self.num_ranks * self.makespan
        return {
            "cause": np.array(list(self.causes), dtype=object),
            "idle [s]": seconds,
            "fraction": seconds / all_ranks if all_ranks else np.zeros(len(seconds)),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        all_ranks = self.num_ranks * self.makespan
        rows = [
            [name, as_seconds(seconds), as_percent(seconds / all_ranks if all_ranks else 0.0)]
            for name, seconds in [*self.causes.items(), ("together", self.total)]
        ]
        return ["cause", "all ranks", "of the step"], rows

    def __str__(self) -> str:
        return text_table(*self._rows())

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), "Idle time of all ranks by cause")


def idle_by_cause(trace: Trace) -> IdleByCause:
    """Split the idle time of a step by cause.

    Args:
        trace: simulated or measured.
    """
    schedule, p = trace.schedule, trace.num_ranks
    cells = schedule.table.num_cells
    cell_seconds = trace.durations[:cells]
    updates = trace.rows_of(UPDATE)
    update_rank, update_seconds = trace.rank[updates], trace.durations[updates]
    after = np.bincount(update_rank, weights=update_seconds, minlength=p).astype(np.float64)
    mean_after = np.bincount(update_rank, weights=_means(update_seconds), minlength=p).astype(np.float64)
    mean_seconds = _means(cell_seconds, _kinds(schedule))
    steps = [
        trace.makespan,
        _without_feed(trace),
        _replayed(schedule, cell_seconds, after),
        _replayed(schedule, mean_seconds, mean_after),
        lower_bound(schedule, mean_seconds, mean_after),
    ]
    for k in range(1, len(steps)):
        if math.isclose(steps[k], steps[k - 1], rel_tol=_ROUNDING):
            steps[k] = steps[k - 1]
    makespan, without_feed, free_links, even_stages, bound = steps
    return IdleByCause(
        makespan=makespan,
        without_feed=None if trace.feed is None else without_feed,
        free_links=free_links,
        even_stages=even_stages,
        bound=bound,
        work=math.fsum(cell_seconds.tolist()) + math.fsum(update_seconds.tolist()),
        num_ranks=p,
        measured=trace.costs is None,
    )


def _without_feed(trace: Trace) -> float:
    if trace.feed is None or trace.costs is None:
        return trace.makespan
    from pipelab.core.simulation import simulate  # simulation makes traces, which have reports

    return simulate(trace.schedule, trace.costs).makespan


def _kinds(schedule: Schedule) -> IntArray:
    """Shape (cells,): a number for each kind of cell; an overlap's kind is the kinds of its members."""
    work, which = schedule.recurrence.work, schedule.workload.which
    names: dict[tuple[Kind, ...], int] = {}
    members = [tuple(sorted(kind for kind, _ in work)) for work in schedule.workload.works]
    number = np.array([names.setdefault(kinds, len(names)) for kinds in members])
    kinds = np.empty(schedule.table.num_cells, dtype=np.int64)
    kinds[work[work >= 0]] = number[which[work >= 0]]
    return kinds


def _means(seconds: FloatArray, kinds: IntArray | None = None) -> FloatArray:
    """Shape (n,): for each duration the mean of its kind; None: all are of one kind."""
    which = np.zeros(len(seconds), dtype=np.int64) if kinds is None else kinds
    total, count = np.bincount(which, weights=seconds), np.bincount(which)
    means: FloatArray = (total / np.maximum(count, 1))[which]
    return means


def _replayed(schedule: Schedule, cell_seconds: FloatArray, after: FloatArray) -> float:
    """The makespan of a schedule with free links.

    Args:
        schedule: what runs.
        cell_seconds: shape (cells,).
        after: shape (ranks,): seconds of each rank's updates, which follow its last cell.
    """
    recurrence = schedule.recurrence
    entries = np.append(cell_seconds, 0.0)[recurrence.work]  # an entry that only waits has work -1
    _, end = recurrence.times(entries, 0.0)
    stops = np.searchsorted(schedule.table.cell_ranks, np.arange(schedule.num_ranks), side="right")
    return float((end[stops - 1] + after).max())
