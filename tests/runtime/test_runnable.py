"""Which schedules the local engine runs; the others are refused by name before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipelab as pp
from pipelab.runtime.runnable import check_schedule


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "eager-1f1b", "interleaved-1f1b", "forward-only"])
def test_forwards_and_whole_backwards_over_one_chain_run(name):
    check_schedule(pp.schedule(name, num_ranks=2, num_microbatches=4))


def test_two_tied_chains_run():
    check_schedule(pp.schedule("chimera", num_ranks=2, num_microbatches=4))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (pp.Schedule([["0F0", "0I0", "0W0"]], name="mine"), "'mine' holds 0I0.*can be simulated"),
        (
            pp.Schedule([["0F0", "0F1", "(0B0;0B1)OVERLAP_F_B"]]),
            r"holds \(0B0;0B1\)OVERLAP_F_B",
        ),
        (pp.Schedule([["0F0", "0B0", "0U0"]]), "holds 0U0"),
        (
            pp.Schedule([["0F0", "0B0"], ["1F1", "1B1"]], pp.Placement.ensemble(2, 1)),
            "runs 2 chains of stages that are not copies of one model",
        ),
        (pp.Schedule([["0F0", "0F1", "0B1", "0B0"]], slices=2), "2 causal slices, which share keys and values"),
        (
            pp.Schedule([["0F0", "0B0", "0U0", "0F1", "0B1", "0U1"]], minibatches=2),
            "is asynchronous: it updates the weights 2 times",
        ),
        (
            pp.Schedule([["0F0", "1F0", "2F0", "2B0", "1B0", "0B0"]], pp.Placement((0, 0, 0), edges=[(0, 2), (1, 2)])),
            "stage graph of its own",
        ),
    ],
)  # fmt: skip
def test_what_the_engine_does_not_run_is_refused_by_name(schedule, message):
    with pytest.raises(pp.PipelabError, match=message):
        check_schedule(schedule)


def test_asking_loads_no_torch():
    code = "import pipelab.runtime.runnable, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
