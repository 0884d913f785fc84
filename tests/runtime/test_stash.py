"""A stage keeps the versions that are still needed, no more, and they do not change."""

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.core.actions import Kind
from pipelab.runtime.stash import Stash

SCHEDULES = [
    pp.schedule("pipedream", num_ranks=4, num_microbatches=9),
    pp.schedule("pipedream-2bw", num_ranks=3, num_microbatches=4, num_minibatches=5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_each_minibatch_gets_its_version_and_each_stage_keeps_as_many_as_the_schedule_says(schedule):
    planned, per_minibatch = schedule.weight_versions(), schedule.num_microbatches // schedule.minibatches
    for stage, uses in enumerate(planned.version.tolist()):
        parameter = nn.Parameter(torch.zeros(2))  # its value tells its version
        stash, held, most = Stash([parameter], uses), {}, 1
        for action in schedule.orders[stage]:
            minibatch = action.microbatch // per_minibatch
            if action.kind is Kind.F and minibatch not in held:
                (held[minibatch],) = stash.weights(uses[minibatch])
            elif action.kind is Kind.B:
                assert held[minibatch].tolist() == [uses[minibatch]] * 2
            elif action.kind is Kind.U:
                stash.before_update(minibatch)
                with torch.no_grad():
                    parameter += 1
                stash.after_update(minibatch)
            most = max(most, stash.kept)
        assert most == planned.kept[stage]
        assert stash.newest == schedule.minibatches and stash.kept == 1


def test_weights_that_no_update_comes_before_are_not_copied():
    parameter = nn.Parameter(torch.zeros(2))
    stash = Stash([parameter], [0, 1])
    (weights,) = stash.weights(0)
    assert weights.data_ptr() == parameter.data_ptr() and stash.kept == 1
    stale = Stash([parameter], [0, 0])
    (weights,) = stale.weights(0)
    assert weights.data_ptr() != parameter.data_ptr()


def test_a_version_that_a_later_minibatch_needs_is_kept_before_the_update():
    parameter = nn.Parameter(torch.zeros(2))
    stash = Stash([parameter], [0, 0, 1])
    stash.before_update(0)
    with torch.no_grad():
        parameter += 1
    stash.after_update(0)
    assert stash.weights(0)[0].tolist() == [0, 0] and stash.kept == 2
