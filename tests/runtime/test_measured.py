"""The trace of a step: extra steps for a median on virtual devices, and what a trace says of its own clock."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from pipelab.core.plan import VirtualDevices
from pipelab.runtime.devices import num_cores
from pipelab.runtime.measured import extra_steps, measured_trace, part_of
from tests.runtime.models import gpt, mlp, resnet


class Counted(nn.Module):
    """Counts its forwards, in an object that no step puts back, and calls a function of the count, which may raise."""

    def __init__(self, at=lambda count: None):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)
        self.at, self.calls, self.seen = at, SimpleNamespace(count=0), 0

    def forward(self, x):
        self.calls.count += 1
        self.seen += 1
        self.at(self.calls.count)
        return self.second(self.first(x).relu())

    @property
    def forwards(self):
        return self.calls.count


def pipeline(model, num_microbatches, cuts=("second",), loss_fn=F.mse_loss, devices=None):
    ranks = len(cuts) + 1
    schedule = pp.schedule("gpipe", num_ranks=ranks, num_microbatches=num_microbatches)
    return pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices or pp.virtual(ranks))


X, Y = torch.ones(8, 4), torch.zeros(8, 1)


@pytest.mark.parametrize(
    ("num_microbatches", "first", "later"), [(1, 6, 5), (2, 4, 3), (4, 3, 2), (5, 1, 1), (8, 1, 1)]
)
def test_whole_steps_run_again_until_there_are_five_samples_and_a_learning_step_is_none(
    num_microbatches, first, later
):
    model = Counted()
    with pipeline(model, num_microbatches) as pipe:
        pipe.step(X, Y)
        assert model.forwards == first * num_microbatches
        pipe.step(X, Y)
        assert model.forwards == (first + later) * num_microbatches
    assert model.seen == 2 * num_microbatches  # what the model counts itself


def test_replicas_of_a_stage_are_counted_together_and_real_devices_need_no_extra_steps():
    schedule = pp.schedule("chimera", num_ranks=2, num_microbatches=6)
    assert extra_steps(schedule, VirtualDevices(2), ()) == 0
    assert (
        extra_steps(pp.schedule("gpipe", num_ranks=2, num_microbatches=1), ("cpu", "cpu"), ("learning",)) == 0
    )


@pytest.mark.parametrize("make", [lambda: gpt(dropout=0.3), resnet], ids=["dropout", "BatchNorm"])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_the_model_sees_exactly_one_step(make, num_microbatches):
    found = []
    for devices in (["cpu"] * 2, pp.virtual(2)):
        model, x, y, loss_fn = make()
        torch.manual_seed(7)
        with pipeline(model, num_microbatches, ("blocks.2",), loss_fn, devices) as pipe:
            steps = [pipe.step(x, y) for _ in range(2)]
        found.append(
            [t for step in steps for t in (step.loss, step.outputs, step.losses)]
            + [p.grad for p in model.parameters()]
            + [*model.buffers(), torch.get_rng_state()]
        )
    assert all(map(torch.equal, *found))


def test_gradients_of_earlier_steps_are_added_to_once():
    model = Counted()
    with pipeline(model, 1) as pipe:
        pipe.step(X, Y)
        once = model.first.weight.grad.clone()
        pipe.step(X, Y)
    assert torch.allclose(model.first.weight.grad, 2 * once)


def test_a_check_of_the_gradients_knows_the_random_state_of_the_step_itself():
    model, x, y, loss_fn = gpt(dropout=0.3)
    with pipeline(model, 1, ("blocks.2",), loss_fn) as pipe:
        assert pp.check_gradients(pipe, x, y)


@pytest.mark.parametrize("forward", [1, 4])
def test_an_error_in_an_extra_step_is_an_error_of_the_step(forward):
    def fail(count):
        if count == forward:
            raise ArithmeticError("three")

    model = Counted(fail)
    with pipeline(model, 1) as pipe:
        with pytest.raises(ArithmeticError) as caught:
            pipe.step(X, Y)
        assert "raised in action 0F0" in "".join(caught.value.__notes__)
        assert all(p.grad is None for p in model.parameters())
        assert pp.check_gradients(pipe, X, Y)


def test_an_interrupt_in_an_extra_step_is_an_interrupt_of_the_step():
    model = Counted(lambda count: pipe.interrupt() if count == 4 else None)
    with pipeline(model, 1) as pipe:
        with pytest.raises(KeyboardInterrupt):
            pipe.step(X, Y)
        assert model.forwards == 4 and all(p.grad is None for p in model.parameters())
        assert pp.check_gradients(pipe, X, Y)


def test_progress_counts_the_actions_of_all_steps():
    seen = []
    with pipeline(Counted(), 1) as pipe:
        pipe.step(X, Y, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (24, 24) and {total for _, total in seen} == {24}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_without_extra_steps_progress_is_handed_on_as_it_is():
    report = [].append
    assert part_of(report, 0, 1) is report and part_of(None, 1, 3) is None


# -- what a trace says of its clock -------------------------------------------------------------------------------


def trace_of(devices, seconds=1.0, **options):
    count = devices.count if isinstance(devices, VirtualDevices) else len(devices)
    schedule = pp.schedule("gpipe", num_ranks=count, num_microbatches=8)
    start = np.arange(float(schedule.table.num_cells)) * 2
    seconds = np.broadcast_to(seconds, start.shape)
    return measured_trace(
        schedule, (start, start + seconds), devices=devices, links=None, bytes=None, **options
    )


def test_a_core_for_each_rank_and_long_actions_leave_nothing_to_say():
    trace = trace_of(("cpu",))
    assert trace.clock == "wall" and trace.notes == () and trace.devices == ("cpu",)
    assert trace_of(pp.virtual(4)).notes == ()


def test_more_ranks_than_cores_are_told():
    many = ("cpu",) * (num_cores() + 1)
    assert any(f"{len(many)} ranks share {num_cores()} CPU cores" in note for note in trace_of(many).notes)


def test_ranks_that_share_a_gpu_are_told_and_a_gpu_each_is_not():
    assert any("3 ranks share 2 GPUs" in note for note in trace_of(("cuda:0", "cuda:0", "cuda:1")).notes)
    assert trace_of(("cuda:0", "cuda:1")).notes == ()


def test_actions_too_short_for_threads_are_told_for_each_kind_of_device():
    one = pp.schedule("gpipe", num_ranks=4, num_microbatches=8)
    devices = ("cuda:0", "cuda:1", "cpu", "cpu")
    for slow, kind in ((2, "cuda"), (0, "cpu")):
        long = (one.table.cell_ranks >= slow) & (one.table.cell_ranks < slow + 2)
        (note,) = [n for n in trace_of(devices, np.where(long, 0.5, 2e-4)).notes if "below 1 ms" in n]
        assert note.startswith(f"actions on {kind} last 200 us in the median")
    (note,) = [n for n in trace_of(("cuda:0", "cuda:1"), 2e-4).notes if "below 1 ms" in n]
    assert note.startswith("actions last 200 us in the median") and "pp.virtual(2)" in note


def test_a_lone_rank_hands_nothing_over():
    assert not trace_of(("cpu",), 1e-4).notes


def test_short_actions_are_told_on_virtual_devices_too():
    (note,) = trace_of(pp.virtual(2), 2e-4).notes
    assert note.startswith("actions last 200 us in the median") and "Python" in note


def test_a_step_that_learned_or_counted_memory_says_so():
    for reason, sentence in (("learning", "also learned how values flow"), ("memory", "counted its memory")):
        for devices in (("cpu",), pp.virtual(1)):
            (note,) = trace_of(devices, slowed=[reason]).notes
            assert sentence in note


def test_a_slowed_steps_times_are_left_out_where_others_were_taken():
    schedule = pp.schedule("gpipe", num_ranks=1, num_microbatches=1)
    begin = np.array([0.0, 100.0])
    slow, one, other = [(begin, begin + last) for last in (50.0, 4.0, 6.0)]
    options = {"devices": pp.virtual(1), "links": None, "bytes": None, "extra": [one, other]}
    slowed = measured_trace(schedule, slow, **options, slowed=["learning"])
    assert slowed.durations.tolist() == [5, 5] and slowed.notes == ()
    assert measured_trace(schedule, slow, **options).durations.tolist() == [6, 6]


def test_only_the_first_step_learns():
    model, x, y, loss_fn = mlp()
    with pipeline(model, 8, ("4",), loss_fn) as pipe:
        learned = [any("also learned" in note for note in pipe.step(x, y).trace.notes) for _ in range(2)]
    assert learned == [True, False]
