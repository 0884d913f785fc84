"""The critical path, and why a rank waits: by hand, and as laws of any run."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action, Kind
from pipelab.core.costs import Costs, Links
from pipelab.core.feed import Feed
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError

TWO = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]], name="two")
ONE = Schedule([["0F0", "0B0"], ["1F0", "1B0"]], name="one")


def measured():
    """Rank 0 computes from 0 to 2 and from 8 to 10, rank 1 from 3 to 4 and from 4 to 7."""
    return Trace.from_times(ONE, [0, 8, 3, 4], [2, 10, 4, 7], clock="wall")


def test_the_path_of_two_ranks_by_hand():
    path = simulate(TWO, Costs.uniform(2)).critical_path()
    assert path.actions == ("0F0", "1F0", "1B0", "1F1", "1B1", "0B1")
    assert path.rank.tolist() == [0, 1, 1, 1, 1, 0]
    assert path.start.tolist() == [0, 1, 2, 4, 5, 7] and path.end.tolist() == [1, 2, 4, 5, 7, 9]
    assert path.why == (
        "waits for nothing",
        "needs 0F0 of rank 0",
        "comes after 1F0 on its rank",
        "comes after 1B0 on its rank",
        "comes after 1F1 on its rank",
        "needs 1B1 of rank 1",
    )
    assert not path.wait.any() and len(path) == 6


def test_transfers_lie_between_the_rows():
    path = simulate(TWO, Costs.uniform(2, latency=0.5)).critical_path()
    assert path.wait.tolist() == [0, 0.5, 0, 0, 0, 0.5]
    assert path.why[-1] == "needs 1B1 of rank 1, 500 ms on the way"
    assert str(path).splitlines()[-1] == "10 s: 9 s of work, 1 s of transfers"


def test_serial_links_make_transfers_rows_that_take_turns():
    """Forwards of 1 over a link that takes 3: the second transfer waits for the first."""
    one = schedule("forward-only", num_ranks=2, num_microbatches=2)
    costs = Costs((1, 1), (0, 0), (0, 0), links=Links(3.0, serial=True))
    path = simulate(one, costs).critical_path()
    assert path.actions == ("0F0", "the transfer of 0F0", "the transfer of 0F1", "1F1")
    assert path.why == (
        "waits for nothing",
        "follows 0F0",
        "comes after the transfer of 0F0",
        "needs the transfer of 0F1 from rank 0",
    )
    assert str(path).splitlines()[-1] == "8 s: 2 s of work, 6 s of transfers"


def test_a_blocking_send_occupies_its_rank():
    one = schedule("forward-only", num_ranks=2, num_microbatches=2)
    trace = simulate(one, Costs((1, 1), (0, 0), (0, 0), links=Links(3.0, blocking=True)))
    path = trace.critical_path()
    assert path.actions == ("0F0", "the transfer of 0F0", "0F1", "the transfer of 0F1", "1F1")
    assert path.why[2] == "comes after the transfer of 0F0"
    assert (
        trace.why(0, 2).sentence
        == "Rank 0 is busy with the transfer of 0F0, from 1 s to 4 s: it follows 0F0."
    )


def test_updates_end_the_path():
    path = simulate(ONE, Costs.uniform(2, update=0.5)).critical_path()
    assert path.actions[-2:] == ("0B0", "0U0") and path.why[-1] == "comes after 0B0 on its rank"
    assert path.end[-1] == 6.5


def test_a_feed_can_be_the_path():
    """A worker that takes 5 for each of three micro-batches, loaded in 1: 1 + 15, then the last goes through."""
    one = schedule("forward-only", num_ranks=2, num_microbatches=3)
    trace = simulate(one, Costs((1, 1), (0, 0), (0, 0)), feed=Feed(load=1.0, prepare=5.0))
    path = trace.critical_path()
    assert path.actions == (
        "the loading of micro-batch 0",
        "the preparation of micro-batch 0",
        "the preparation of micro-batch 1",
        "the preparation of micro-batch 2",
        "0F2",
        "1F2",
    )
    assert path.why[1:3] == (
        "waits for the loading of micro-batch 0",
        "comes after the preparation of micro-batch 0",
    )
    assert str(path).splitlines()[-1] == "18 s: 2 s of work, 16 s of loading and preparing"
    assert trace.why(0, 5).sentence == (
        "Rank 0 waits 6 s for 0F0, from 0 s to 6 s: it waits for the preparation of micro-batch 0, "
        "which waits for the loading of micro-batch 0."
    )


def test_a_full_queue_is_seen_through_to_what_kept_it_full():
    """A backward of 16 keeps a queue of 1 full, so that micro-batch 3 is prepared from 20 to 23, too late for 22."""
    one = Schedule([["0F0", "0B0", "0F1", "0F2", "0F3", "0B1", "0B2", "0B3"]])
    trace = simulate(one, Costs((1,), (8,), (8,)), feed=Feed(prepare=3.0, queue=1))
    path = trace.critical_path()
    assert path.actions[2:6] == ("0F0", "0B0", "the preparation of micro-batch 3", "0F3")
    assert path.why[4] == "finds no room in the queue until 0B0 ends" and path.start[4] == 20
    assert trace.why(0, 22.5).sentence == (
        "Rank 0 waits 1 s for 0F3, from 22 s to 23 s: it waits for the preparation of micro-batch 3."
    )


def test_a_transfer_to_a_cell_that_also_takes_an_input_is_on_the_way():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"], ["1F0", "1B0", "1F1", "1B1"]])
    trace = simulate(one, Costs.uniform(2, latency=0.5), feed=Feed())
    path = trace.critical_path()
    assert path.actions[5] == "(0F1;0B0)OVERLAP_F_B" and path.wait[5] == 0.5
    assert path.why[5] == "needs 1B0 of rank 1, 500 ms on the way"


def test_measured_runs_have_time_in_between():
    path = measured().critical_path()
    assert path.actions == ("0F0", "1F0", "1B0", "0B0") and path.wait.tolist() == [0, 1, 0, 1]
    assert str(path).splitlines()[-1] == "10 s: 8 s of work, 2 s of transfer, waiting and overhead"


def test_costs_that_did_not_make_the_times_explain_nothing():
    trace = replace(measured(), costs=Costs.uniform(2))
    assert trace.critical_path().wait.tolist() == [0, 1, 0, 1]
    assert "transfer, waiting and overhead" in trace.why(0, 5).sentence


def test_rows_of_unknown_making_follow_what_their_rank_did_last():
    update = {
        "rank": [0],
        "lane": [1],
        "kind": [4],
        "stage": [0],
        "microbatch": [0],
        "start": [11],
        "end": [12],
    }
    trace = Trace.from_times(
        ONE, [0, 8, 3, 4], [2, 10, 4, 7], clock="wall", lanes=("compute", "update"), others=update
    )
    path = trace.critical_path()
    assert path.actions[-2:] == ("0B0", "0U0") and path.wait.tolist() == [0, 1, 0, 1, 1]


def test_why_in_a_gap_names_the_chain():
    found = simulate(TWO, Costs.uniform(2)).why(0, 3)
    assert found.sentence == ("Rank 0 waits 2 s for 0B0, from 2 s to 4 s: it needs 1B0 of rank 1.")
    assert found.rows.tolist() == [2, 5] and found.why == (
        "needs 1B0 of rank 1",
        "comes after 1F0 on its rank",
    )
    lines = str(found).splitlines()
    assert lines[1].split() == ["action", "rank", "start", "end", "why"]
    assert lines[2].startswith("0B0") and lines[3].startswith("1B0")


def test_why_tells_at_most_four_links():
    one = schedule("gpipe", num_ranks=8, num_microbatches=1)
    found = simulate(one, Costs.uniform(8)).why(0, 2)
    assert found.sentence.endswith(
        "it needs 1B0 of rank 1, which needs 2B0 of rank 2, which needs 3B0 of rank 3, "
        "which needs 4B0 of rank 4, and so on."
    )
    trace = found._trace
    assert [str(trace.schedule.table.action(row)) for row in found.rows[:2]] == ["0B0", "1B0"]
    assert trace.start[found.rows[-1]] <= 1 < trace.end[found.rows[-1]] or trace.start[found.rows[-1]] == 1


def test_why_within_an_action_before_the_first_and_after_the_last():
    trace = simulate(TWO, Costs.uniform(2))
    assert (
        trace.why(1, 3).sentence
        == "Rank 1 is busy with 1B0, from 2 s to 4 s: it comes after 1F0 on its rank."
    )
    assert trace.why(0, 0).sentence == "Rank 0 is busy with 0F0, from 0 s to 1 s: it waits for nothing."
    assert trace.why(1, 0.5).sentence == "Rank 1 waits 1 s for 1F0, from 0 s to 1 s: it needs 0F0 of rank 0."
    assert trace.why(1, 8).sentence == (
        "Rank 1 ended its last action, 1B1, at 7 s. The step goes on until 9 s: 0B1 of rank 0."
    )
    assert trace.why(0, 9).sentence == "Rank 0 ended its last action, 0B1, at 9 s. The step ends then."
    assert trace.why(1, 7).rows.tolist() == [3]


def test_a_moment_at_the_end_of_an_action_is_after_it():
    trace = simulate(TWO, Costs.uniform(2))
    assert trace.why(1, 2).rows.tolist() == [5] and trace.why(0, 2).sentence.startswith("Rank 0 waits 2 s")


def test_why_in_a_measured_gap_says_what_is_not_explained():
    assert measured().why(0, 5).sentence == (
        "Rank 0 waits 6 s for 0B0, from 2 s to 8 s: it needs 1B0 of rank 1, which comes after 1F0 on its rank, "
        "which needs 0F0 of rank 0. 2 s of that is transfer, waiting and overhead."
    )


@pytest.mark.parametrize(
    ("rank", "time", "message"),
    [
        (2, 0, "rank is 2; two has 2 ranks, counted from 0"),
        (-1, 0, "rank is -1"),
        (0, -0.1, r"time is -0.1; two goes from 0 s to 9 s. Give a moment in between"),
        (0, 9.1, "time is 9.1"),
        (0, float("nan"), "time is nan"),
        (0, "3", "time is '3'"),
        (0, True, "time is True"),
    ],
)
def test_impossible_moments_are_refused(rank, time, message):
    with pytest.raises(PipelabError, match=message):
        simulate(TWO, Costs.uniform(2)).why(rank, time)


def test_a_rank_is_an_integer():
    with pytest.raises(TypeError, match="rank must be an integer"):
        simulate(TWO, Costs.uniform(2)).why(0.5, 0)


def test_values_are_equal_copied_and_shown():
    trace = simulate(TWO, Costs.uniform(2))
    path, found = trace.critical_path(), trace.why(0, 3)
    for value in (path, found):
        assert copy.deepcopy(value) == value == pickle.loads(pickle.dumps(value)) and hash(value) == hash(
            value
        )
        assert value != "value"
    assert path != simulate(TWO, Costs.uniform(2, 2.0)).critical_path() and found != trace.why(0, 3.5)
    assert repr(path) == "<CriticalPath of two, 9 s: 9 s of work>"
    assert list(path.to_frame().columns) == ["action", "rank", "start [s]", "end [s]", "wait [s]", "why"]
    named = trace.with_label("<b>").critical_path()
    assert "<b>" not in named._repr_html_() and "0B0" in found._repr_html_()


def test_long_paths_are_elided_in_the_middle():
    path = simulate(schedule("1f1b", num_ranks=2, num_microbatches=50), Costs.uniform(2)).critical_path()
    lines = str(path).splitlines()
    assert len(path) == 102 and len(lines) == 1 + 40 + 1 + 1 and lines[21].split() == ["...", "62", "more"]


def random_run(random_schedule, random_costs, seed, other):
    """A simulation with any of: latency, bandwidth, serial or blocking links, updates, a feed."""
    rng = random.Random(seed * 7919 + other)
    one = random_schedule(seed)
    costs = random_costs(other, one)
    links = replace(costs.links, **rng.choice([{}, {"serial": True}, {"blocking": True}]))
    feed = (
        Feed(rng.random(), rng.random() * 3, rng.randint(1, 3), rng.randint(2, 4))
        if rng.random() < 0.4
        else None
    )
    return simulate(one, replace(costs, links=links), feed=feed)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_the_path_touches_and_sums_to_the_makespan(random_schedule, random_costs, seed, other):
    trace = random_run(random_schedule, random_costs, seed, other)
    path = trace.critical_path()
    assert path.start[0] == 0 and path.end[-1] == trace.makespan and (path.wait >= 0).all()
    assert (path.end - path.start + path.wait).sum() == pytest.approx(trace.makespan)
    lanes = np.array(trace.lanes)[trace.lane[path.rows]]
    links, held = trace.costs.links, trace.costs.bytes
    placement = trace.schedule.placement
    for k in range(1, len(path)):
        if (
            path.wait[k] > 1e-12
        ):  # only a transfer between two ranks lies between: exactly as long as its link takes
            a, b = path.rows[k - 1], path.rows[k]
            assert lanes[k - 1] == lanes[k] == "compute" and trace.rank[a] != trace.rank[b]
            sizes = {0.0} if held is None else {held.outputs[s] for s in placement.model_stages}
            took = [links.seconds(int(trace.rank[a]), int(trace.rank[b]), size) for size in sizes]
            assert any(path.wait[k] == pytest.approx(seconds) for seconds in took)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_each_of_two_neighbours_on_the_path_is_a_cause_of_the_other(
    random_schedule, random_costs, all_prerequisites, seed, other
):
    """Written out once more: the row before is the one before on the rank, or one that gives what is needed."""
    one = random_schedule(seed)
    trace = simulate(one, replace(random_costs(other, one), update=None))
    path = trace.critical_path()
    cells = [one.table.action(row) for row in path.rows.tolist()]
    for k in range(1, len(cells)):
        before, cell = cells[k - 1], cells[k]
        order = one.orders[trace.rank[path.rows[k]]]
        is_neighbour = cell != order[0] and order[order.index(cell) - 1] == before
        given = {
            a for m in cell.members or (cell,) for need in all_prerequisites(m, one.placement) for a in need
        }
        assert is_neighbour or given & set(before.members or (before,))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_action_of_the_path_that_takes_longer_lengthens_the_step(
    random_schedule, random_costs, seed, other
):
    """With free links: lengthen any one cell of the path by 1, and the step is 1 longer."""
    one = random_schedule(seed)
    trace = simulate(one, replace(random_costs(other, one), links=Links(), update=None))
    recurrence = one.recurrence
    for row in trace.critical_path().rows.tolist():
        seconds = np.append(trace.durations, 0.0)
        seconds[row] += 1
        _, end = recurrence.times(seconds[recurrence.work], 0.0)
        assert end.max() == pytest.approx(trace.makespan + 1)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_why_covers_the_whole_gap_and_every_moment_has_an_answer(random_schedule, random_costs, seed, other):
    trace = random_run(random_schedule, random_costs, seed, other)
    rng = random.Random(seed)
    for _ in range(8):
        rank, time = rng.randrange(trace.num_ranks), rng.random() * trace.makespan
        found = trace.why(rank, time)
        if " is busy with " in found.sentence:
            (row,) = found.rows
            assert trace.rank[row] == rank and trace.start[row] <= time < trace.end[row]
        elif " waits " in found.sentence:
            rows = found.rows
            assert trace.rank[rows[0]] == rank and trace.start[rows[0]] > time
            assert (trace.start[rows[1:]] <= trace.start[rows[:-1]]).all()
            assert trace.start[rows[-1]] <= time  # it ran already, or the step had just begun
        else:
            working = trace.working_rows
            assert trace.end[working][trace.rank[working] == rank].max() <= time + 1e-12


def test_the_path_of_an_overlap_names_its_members():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]])
    path = simulate(one, Costs.uniform(1)).critical_path()
    assert path.actions[1] == "(0F1;0B0)OVERLAP_F_B"
    assert Action.parse(path.actions[1]).kind is Kind.OVERLAP


def test_planted_times_are_seen():
    """A cell moved by hand breaks the chain: the path then has time in between."""
    trace = simulate(TWO, Costs.uniform(2))
    late = trace.start.copy(), trace.end.copy()
    late[0][3] += 1
    late[1][3] += 1
    path = replace(trace, start=late[0], end=late[1]).critical_path()
    assert path.wait.tolist() == [0, 0, 0, 0, 0, 1] and "overhead" in str(path)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
def test_where_trailing_actions_take_no_time_the_last_is_the_last_in_order(name):
    one = schedule(name, num_ranks=4, num_microbatches=8)
    trace = simulate(one, Costs((1,) * 4, (0,) * 4, (0,) * 4))
    for rank in range(4):
        last = one.orders[rank][-1]
        assert f"ended its last action, {last}, at" in trace.why(rank, trace.makespan).sentence
    path = trace.critical_path()
    assert path.actions[-1] in {str(order[-1]) for order in one.orders} and path.start[0] == 0


@pytest.mark.parametrize("links", [Links(), Links(serial=True), Links(blocking=True)])
@pytest.mark.parametrize("feed", [None, Feed()])
@pytest.mark.parametrize("update", [None, 0])
def test_where_nothing_takes_time_the_path_still_goes_from_a_beginning_to_an_end(links, feed, update):
    one = schedule("1f1b", num_ranks=3, num_microbatches=4)
    costs = replace(Costs.uniform(3, 0, 0, 0, update=update), links=links)
    trace = simulate(one, costs, feed=feed)
    path = trace.critical_path()
    assert path.actions[-1] == ("0B3" if update is None else "0U3") and str(path).endswith("0 s: 0 s of work")
    assert path.why[0] == "waits for nothing" and len(path) >= 8
    for rank in range(3):
        found = trace.why(rank, 0)
        last = f"{rank}B3" if update is None else f"{rank}U3"
        if links.blocking and update is None and rank:
            last = f"the transfer of {last}"  # which occupies its sender
        assert found.sentence == f"Rank {rank} ended its last action, {last}, at 0 s. The step ends then."
        assert str(found) == found.sentence and found._repr_html_() == f"<p>{found.sentence}</p>"


def test_forwards_that_take_no_time_end_on_the_last_rank():
    path = simulate(
        schedule("forward-only", num_ranks=3, num_microbatches=2), Costs.uniform(3, 0)
    ).critical_path()
    assert path.actions == ("0F0", "1F0", "2F0", "2F1")


def test_a_gap_without_anything_unexplained_says_nothing_of_it():
    virtual = Trace.from_times(ONE, [0, 4, 1, 2], [1, 6, 2, 4], clock="virtual")
    said = "Rank 0 waits 3 s for 0B0, from 1 s to 4 s: it needs 1B0 of rank 1, which comes after 1F0 on its rank."
    assert virtual.why(0, 3).sentence == said


def test_why_goes_on_to_the_rank_that_had_work_all_the_while():
    third = (1.0, 1.0, 1.0, 2.0)
    trace = simulate(schedule("1f1b", num_ranks=4, num_microbatches=8), Costs(third, third, third))
    found = trace.why(0, 17)
    assert found.sentence == (
        "Rank 0 waits 3 s for 0B1, from 16 s to 19 s: it needs 1B1 of rank 1, which needs 2B1 of rank 2. "
        "2B1 in turn needs 3B1 of rank 3; rank 3 was busy without a pause from 3 s to 15 s."
    )
    assert [int(trace.rank[row]) for row in found.rows] == [0, 1, 2, 3]
    assert trace.why(0, 5).sentence.endswith(
        "which comes after 3F0 on its rank."
    )  # nobody was busy all the while
