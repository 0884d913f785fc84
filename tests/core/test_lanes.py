"""Further lanes: against a simulator that lets things happen one after the other, and what one can see by hand."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import KINDS, Action, Kind
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.feed import Feed, queued
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate, simulate_many

TWO = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])


class World:
    """Ranks, links, a loader, workers and a queue; whatever can begin, begins. It knows no recurrence."""

    def __init__(self, one: Schedule, costs: Costs, feed: Feed | None) -> None:
        self.one, self.costs, self.feed, self.placement = one, costs, feed, one.placement
        self.edges, self.now = one.placement.stage_edges, 0.0
        self.events: list[tuple[float, int, object]] = []
        self.count = 0
        self.times: dict[tuple[str, str], tuple[float, float]] = {}
        self.here: set[tuple[int, int, int]] = set()  # edge, direction, micro-batch: values that have arrived
        self.idle = [True] * one.num_ranks
        self.at = [0] * one.num_ranks
        self.links: dict[tuple[int, int], list] = {}
        self.sources = [s for s in range(one.num_stages) if all(t != s for _, t in self.edges)]
        self.entered: set[int] = set()
        self.queue: list[int] = []
        self.waited: dict[int, tuple[float, float]] = {}
        if feed is None:
            self.entered = set(range(one.num_microbatches))
        else:
            self.order, self.leader = taking_order(one, costs)
            self.next_load, self.loaded, self.loading = 0, None, False
            self.prepared: list[int] = []
            self.free_workers, self.next_in = feed.workers, 0
        self.run()

    def later(self, seconds: float, what) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what))

    def run(self) -> None:
        while True:
            while any([self.begin_cell(r) for r in range(self.one.num_ranks)] + [self.move_input()]):
                pass
            if not self.events:
                break
            self.now, _, what = heapq.heappop(self.events)
            what()
        assert self.at == [len(order) for order in self.one.orders], "stuck"

    def begin_cell(self, rank: int) -> bool:
        if not self.idle[rank] or self.at[rank] == len(self.one.orders[rank]):
            return False
        cell = self.one.orders[rank][self.at[rank]]
        members = cell.members or (cell,)
        if not all(self.ready(member) for member in members):
            return False
        self.idle[rank] = False
        self.at[rank] += 1
        for member in members:
            if self.feed and member.kind is Kind.F and self.leader.get(member.microbatch) == member.stage:
                self.queue.remove(member.microbatch)
                self.waited[member.microbatch] = (self.waited[member.microbatch][0], self.now)
        work = [(member.kind, self.placement.model_stages[member.stage]) for member in members]
        seconds, began = self.costs.seconds_of(work), self.now

        def end() -> None:
            self.times["compute", str(cell)] = (began, self.now)
            sends = [send for member in members for send in self.sends(member)]
            if self.costs.links.blocking:
                self.send_all(rank, sends)
                return
            for send in sends:
                self.send(send)
            self.released(rank)

        self.later(seconds, end)
        return True

    def ready(self, action: Action) -> bool:
        s, i = action.stage, action.microbatch
        if action.kind is Kind.F:
            given_in = s not in self.sources or i in self.entered
            return given_in and all(self.has(e, 0, i) for e, (_, t) in enumerate(self.edges) if t == s)
        if action.kind in (Kind.B, Kind.I):
            return all(self.has(e, 1, i) for e, (a, _) in enumerate(self.edges) if a == s)
        return True

    def has(self, edge: int, direction: int, i: int) -> bool:
        a, b = (self.placement.ranks[s] for s in self.edges[edge])
        return a == b or (edge, direction, i) in self.here

    def sends(self, action: Action) -> list[tuple]:
        found = []
        for e, (a, b) in enumerate(self.edges):
            ranks = self.placement.ranks[a], self.placement.ranks[b]
            if ranks[0] == ranks[1]:
                continue
            if action.kind is Kind.F and a == action.stage:
                found.append((e, 0, action, ranks))
            if action.kind in (Kind.B, Kind.I) and b == action.stage:
                found.append((e, 1, action, ranks[::-1]))
        return found

    def seconds(self, send: tuple) -> float:
        edge, _, _, (source, target) = send
        outputs = self.costs.bytes.outputs if self.costs.bytes else (0,) * self.costs.num_stages
        return self.costs.links.seconds(
            source, target, outputs[self.placement.model_stages[self.edges[edge][0]]]
        )

    def send(self, send: tuple) -> None:
        if self.costs.links.serial:
            waiting = self.links.setdefault(send[3], [])
            waiting.append(send)
            if len(waiting) == 1:
                self.next_on_link(send[3])
        else:
            self.later(self.seconds(send), lambda: self.arrive(send))

    def next_on_link(self, link: tuple[int, int]) -> None:
        send, began = self.links[link][0], self.now

        def end() -> None:
            self.arrive(send, began)
            self.links[link].pop(0)
            if self.links[link]:
                self.next_on_link(link)

        self.later(self.seconds(send), end)

    def send_all(self, rank: int, sends: list[tuple]) -> None:
        if not sends:
            return self.released(rank)
        began = self.now

        def end() -> None:
            self.arrive(sends[0], began)
            self.send_all(rank, sends[1:])

        return self.later(self.seconds(sends[0]), end)

    def arrive(self, send: tuple, began: float | None = None) -> None:
        edge, direction, action, _ = send
        self.here.add((edge, direction, action.microbatch))
        if began is not None:
            self.times["copy", f"{action} over {edge}"] = (began, self.now)

    def released(self, rank: int) -> None:
        self.idle[rank] = True
        own = any(KINDS[k] is Kind.U for k in self.one.table.kind)
        if self.at[rank] < len(self.one.orders[rank]) or self.costs.update is None or own:
            return
        if self.one.has_backward:
            self.idle[rank] = False
            stages: dict[int, int] = {}
            for s in self.placement.stages_of(rank):
                stages.setdefault(self.placement.model_stages[s], s)
            self.update(rank, sorted((s, n) for n, s in stages.items()))

    def update(self, rank: int, left: list[tuple[int, int]]) -> None:
        if left:
            (stage, model_stage), began = left[0], self.now

            def end() -> None:
                self.times["update", f"{rank} {stage}"] = (began, self.now)
                self.update(rank, left[1:])

            self.later(self.costs.update[model_stage], end)

    def move_input(self) -> bool:
        """The loader hands over, a worker puts into the queue, the loader goes on: one thing at a time."""
        feed = self.feed
        if feed is None:
            return False
        if self.loaded is not None and self.free_workers:
            item, began, self.loaded = self.loaded, self.now, None
            self.free_workers -= 1

            def prepared() -> None:
                self.times["prepare", str(item)] = (began, self.now)
                self.prepared.append(item)

            self.later(per_microbatch(feed.prepare, item), prepared)
            return True
        if self.loaded is None and not self.loading and self.next_load < len(self.order):
            item, began, self.loading = self.order[self.next_load], self.now, True
            self.next_load += 1

            def loaded() -> None:
                self.times["load", str(item)] = (began, self.now)
                self.loaded, self.loading = item, False

            self.later(per_microbatch(feed.load, item), loaded)
            return True
        come = self.next_in < len(self.order) and self.order[self.next_in] in self.prepared
        if come and len(self.queue) < feed.queue:
            item = self.order[self.next_in]
            self.next_in += 1
            self.free_workers += 1
            self.queue.append(item)
            self.waited[item] = (self.now, self.now)
            self.entered.add(item)
            return True
        return False


def per_microbatch(value, i: int) -> float:
    return value[i] if isinstance(value, tuple) else value


def taking_order(one: Schedule, costs: Costs) -> tuple[list[int], dict[int, int]]:
    """The micro-batches in the order in which they would be taken, and the stage that takes each first."""
    world = World(one, costs, None)
    depth: dict[Action, int] = {}
    cells = {member: cell for order in one.orders for cell in order for member in cell.members or (cell,)}
    before = {b: a for order in one.orders for a, b in pairwise(order)}

    def deep(cell: Action) -> int:
        if cell not in depth:
            needs = [cells[need] for need in one.needs(cell)] + ([before[cell]] if cell in before else [])
            depth[cell] = max((deep(need) + 1 for need in needs), default=0)
        return depth[cell]

    found = []
    for rank, order in enumerate(one.orders):
        for place, cell in enumerate(order):
            for member in cell.members or (cell,):
                if member.kind is Kind.F and member.stage in world.sources:
                    start = world.times["compute", str(cell)][0]
                    found.append((start, deep(cell), rank, place, member.microbatch, member.stage))
    leader: dict[int, int] = {}
    for *_, i, stage in sorted(found):
        leader.setdefault(i, stage)
    return list(leader), leader


def times_of(trace) -> dict[tuple[str, str], tuple[float, float]]:
    """The rows of a trace, named as in `World`; transfers are numbered by hand."""
    found = {}
    table, cells = trace.schedule.table, trace.schedule.table.num_cells
    texts = table.texts()
    sent: dict[str, int] = {}
    for row in range(len(trace.start)):
        lane = trace.lanes[trace.lane[row]]
        action = f"{trace.stage[row]}{KINDS[trace.kind[row]].value}{trace.microbatch[row]}"
        if row < cells:
            name = "compute", texts[row]
        elif lane == "copy":
            sent[action] = sent.get(action, -1) + 1
            name = "copy", f"{action} number {sent[action]}"
        elif lane == "update":
            name = "update", f"{trace.rank[row]} {trace.stage[row]}"
        else:
            name = lane.split(":")[0], str(trace.microbatch[row])
        found[name] = (float(trace.start[row]), float(trace.end[row]))
    return found


def numbered(times: dict) -> dict:
    """Name transfers by how many the same action sent before, in the order of the edges."""
    found, sent = {}, {}
    copies = [(key, value) for key, value in times.items() if key[0] == "copy"]
    for (_, text), value in sorted(copies, key=lambda x: int(x[0][1].split()[-1])):
        action = text.split()[0]
        sent[action] = sent.get(action, -1) + 1
        found["copy", f"{action} number {sent[action]}"] = value
    return {key: value for key, value in times.items() if key[0] != "copy"} | found


def make_random_feed(rng: random.Random, m: int) -> Feed:
    def seconds():
        some = [rng.choice([0.0, 0.5, 1.0, 3.0, rng.random() * 3]) for _ in range(m)]
        return rng.choice([0.0, rng.random() * 2, some])

    return Feed(seconds(), seconds(), workers=rng.randint(1, 4), queue=rng.randint(1, 4))


def widest(one: Schedule) -> int:
    return max(len(cell.members or (cell,)) for order in one.orders for cell in order)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_every_lane_agrees_with_a_world_in_which_things_happen(random_schedule, random_costs, a, b, c):
    rng, one = random.Random(c), random_schedule(a)
    costs = random_costs(b, one)
    links = replace(costs.links, serial=rng.random() < 0.5, blocking=rng.random() < 0.3)
    costs = replace(costs, links=links)
    feed = make_random_feed(rng, one.num_microbatches) if rng.random() < 0.6 else None
    if feed and feed.queue < widest(one):
        feed = replace(feed, queue=widest(one))
    trace, world = simulate(one, costs, feed=feed), World(one, costs, feed)
    assert times_of(trace) == numbered(world.times)
    assert trace.costs == costs and trace.feed == feed
    if feed:
        waited = queued(trace)
        assert waited.microbatch.tolist() == list(world.waited)
        assert list(zip(waited.entered, waited.left, strict=True)) == list(world.waited.values())
        assert waited.rank.tolist() == [one.placement.ranks[world.leader[i]] for i in world.waited]
    else:
        assert simulate_many(one, [costs]).tolist() == [trace.makespan]


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_many_costs_with_different_lanes_give_what_each_gives_alone(random_schedule, random_costs, seed):
    one = random_schedule(seed)
    many = []
    for k in range(8):
        costs = random_costs(seed + k, one)
        many.append(replace(costs, links=replace(costs.links, serial=k % 3 == 0, blocking=k % 4 == 0)))
    assert simulate_many(one, many).tolist() == [simulate(one, costs).makespan for costs in many]


def with_links(num_stages: int, **links) -> Costs:
    costs = Costs.uniform(num_stages)
    held = StageBytes((0,) * num_stages, (0,) * num_stages, (10,) * num_stages)
    return replace(costs, bytes=held, links=Links(**links))


def test_a_serial_link_carries_one_transfer_at_a_time():
    trace = simulate(TWO, with_links(2, bandwidth=5, serial=True))
    found = times_of(trace)
    assert found["copy", "0F0 number 0"] == (1, 3) and found["copy", "0F1 number 0"] == (3, 5)
    assert found["compute", "1F1"][0] == 6  # after 1B0 (4 to 6); free links give the same
    beside = simulate(TWO, with_links(2, bandwidth=5))
    assert trace.makespan == beside.makespan and beside.lanes == ("compute",)
    slow = with_links(2, bandwidth=2, serial=True)
    assert times_of(simulate(TWO, slow))["copy", "0F1 number 0"] == (6, 11)


def test_the_two_directions_of_a_link_do_not_wait_for_each_other():
    found = times_of(simulate(TWO, with_links(2, bandwidth=1, serial=True)))
    assert found["copy", "0F1 number 0"] == (11, 21) and found["copy", "1B0 number 0"] == (14, 24)


def test_a_blocking_send_occupies_its_sender_and_no_one_else():
    trace = simulate(TWO, with_links(2, bandwidth=5, blocking=True))
    found = times_of(trace)
    assert found["compute", "0F0"] == (0, 1) and found["copy", "0F0 number 0"] == (1, 3)
    assert found["compute", "0F1"] == (3, 4)
    assert found["compute", "1F0"] == (3, 4) and found["compute", "1B0"] == (4, 6)
    assert found["copy", "1B0 number 0"] == (6, 8) and found["compute", "1F1"] == (8, 9)
    rows = trace.lane == trace.lanes.index("copy")
    assert trace.rank[rows].tolist() == [0, 0, 1, 1]
    assert trace.report().busy == (6, 6)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved-1f1b"])
@pytest.mark.parametrize(("p", "m", "v"), [(1, 1, 1), (1, 3, 1), (2, 1, 1), (4, 3, 1), (3, 7, 1), (2, 4, 2)])
def test_free_transfers_take_the_same_turns_whether_serial_or_blocking(name, p, m, v):
    if v > 1 and name != "interleaved-1f1b":
        return
    one = schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
    plain = simulate(one, Costs.uniform(p * v))
    for switch in ("serial", "blocking"):
        found = simulate(one, replace(Costs.uniform(p * v), links=Links(**{switch: True})))
        cells = one.table.num_cells
        assert found.start[:cells].tolist() == plain.start.tolist()
        hops = 2 * m * (p * v - 1) if p > 1 else 0
        assert len(found.start) == cells + hops


def test_turns_never_make_a_step_shorter(random_schedule, random_costs):
    for seed in range(40):
        one = random_schedule(seed)
        costs = random_costs(seed, one)
        plain, serial, blocking = (
            simulate(one, replace(costs, links=replace(costs.links, **switch))).end[: one.table.num_cells]
            for switch in ({}, {"serial": True}, {"blocking": True})
        )
        assert (plain <= serial).all() and (plain <= blocking).all()


def test_a_link_that_is_faster_than_the_cells_changes_nothing_when_it_is_serial():
    one = schedule("1f1b", num_ranks=4, num_microbatches=8)
    free, serial = (
        simulate(one, replace(Costs.uniform(4), links=Links(1.0, serial=on))).end[:64] for on in (False, True)
    )
    assert free.tolist() == serial.tolist()


@pytest.mark.parametrize("update", [0.0, 2.0])
def test_an_update_ends_the_step_of_every_rank(update):
    one = schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
    plain, trace = simulate(one, Costs.uniform(4)), simulate(one, Costs.uniform(4, update=update))
    rows = np.flatnonzero(trace.lane == trace.lanes.index("update"))
    assert trace.lanes == ("compute", "update") and trace.stage[rows].tolist() == [0, 2, 1, 3]
    assert trace.microbatch[rows].tolist() == [3] * 4 and {KINDS[k] for k in trace.kind[rows]} == {Kind.U}
    for rank in (0, 1):
        mine = rows[trace.rank[rows] == rank]
        last = plain.end[plain.rank == rank].max()
        assert trace.start[mine].tolist() == [last, last + update]
    assert trace.makespan == plain.makespan + 2 * update


def test_an_update_is_added_only_where_it_belongs():
    costs = Costs.uniform(1, update=5)
    assert simulate(Schedule([["0F0"]]), costs).makespan == 1  # no backward
    assert simulate(Schedule([["0F0", "0B0", "0U0"]]), costs).lanes == ("compute",)  # its own
    assert simulate(Schedule([["0F0", "0B0"]]), Costs.uniform(1)).lanes == ("compute",)
    assert simulate(Schedule([["0F0", "0B0"]]), costs).makespan == 8


def test_replicas_are_updated_on_their_ranks_and_those_of_one_rank_once():
    both = Placement((0, 1, 2, 2, 1, 0), chains=2, tied={3: 0, 4: 1, 5: 2})
    cells = [["0F0", "0B0", "5F1", "5B1"], ["1F0", "1B0", "4F1", "4B1"], ["2F0", "2B0", "3F1", "3B1"]]
    orders = [[row[0], row[2], row[1], row[3]] for row in cells]
    trace = simulate(Schedule(orders, both), Costs((1,) * 3, (1,) * 3, (1,) * 3, update=(1, 20, 300)))
    rows = np.flatnonzero(trace.lane == trace.lanes.index("update"))
    found = list(zip(trace.rank[rows], trace.stage[rows], trace.durations[rows], strict=True))
    assert found == [(0, 0, 1), (0, 5, 300), (1, 1, 20), (2, 2, 300), (2, 3, 1)]
    assert trace.microbatch[rows].tolist() == [0, 1, 1, 0, 1]


def test_a_stage_that_is_no_replica_is_updated_at_its_own_cost():
    half = Placement((0, 1, 1, 0), chains=2, tied={3: 1})
    one = Schedule([["0F0", "3F1", "3B1", "0B0"], ["2F1", "1F0", "1B0", "2B1"]], half)
    trace = simulate(one, Costs((1,) * 3, (1,) * 3, (1,) * 3, update=(1, 20, 300)))
    rows = np.flatnonzero(trace.lane == trace.lanes.index("update"))
    found = list(zip(trace.stage[rows], trace.durations[rows], strict=True))
    assert found == [(0, 1), (3, 20), (1, 20), (2, 300)]


def test_a_compiled_schedule_is_kept():
    one, costs = schedule("1f1b", num_ranks=2, num_microbatches=2), Costs.uniform(2, update=1)
    simulate(one, costs)
    (kept,) = one.workload.compiled.values()
    simulate(one, costs)
    assert list(one.workload.compiled.values()) == [kept]
