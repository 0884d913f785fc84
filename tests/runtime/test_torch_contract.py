"""What pipelab says about torch.distributed.pipelining is true: tables are carried both ways and really run.

All jobs run in one launcher, each on gloo processes of its own (`torch_pipelining`); the tests look at what they left.
"""

from __future__ import annotations

import json

import pytest

import pipelab as pp
from tests.core.conftest import make_random_schedule
from tests.runtime import torch_pipelining
from tests.runtime.torch_pipelining import Job

BY_HAND = pp.Schedule.from_csv(
    "0F0,0F1,3F0,(3F1;3B0)OVERLAP_F_B,0B0,3I1,0F2,3W1,0I1,3F2,3B2,0W1,0B2\n"
    "1F0,2F0,1F1,2F1,2B0,1B0,1F2,2F2,2I1,1I1,(2W1;2I2)OVERLAP_F_B,1W1,1B2,2W2\n",
    name="by hand",
)
EACH = 3
"""Of how many random tables a verdict is tried."""


def named(name, num_microbatches=8):
    return pp.schedule(name, num_ranks=2, num_microbatches=num_microbatches)


def one_chain(schedule):
    return schedule.placement.chains == 1 and schedule.placement.edges is None and not schedule.placement.tied


def random_tables():
    """Two ranks or one, any placement of one chain, B or I and W, overlaps: half of them not in the order of torch."""
    found = {"exact": [], "lowerable": [], "no": []}
    for seed in range(3000):
        one = make_random_schedule(seed)
        is_fit = one.num_ranks <= 2 and one.num_stages > 1 and one_chain(one) and one.has_backward
        if is_fit and "U" not in one.to_text():
            found[one.runs_on_torch.verdict].append(one)
        if min(map(len, found.values())) >= EACH:
            break
    return [one for same in found.values() for one in same[:EACH]]


INTERLEAVED = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=8, stages_per_rank=2)
RUN = {
    **{name: named(name) for name in ("zb-v", "dualpipev", "zb-h1", "1f1b", "looped-bfs")},
    "interleaved-1f1b": INTERLEAVED,
    "by hand": BY_HAND,
    "m < p": pp.schedule("gpipe", num_ranks=2, num_microbatches=1),
    "one rank": pp.schedule("1f1b", num_ranks=1, num_microbatches=3),
    "neighbours on one rank": pp.Schedule.from_csv("0F0,1F0,0F1,1F1,1B0,0B0,1B1,0B1\n2F0,2B0,2F1,2B1"),
    "ranks turned": pp.Schedule.from_csv("1F0,1F1,1B1,1B0\n0F0,0F1,0B0,0B1"),
}
REFUSED = {
    "forward-only": (named("forward-only"), "Invalid backward microbatches"),
    "last stage out of order": (pp.Schedule.from_csv("0F1,0F0,0B1,0B0\n1F1,1F0,1B1,1B0"), ""),
    "lost loss": (pp.Schedule.from_csv("0F1,0B1,0F0,0B0\n1F1,1B1,1F0,1B0"), "Loss for microbatch 1"),
}
RANDOM = random_tables()
PROFILED = INTERLEAVED


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For each schedule what torch made of it, and the folder with what was left."""
    folder = tmp_path_factory.mktemp("torch") / "jobs"
    tables = [*RUN.values(), *(one for one, _ in REFUSED.values()), *RANDOM]
    jobs = [Job(one.to_csv(), one.placement.ranks, one.num_microbatches) for one in tables]
    jobs.append(Job(PROFILED.to_csv(), PROFILED.placement.ranks, 8, profile=True, width=768))
    results = torch_pipelining.run(jobs, folder)
    of_tables = zip(
        map(id, tables), zip(jobs, results, strict=True), strict=False
    )  # the last job is no table's
    return dict(of_tables), [folder / f"{len(tables)}.{rank}.json" for rank in (0, 1)]


def failure_of(job, results):
    """Empty if every gradient is that of the uncut model, else what went wrong."""
    failures = [result for result in results if isinstance(result, str)]
    if failures:
        return "\n".join(failures)
    got: dict[str, list[float]] = {}
    for result in results:
        got |= result
    want = torch_pipelining.whole_gradients(job)
    if set(got) != set(want):
        return f"gradients of {sorted(set(got) ^ set(want))} are not in both"
    worst = max(abs(a - b) for name in want for a, b in zip(got[name], want[name], strict=True))
    return "" if worst < 1e-12 else f"a gradient is off by {worst}"


@pytest.mark.parametrize("name", RUN)
def test_an_exported_table_gives_the_gradients_of_the_uncut_model(name, runs):
    assert failure_of(*runs[0][id(RUN[name])]) == ""
    assert RUN[name].runs_on_torch.verdict == ("lowerable" if RUN[name].table.has_overlaps else "exact")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_said_not_to_run_does_not(name, runs):
    schedule, message = REFUSED[name]
    failure = failure_of(*runs[0][id(schedule)])
    assert schedule.runs_on_torch.verdict == "no" and failure and message in failure


@pytest.mark.parametrize("number", range(len(RANDOM)))
def test_the_verdict_about_any_table_is_true(number, runs):
    one = RANDOM[number]
    failure = failure_of(*runs[0][id(one)])
    assert (one.runs_on_torch.verdict == "no") == bool(failure), (one.orders, failure)


def test_there_are_tables_of_every_verdict():
    verdicts = [one.runs_on_torch.verdict for one in RANDOM]
    assert verdicts == ["exact"] * EACH + ["lowerable"] * EACH + ["no"] * EACH


@pytest.mark.parametrize("m", [8, 11])
@pytest.mark.parametrize(
    ("of_torch", "name"),
    [
        ("Interleaved1F1B", "interleaved-1f1b"),
        ("InterleavedZeroBubble", "interleaved-zb"),
        ("ZBVZeroBubble", "zb-v"),
        ("DualPipeV", "dualpipev"),
    ],
)
def test_a_table_that_torch_wrote_is_read_as_the_schedule_of_that_name(of_torch, name, m, tmp_path):
    m += m % 2 and name.startswith("interleaved")  # these take multiples of p only
    torch_pipelining.write_own_table(of_torch, 2, m, tmp_path / "table.csv")
    read = pp.Schedule.from_csv((tmp_path / "table.csv").read_text(), name=name)
    assert read == pp.schedule(name, num_ranks=2, num_microbatches=m, stages_per_rank=2)


def plain_times(paths, step):
    """Start and end of each action in seconds, with Python's own reader; an action starts when its input is there."""
    times = {}
    for path in paths:
        data = json.loads(path.read_text())
        found = [
            event for event in data["traceEvents"] if event["name"].startswith("PP:") and event["ph"] == "X"
        ]
        cells = [event for event in found if event["name"][3:] in PROFILED.table.texts()]
        cells.sort(key=lambda event: event["ts"])
        base = data["baseTimeNanoseconds"] / 1000
        for event in cells[step * len(cells) // 2 : (step + 1) * len(cells) // 2]:
            begin = base + event["ts"]
            times[pp.Action.parse(event["name"][3:])] = [begin * 1e-6, (begin + event["dur"]) * 1e-6]
    for action, (begin, _) in times.items():
        times[action][0] = max([begin] + [times[need][1] for need in PROFILED.needs(action)])
    return times


@pytest.mark.parametrize("step", [0, 1])
def test_a_profile_of_torch_becomes_a_trace_with_the_bubble_of_that_run(step, runs):
    trace = pp.read_trace(runs[1], step=step, name="torch")
    assert trace.schedule.orders == PROFILED.orders and trace.clock == "wall" and trace.label == "torch"
    assert trace.notes[0] == f"step {step + 1} of 2 that were recorded"
    times = plain_times(runs[1], step)
    first, last = min(begin for begin, _ in times.values()), max(end for _, end in times.values())
    assert trace.makespan == pytest.approx(last - first, abs=1e-5)
    busy = [
        sum(
            end - begin
            for action, (begin, end) in times.items()
            if PROFILED.placement.ranks[action.stage] == rank
        )
        for rank in (0, 1)
    ]
    report = trace.report()
    assert report.bubble_time == pytest.approx([last - first - b for b in busy], abs=1e-5)
    assert 0 < report.bubble_fraction < 1 and report.bubble_fraction == pytest.approx(
        1 - sum(busy) / (2 * (last - first)), abs=1e-3
    )


def test_one_ranks_file_alone_is_refused(runs):
    with pytest.raises(
        pp.PipelabError, match=r"form no schedule. Record whole steps of all ranks of one pipeline"
    ):
        pp.read_trace(runs[1][0])


def test_times_of_a_table_that_torch_draws_are_read(tmp_path):
    path = tmp_path / "drawn.json"
    torch_pipelining.draw(INTERLEAVED.to_csv(), path)
    assert pp.read_trace(path).schedule.orders == INTERLEAVED.orders
