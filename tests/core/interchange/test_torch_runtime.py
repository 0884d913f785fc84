"""What is said about torch's runtime. (That it is true: tests/runtime/test_torch_contract.py.)"""

from __future__ import annotations

import re

import pytest

import pipelab as pp
from pipelab.core.interchange.torch_runtime import TorchVerdict

CASES = {
    "gpipe": "exact",
    "1f1b": "exact",
    "interleaved-1f1b": "exact",
    "zb-h1": "exact",
    "zb-v": "exact",
    "dualpipev": "lowerable",
    "forward-only": "no",
    "dualpipe": "no",
    "chimera": "no",
    "pipedream": "no",
    "seq-1f1b": "no",
}


@pytest.mark.parametrize(("name", "verdict"), CASES.items())
def test_the_verdict_follows_from_the_table(name, verdict):
    found = pp.schedule(name, num_ranks=4, num_microbatches=8).runs_on_torch
    assert (
        found.verdict == verdict and str(found) == f"{verdict}: {found.reason}" and found.reason.endswith(".")
    )


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (pp.Schedule([["0F0", "0B0"]]), "every cell runs as it is written"),
        (pp.Schedule([["0F0"]]), "It has no backward"),
        (pp.Schedule([["0F0", "0B0", "0U0"]]), r"It updates weights within the table \(0U0\)"),
        (
            pp.Schedule([["0F0", "0F1", "0B1", "0B0"], ["1F1", "1F0", "1B1", "1B0"]]),
            r"The last stage runs 1F1 where 1F0 would be next.*leave stage 1\.",
        ),
        (
            pp.Schedule([["0F0", "0F1", "(0I0;0I1)OVERLAP_F_B", "0W0", "0W1"]]),
            r"the members of \(0I0;0I1\)OVERLAP_F_B and the like one after the other",
        ),
        (
            pp.Schedule([["0F0", "1F0"]], pp.Placement((0, 0), edges=())),
            "Its stages are no plain chain",
        ),
        (
            pp.Schedule([["0F0", "0B0"], ["1F1", "1B1"]], pp.Placement.ensemble(2, 1)),
            "It runs in 2 chains of stages",
        ),
    ],
)
def test_the_reason_names_what_is_in_the_way(schedule, reason):
    assert re.search(reason, schedule.runs_on_torch.reason)


def test_a_verdict_is_one_of_three():
    with pytest.raises(pp.PipelabError, match="verdict is 'maybe'"):
        TorchVerdict("maybe", "")
