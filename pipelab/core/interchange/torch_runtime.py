"""What torch's pipeline runtime would do with a schedule.

Found by reading torch 2.13 (`torch.distributed.pipelining.schedules`) and by running tables through
`_PipelineScheduleRuntime` on gloo processes: it takes any placement of one chain of stages, whole and split
backwards, several stages a rank (where two neighbours share a rank it hands the value over), and any number of
micro-batches, m < p included. Sends and receives are added when the table is loaded; no table has to be changed
for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelab.core.actions import CODES, Kind
from pipelab.core.deadlock import action_of
from pipelab.core.tables import pretty
from pipelab.errors import one_of

if TYPE_CHECKING:
    from pipelab.core.schedule import Schedule

__all__ = ["VERDICTS", "TorchVerdict", "judge"]

VERDICTS = ("exact", "lowerable", "no")


@dataclass(frozen=True)
class TorchVerdict:
    """Whether torch's runtime can run a schedule, and how.

    Attributes:
        verdict: "exact" (it runs the cells as they are written), "lowerable" (the gradients are right, but something
            runs otherwise than written: overlapped cells one member after the other) or "no".
        reason: why, in sentences.

    Example:
        >>> import pipelab as pp
        >>> pp.schedule("1f1b", num_ranks=4, num_microbatches=8).runs_on_torch.verdict
        'exact'
        >>> print(pp.schedule("forward-only", num_ranks=4, num_microbatches=8).runs_on_torch)
        no: It has no backward, and torch accepts a table only if every stage runs one for every micro-batch.
    """

    verdict: str
    reason: str

    def __post_init__(self) -> None:
        one_of("verdict", self.verdict, VERDICTS)

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"

    _repr_pretty_ = pretty


def judge(schedule: Schedule) -> TorchVerdict:
    """Say what torch's runtime would do with a schedule."""
    reason = _obstacle(schedule)
    if reason:
        return TorchVerdict("no", reason)
    how = 'torch reads to_csv() with _load_csv(path, format="compute_only") and adds the sends and receives itself'
    table = schedule.table
    if table.has_overlaps:
        example = table.action(int(np.argmax(table.cell_kinds == CODES[Kind.OVERLAP])))
        return TorchVerdict(
            "lowerable",
            f"{how}. It runs the members of {example} and the like one after the other, unless a function is "
            f"registered for {Kind.OVERLAP.value}.",
        )
    return TorchVerdict("exact", f"{how}; every cell runs as it is written.")


def _obstacle(schedule: Schedule) -> str:
    """Why torch cannot run it; empty where it can."""
    placement, table = schedule.placement, schedule.table
    if placement.chains > 1:
        return f"It runs in {placement.chains} chains of stages, and torch's runtime knows one."
    if placement.edges is not None:
        return "Its stages are no plain chain, and torch's runtime sends from each stage to the next only."
    if schedule.slices > 1:
        return f"Its micro-batches run in {schedule.slices} slices, which torch would take for micro-batches."
    updates = np.flatnonzero(table.kind == CODES[Kind.U])
    if len(updates):
        update = action_of(table, int(updates[0]))
        return f"It updates weights within the table ({update}), and torch's table has no cell for that."
    if not schedule.has_backward:
        return "It has no backward, and torch accepts a table only if every stage runs one for every micro-batch."
    return _wrong_loss(schedule)


def _wrong_loss(schedule: Schedule) -> str:
    """torch keeps the losses in the order in which the last stage's forwards end, and looks them up by micro-batch."""
    table, last = schedule.table, schedule.num_stages - 1
    rows = np.flatnonzero((table.kind == CODES[Kind.F]) & (table.stage == last))
    wrong = np.flatnonzero(table.microbatch[rows] != np.arange(len(rows)))
    if not len(wrong):
        return ""
    first = int(wrong[0])
    return (
        f"The last stage runs {action_of(table, int(rows[first]))} where {last}F{first} would be next, and torch finds "
        f"losses by counting these forwards. Number the micro-batches in the order in which they leave stage {last}."
    )
