"""A schedule with further lanes: transfers that take turns, updates, a feed; compiled into the same recurrence.

The recurrence knows one thing: tasks in a row, each waiting for some of other rows. A rank is a row. So is a link
that carries one transfer at a time, a loader, or a worker that prepares micro-batches:

    rank 0      | 0F0 | 0F1 | 0F2 |                 serial links: the transfer is a task of the link
    link 0 -> 1       | 0F0  | 0F1  | 0F2  |
    rank 1                   | 1F0 |  ...

    rank 0      | 0F0 | 0F0> | 0F1 | 0F1> |         blocking sends: the transfer is a task of the sender
    rank 1                   | 1F0 |  ...

Three moments are tasks that take no time and have no row in the trace: when a worker takes what was loaded
(`take`), when the prepared micro-batch finds room in the queue (`enter`), when the forward that reads it may start
(`gate`):

    loader      load 0, load 1, ...         load k   waits for  take k-1
    worker      take, prepare, enter, ...   take k   waits for  load k
                                            enter k  waits for  enter k-1, and the gate of micro-batch k - queue
    rank        gate, 0F0, gate, 0F1, ...   gate k   waits for  enter k

Where steps follow each other (`period`), a row goes on in the next step where it ended. That says all but what the
feed carries over beside its rows: micro-batch 0 waits for the last of the step before, the first ones for room that
forwards of earlier steps make. Each such wait is a row of two moments, of which the last waits for what happens in
this step, while the later step waits for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.feed import LOAD, PREPARE
from pipelab.core.intake import Intake
from pipelab.core.recurrence import Predecessors, Recurrence, compile_recurrence
from pipelab.core.schedule import Schedule
from pipelab.core.trace import COMPUTE, COPY, UPDATE

__all__ = ["Features", "Lanes", "lanes_of"]

Rows = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """What a simulation needs beyond the cells.

    Attributes:
        serial: each link carries one transfer at a time.
        blocking: a transfer occupies its sender.
        updates: an update of every stage ends the step of its rank.
    """

    serial: bool
    blocking: bool
    updates: bool

    @property
    def any(self) -> bool:
        """Whether there are other lanes at all."""
        return self.serial or self.blocking or self.updates


@dataclass(frozen=True, eq=False, repr=False)
class Lanes:
    """A schedule compiled with further lanes.

    What a task costs is looked up by its class. The classes are those of the workload (`works`), then one for each
    of its hops, then one for the update of each model stage, then the loads and then the preparations, in the order
    in which the micro-batches come.

    Attributes:
        recurrence: tasks take the place of cells; rows (ranks first) that of ranks.
        which: shape (entries,): the class of each entry.
        task: shape (rows,): the task of each row of the trace, the cells first.
        names: of the lanes of the trace.
        others: rank, lane, kind, stage and microbatch of the rows after the cells.
        follows: shape (rows that run something,): the row of an earlier step whose end each row begins with, where
            steps follow each other; itself, but for workers, who take turns across steps, and
        ago: how many steps earlier that is.
    """

    recurrence: Recurrence
    which: IntArray
    task: IntArray
    names: tuple[str, ...]
    others: Rows
    follows: IntArray
    ago: IntArray


def lanes_of(
    schedule: Schedule, features: Features, intake: Intake | None = None, chained: bool = False
) -> Lanes:
    """Compile a schedule with further lanes; without a feed this happens once for each schedule and features.

    Args:
        schedule: any schedule.
        features: the lanes that are wanted.
        intake: how the micro-batches come; None without a feed.
        chained: whether the feed goes on from step to step; else `follows` and `ago` do not hold for it.
    """
    if intake is not None:
        return _compiled(schedule, features, intake, chained)
    known = schedule.workload.compiled
    if features not in known:
        known[features] = _compiled(schedule, features, None, False)
    return known[features]


class _Draft:
    """Tasks and what they wait for, while they are collected."""

    def __init__(self, schedule: Schedule) -> None:
        workload, self.cells = schedule.workload, np.arange(schedule.table.num_cells)
        self.no_work, self.nowhere = len(workload.works) - 1, len(workload.hops) - 1
        self.first_hop = len(workload.works)
        self.first_update = self.first_hop + len(workload.hops)
        self.first_load = self.first_update + schedule.num_model_stages
        self.num_rows = schedule.num_ranks
        self.count = 0
        self._tasks: list[list[npt.ArrayLike]] = []
        self._waits: list[Sequence[npt.ArrayLike]] = []
        self.rows: list[IntArray] = []
        self.lanes: list[str] = []
        self.others: list[Rows] = []
        self.turns: dict[int, tuple[int, int]] = {}  # of rows that do not go on with their own last end

    def add(self, row: IntArray, place: npt.ArrayLike, work: npt.ArrayLike, turn: int = 0) -> IntArray:
        """Add tasks; within a row they run by place, then by turn, then as they were added.

        Args:
            row: shape (n,): the rank, link, loader or worker of each.
            place: shape (n,) or one number for all.
            work: shape (n,) or one number for all: the class of each.
            turn: of all of them.
        """
        n = len(row)
        self._tasks.append([row, *(np.broadcast_to(x, n) for x in (place, turn, work))])
        self.count += n
        return np.arange(self.count - n, self.count)

    def wait(self, task: IntArray, needed: IntArray, hop: IntArray | None = None) -> None:
        """Let tasks wait for others; `hop` where a transfer lies between them that is no task itself."""
        self._waits.append((task, needed, np.full(len(task), self.nowhere) if hop is None else hop))

    def carry(self, task: IntArray, needed: IntArray, steps: IntArray) -> None:
        """Let tasks wait for others of an earlier step; see the head of this module."""
        rows = self.num_rows + np.arange(len(task))
        self.num_rows += len(rows)
        self.wait(task, self.add(rows, 0, self.no_work))
        self.wait(self.add(rows, 1, self.no_work), needed)
        self.turns |= {row: (row, ago) for row, ago in zip(rows.tolist(), steps.tolist(), strict=True)}

    def show(self, lane: str, task: IntArray, rank: npt.ArrayLike, **said: npt.ArrayLike) -> None:
        """Give tasks a row each in the trace: kind, stage, microbatch."""
        if len(task):
            number = len(self.lanes) + 1
            self.lanes.append(lane)
            self.rows.append(task)
            columns = {"rank": rank, "lane": number, **said}
            self.others.append({name: np.broadcast_to(x, len(task)) for name, x in columns.items()})

    def compiled(self) -> Lanes:
        """Sort the tasks into their rows and compile them."""
        row, place, turn, work = (np.concatenate(column) for column in zip(*self._tasks, strict=True))
        order = np.lexsort((turn, place, row))
        number = np.empty(self.count, dtype=np.int64)
        number[order] = np.arange(self.count)
        task, needed, hop = (np.concatenate(column) for column in zip(*self._waits, strict=True))
        recurrence = compile_recurrence(
            row[order], self.num_rows, Predecessors(number[task], number[needed], hop)
        )
        which = np.append(work[order], self.no_work)[recurrence.work]
        names = ("rank", "lane", "kind", "stage", "microbatch")
        others = {name: np.concatenate([rows[name] for rows in self.others]) for name in names if self.others}
        shown = number[np.concatenate([self.cells, *self.rows])]
        running = np.unique(row)
        turns = np.array([self.turns.get(r, (r, 1)) for r in running.tolist()], dtype=np.int64)
        follows, ago = np.searchsorted(running, turns[:, 0]), turns[:, 1]
        return Lanes(recurrence, which, shown, (COMPUTE, *self.lanes), others, follows, ago)


def _compiled(schedule: Schedule, features: Features, intake: Intake | None, chained: bool) -> Lanes:
    draft, workload = _Draft(schedule), schedule.workload
    recurrence = schedule.recurrence
    classes = np.empty(len(draft.cells), dtype=np.int64)
    classes[recurrence.work[recurrence.work >= 0]] = workload.which[recurrence.work >= 0]
    cells = draft.add(schedule.table.cell_ranks, draft.cells, classes, turn=1)
    starting = cells.copy()  # the task whose needs must be met before the cell starts
    if intake is not None:
        gated = np.unique(intake.cell)
        starting[gated] = draft.add(schedule.table.cell_ranks[gated], gated, draft.no_work, turn=0)
    if features.serial or features.blocking:
        _add_copies(draft, schedule, starting, features.blocking)
    else:
        found = schedule.predecessors
        draft.wait(starting[found.cell], found.needed, found.hop)
    if intake is not None:
        _add_feed(draft, schedule, intake, starting, chained)
    if features.updates:
        _add_updates(draft, schedule)
    return draft.compiled()


def _add_copies(draft: _Draft, schedule: Schedule, starting: IntArray, blocking: bool) -> None:
    """Each value that goes to another rank is a task of its link, or of its sender."""
    table, found = schedule.table, schedule._check  # the check has looked up who gives what
    elsewhere = np.flatnonzero(table.rank[found.needs.row] != table.rank[found.givers])
    elsewhere = elsewhere[np.lexsort((found.needs.hop[elsewhere], found.givers[elsewhere]))]
    giver, taker, hop = found.givers[elsewhere], found.needs.row[elsewhere], found.needs.hop[elsewhere]
    source, target, given = table.rank[giver].astype(np.int64), table.rank[taker], table.cell[giver]
    if blocking:
        copies = draft.add(source, given, draft.first_hop + hop, turn=2)
    else:
        links, link = np.unique(source * schedule.num_ranks + target, return_inverse=True)
        copies = draft.add(draft.num_rows + link, given, draft.first_hop + hop)
        draft.num_rows += len(links)
        draft.wait(copies, given)
    draft.wait(starting[table.cell[taker]], copies)
    said = {"kind": table.kind[giver], "stage": table.stage[giver], "microbatch": table.microbatch[giver]}
    draft.show(COPY, copies, source, **said)


def _add_feed(draft: _Draft, schedule: Schedule, intake: Intake, starting: IntArray, chained: bool) -> None:
    """A loader, workers and a queue; see the head of this module."""
    m = len(intake.microbatch)
    number = np.arange(m)
    workers = min(intake.workers, m)
    worker = number % workers
    load = draft.add(np.full(m, draft.num_rows), number, draft.first_load + number)
    of_worker = draft.num_rows + 1 + worker
    take = draft.add(of_worker, number, draft.no_work, turn=0)
    prepare = draft.add(of_worker, number, draft.first_load + m + number, turn=1)
    enter = draft.add(of_worker, number, draft.no_work, turn=2)
    first_worker = draft.num_rows + 1
    draft.num_rows += 1 + workers
    draft.wait(take, load)
    draft.wait(load[1:], take[:-1])
    draft.wait(enter[1:], enter[:-1])
    draft.wait(enter[intake.queue :], starting[intake.cell][: -intake.queue])
    draft.wait(starting[intake.reader], enter[intake.read])
    if chained:
        draft.carry(load[:1], take[-1:], np.array([1]))
        draft.carry(enter[:1], enter[-1:], np.array([1]))
        last, ago = _earlier(number[: intake.queue], intake.queue, m)
        draft.carry(enter[: intake.queue], starting[intake.cell][last], ago)
        last, ago = _earlier(number[:workers], intake.workers, m)
        rows = zip((first_worker + last % workers).tolist(), ago.tolist(), strict=True)
        draft.turns |= {first_worker + w: turn for w, turn in enumerate(rows)}

    rank = schedule.table.cell_ranks[intake.cell]
    turns = [(LOAD, load, slice(None))]
    turns += [(f"{PREPARE}{w}", prepare, slice(w, None, workers)) for w in range(workers)]
    for lane, task, turn in turns:
        stage, microbatch = intake.stage[turn], intake.microbatch[turn]
        draft.show(lane, task[turn], rank[turn], kind=CODES[Kind.F], stage=stage, microbatch=microbatch)


def _earlier(number: IntArray, before: int, m: int) -> tuple[IntArray, IntArray]:
    """Which of m micro-batches comes `before` places before each of these, and how many steps earlier."""
    return (number - before) % m, (before - number - 1) // m + 1


def _add_updates(draft: _Draft, schedule: Schedule) -> None:
    """Each rank updates every model stage that it holds, replicas included, when all else is done.

    Two replicas exchange their gradients before an update in truth; that is not modelled, they wait for nothing
    more. A replica that shares its rank with its original is updated with it.
    """
    placement, table = schedule.placement, schedule.table
    last = np.zeros(placement.num_stages, dtype=np.int64)
    np.maximum.at(last, table.stage, table.microbatch)
    held: dict[tuple[int, int], list[int]] = {}
    for number, pair in enumerate(zip(placement.ranks, placement.model_stages, strict=True)):
        held.setdefault(pair, []).append(number)
    found = sorted((rank, min(ids), max(last[ids]), model_stage) for (rank, model_stage), ids in held.items())
    rank, stage, microbatch, model_stage = np.array(found, dtype=np.int64).T
    updates = draft.add(rank, len(draft.cells) + stage, draft.first_update + model_stage)
    draft.show(UPDATE, updates, rank, kind=CODES[Kind.U], stage=stage, microbatch=microbatch)
