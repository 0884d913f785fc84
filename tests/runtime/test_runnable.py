"""Which schedules the local engine runs; the others are refused by name before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipelab as pp
from pipelab.core.schedules import SCHEDULES
from pipelab.runtime.runnable import check_schedule, check_step

STEPS = [name for name, info in SCHEDULES.items() if info.is_step]


@pytest.mark.parametrize("name", STEPS)
def test_every_schedule_of_one_step_runs(name):
    v = SCHEDULES[name].stages_per_rank[0]
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=4, stages_per_rank=v)
    check_schedule(schedule)
    check_step(schedule)


def test_a_mix_by_hand_of_whole_and_split_backwards_and_overlaps_runs():
    schedule = pp.Schedule([["0F0", "0F1", "(0F2;0B0)OVERLAP_F_B", "0I1", "0B2", "0W1"]])
    check_schedule(schedule)
    check_step(schedule)


def test_two_tied_chains_run():
    check_schedule(pp.schedule("chimera", num_ranks=2, num_microbatches=4))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            pp.Schedule([["0F0", "0B0"], ["1F1", "1B1"]], pp.Placement.ensemble(2, 1)),
            "runs 2 chains of stages that are not copies of one model",
        ),
        (pp.Schedule([["0F0", "0F1", "0B1", "0B0"]], slices=2), "2 causal slices, which share keys and values"),
        (
            pp.Schedule([["0F0", "1F0", "2F0", "2B0", "1B0", "0B0"]], pp.Placement((0, 0, 0), edges=[(0, 2), (1, 2)])),
            "stage graph of its own",
        ),
    ],
)  # fmt: skip
def test_what_the_engine_does_not_run_is_refused_by_name(schedule, message):
    with pytest.raises(pp.PipelabError, match=message):
        check_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            pp.Schedule([["0F0", "0B0", "0U0"]], name="mine"),
            r"'mine' holds 0U0, an update of the weights.*pp\.train\(pipe, batches, optimizer=",
        ),
        (
            pp.Schedule([["0F0", "0B0", "0U0", "0F1", "0B1", "0U1"]], minibatches=2),
            r"is asynchronous: it updates the weights 2 times.*pp\.train\(pipe, batches",
        ),
    ],
)
def test_updates_are_no_part_of_a_step_and_name_what_runs_them(schedule, message):
    check_schedule(schedule)
    with pytest.raises(pp.PipelabError, match=message):
        check_step(schedule)


def test_asking_loads_no_torch():
    code = "import pipelab.runtime.runnable, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
