"""A measured step is the schedule at its own durations: handing over between threads costs next to nothing."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.core.gap import replayed

FORWARD, BACKWARD = (
    0.012,
    0.018,
)  # seconds; a sleeping thread needs no core, so other work on the machine hardly matters


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, more):
        time.sleep(FORWARD + more)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(BACKWARD)
        return gradient, None


class Layer(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.linear, self.more = nn.Linear(4, 4), more

    def forward(self, x):
        return Sleep.apply(self.linear(x), self.more)


@pytest.fixture(scope="module")
def traces():
    """Of five steps on two threads, the second stage slower than the first."""
    model = nn.Sequential(Layer(0.0), Layer(0.005))
    x, y = torch.ones(8, 4), torch.zeros(8, 4)
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    with pp.Pipeline(model, pp.Split(["1"]), schedule, loss_fn=F.mse_loss, devices=["cpu"] * 2) as pipe:
        return [pipe.step(x, y).trace for _ in range(6)][1:]


def test_a_runs_own_durations_give_its_makespan_within_one_per_cent(traces):
    short = [1 - replayed(t.schedule, t.durations) / t.makespan for t in traces]
    assert min(short) >= -1e-9 and np.min(np.abs(short)) < 0.01, short


def test_what_is_left_is_waiting_and_no_action_is_longer_than_itself(traces):
    for trace in traces:
        alone = pp.simulate(trace.schedule, pp.Costs((1, 1), (1, 1), (1, 1)))
        gap = pp.explain_gap(alone, trace)
        assert sum(part.seconds for part in gap.parts) == pytest.approx(gap.difference, abs=1e-9)
        shares = {part.cause: part.seconds for part in gap.parts}
        assert gap.replayed + shares["start"] + shares["waiting"] == pytest.approx(trace.makespan)
        assert shares["outside"] == 0


def test_a_prediction_from_what_the_stages_sleep_is_explained_by_their_actions(traces):
    costs = pp.Costs((FORWARD, FORWARD + 0.005), (BACKWARD,) * 2, (0.0, 0.0))
    best = min(traces, key=lambda trace: trace.makespan)
    gap = pp.explain_gap(pp.simulate(best.schedule, costs), best)
    longer = sum(part.seconds for part in gap.parts if part.cause in ("F", "B", "spread"))
    assert gap.difference >= longer - 1e-9 and gap.difference >= 0  # no sleep is shorter than it was told
