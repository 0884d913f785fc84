from __future__ import annotations

import pytest

from pipelab.widgets.measurement import NO_MODEL
from pipelab.widgets.setting import Setting
from pipelab.widgets.standing import RUNNING, lines_of_run, progress
from tests.widgets.profiles import profile_of


@pytest.fixture
def first() -> Setting:
    return Setting.start(profile_of(12), batch_size=48, schedule="gpipe", num_ranks=4, num_microbatches=8)


def test_progress_is_a_share_of_where_it_began(first):
    faster = first.changed(schedule="zb-h1")
    share = 100 * (1 - faster.predicted.makespan / first.predicted.makespan)
    assert f", {share:.0f} % less than where the Lab began (" in progress(faster, first) and share > 1
    assert f"{100 * share / (100 - share):.0f} % more" in progress(first, faster)


def test_without_a_move_there_is_no_progress(first):
    assert progress(first, first) == progress(first.changed(num_ranks=4), first) == ""
    assert "as long as where the Lab began" in progress(first.changed(schedule="1f1b"), first)


@pytest.mark.parametrize(
    ("can_run", "running", "hint", "said"),
    [
        (False, False, "", (NO_MODEL,)),
        (True, True, "Measured.", (RUNNING,)),
        (True, False, "Measured.", ("Measured.",)),
        (True, False, "", ("changed",)),
    ],
)
def test_of_runs_that_is_said_which_holds_now(can_run, running, hint, said):
    assert lines_of_run(can_run=can_run, running=running, hint=hint, hints=("changed",)) == said
