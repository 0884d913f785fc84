"""The engine runs any program of actions, whatever the stages do."""

import threading
import time

import numpy as np
import pytest
import torch

import pipelab as pp
from pipelab.runtime.engine import Execution, forwards_only, program
from pipelab.runtime.interception import Cancelled
from pipelab.runtime.rank_device import rank_devices
from pipelab.runtime.threads import ThreadPool


class Recorder:
    """Stages that do nothing but note the order in which actions ran."""

    def __init__(self, fail_at=None):
        self.done, self.fail_at, self.cancelled = [], fail_at, threading.Event()

    def forward(self, stage, microbatch):
        self._note(f"{stage}F{microbatch}")

    def backward(self, stage, microbatch):
        self._note(f"{stage}B{microbatch}")

    def backward_input(self, stage, microbatch):
        self._note(f"{stage}I{microbatch}")

    def backward_weight(self, stage, microbatch):
        self._note(f"{stage}W{microbatch}")

    def update(self, stage, microbatch):
        self._note(f"{stage}U{microbatch}")

    def cancel(self):
        self.cancelled.set()

    def _note(self, cell):
        if cell == self.fail_at:
            raise RuntimeError("boom")
        self.done.append(cell)


@pytest.fixture
def pool():
    pool = ThreadPool()
    yield pool
    pool.close()


def execution(schedule, stages, one_worker=False):
    cells = program(schedule)
    if one_worker:
        orders = [[cells[i] for i in schedule.topological_order]]
    else:
        orders = [[cell for cell in cells if cell.rank == rank] for rank in range(schedule.num_ranks)]
    return Execution(cells, orders, stages, rank_devices(["cpu"] * schedule.num_ranks), 1)


NAMES = [
    "naive",
    "gpipe",
    "1f1b",
    "eager-1f1b",
    "interleaved-1f1b",
    "zb-h1",
    "zb-v",
    "dualpipev",
    "pipedream",
]


@pytest.mark.parametrize("one_worker", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 5), (4, 3), (4, 8)])
def test_every_action_runs_once_after_all_it_needs(pool, name, p, m, one_worker):
    v = 2 if name in ("interleaved-1f1b", "zb-v", "dualpipev") else 1
    schedule = pp.schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
    stages = Recorder()
    run = execution(schedule, stages, one_worker)
    run.run(pool)
    plain = [
        [member for action in order for member in action.members or (action,)] for order in schedule.orders
    ]
    assert sorted(stages.done) == sorted(str(action) for order in plain for action in order)
    place = {cell: i for i, cell in enumerate(stages.done)}
    for order in plain:
        numbers = [place[str(action)] for action in order]
        assert numbers == sorted(numbers), "a rank keeps its order"
        for action in order:
            assert all(place[str(need)] < place[str(action)] for need in schedule.needs(action))
    start, end = run.times()
    assert np.all(end >= start)


OVERLAPS = pp.Schedule(
    [
        ["0F0", "0F1", "(0F2;0B0)OVERLAP_F_B", "0I1", "0B2", "0W1"],
        ["1F0", "1I0", "(1F1;1W0)OVERLAP_F_B", "(1F2;1B1)OVERLAP_F_B", "1B2"],
    ]
)


@pytest.mark.parametrize("one_worker", [False, True])
def test_an_overlap_starts_when_all_its_members_may_and_runs_them_in_turn(pool, one_worker):
    stages = Recorder()
    run = execution(OVERLAPS, stages, one_worker)
    run.run(pool)
    done = [cell for cell in stages.done if cell[0] == "0"]
    assert done == ["0F0", "0F1", "0F2", "0B0", "0I1", "0B2", "0W1"]
    cells = {str(cell.action): cell for cell in program(OVERLAPS)}
    needs = cells["(0F2;0B0)OVERLAP_F_B"].needs
    assert [str(OVERLAPS.table.action(need)) for need in needs] == ["1I0"]
    start, end = run.times()
    assert start[cells["(0F2;0B0)OVERLAP_F_B"].index] >= end[cells["1I0"].index]


def test_forwards_in_overlaps_are_among_the_forwards():
    found = forwards_only(OVERLAPS, 2)
    assert [list(map(str, order)) for order in found.orders] == [["0F0", "0F1"], ["1F0", "1F1"]]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("0F2", "the forward of stage 0, micro-batch 2"),
        ("1B1", "the backward of stage 1, micro-batch 1"),
        ("1I0", "the backward of the inputs of stage 1, micro-batch 0"),
        ("1W0", "the backward of the weights of stage 1, micro-batch 0"),
    ],
)
def test_the_note_on_an_error_says_what_kind_of_action_raised_it(pool, cell, words):
    with pytest.raises(RuntimeError, match="boom") as caught:
        execution(OVERLAPS, Recorder(fail_at=cell)).run(pool)
    assert caught.value.__notes__ == [f"pipelab: raised in action {cell}: {words}, on rank {cell[0]} (cpu)."]


@pytest.mark.parametrize("one_worker", [False, True])
def test_a_failing_action_stops_all_ranks_and_is_named(pool, one_worker):
    schedule = pp.schedule("1f1b", num_ranks=4, num_microbatches=8)
    stages = Recorder(fail_at="2F3")
    with pytest.raises(RuntimeError, match="boom") as caught:
        execution(schedule, stages, one_worker).run(pool)
    assert (
        "raised in action 2F3: the forward of stage 2, micro-batch 3, on rank 2 (cpu)"
        in caught.value.__notes__[0]
    )
    assert stages.cancelled.is_set() and "0B7" not in stages.done


def test_stop_brings_every_worker_to_rest_without_an_error(pool):
    class Slow(Recorder):
        def _note(self, cell):
            if self.cancelled.wait(0.05):
                raise Cancelled
            super()._note(cell)

    stages = Slow()
    run = execution(pp.schedule("gpipe", num_ranks=2, num_microbatches=64), stages)
    threading.Timer(0.2, run.stop).start()
    begin = time.monotonic()
    run.run(pool)
    assert run.stopped and time.monotonic() - begin < 2 and len(stages.done) < 128


def test_forwards_only_keeps_ranks_and_order():
    schedule = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
    found = forwards_only(schedule, 3)
    assert found.placement == schedule.placement and not found.has_backward and found.num_microbatches == 3
    for mine, whole in zip(found.orders, schedule.orders, strict=True):
        assert list(mine) == [a for a in whole if a.kind == "F" and a.microbatch < 3]


def test_the_threads_of_an_operation_are_the_workers_own(pool):
    before = torch.get_num_threads()
    seen = []

    class Asking(Recorder):
        def _note(self, cell):
            seen.append(torch.get_num_threads())

    execution(pp.schedule("naive", num_ranks=2, num_microbatches=1), Asking()).run(pool)
    assert set(seen) == {1} and torch.get_num_threads() == before
