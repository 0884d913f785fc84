from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.widgets.measurement import WARMUP_STEPS, Measurement

LIMIT = 30.0


class Dropping(nn.Module):
    """A model with everything that a run could leave changed: gradients, buffers, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(),
            nn.Linear(8, 1),
        )

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def measurement(model: nn.Module, num_microbatches: int = 4, name: str = "1f1b") -> Measurement:
    order = pp.schedule(name, num_ranks=2, num_microbatches=num_microbatches)
    plan = pp.Plan(pp.Split(["last"]), order, devices=pp.virtual(2))
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    return Measurement(plan, model, x, y, loss_fn=nn.functional.mse_loss, reduction="mean")


def test_it_gives_a_trace_on_a_clock_it_names_and_prints_nothing(capsys):
    one = measurement(Dropping())
    trace = one.run(lambda done, total: None)
    assert trace.clock == "virtual"
    assert "2 virtual devices on cpu" in one.clock
    assert capsys.readouterr().out == ""


def test_the_model_is_left_as_it_was():
    model = Dropping()
    one = measurement(model)
    model(torch.randn(8, 4)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = {name: gradient.clone() for name, gradient in gradients.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    one.run(lambda done, total: None)
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert torch.equal(parameter.grad, values[name])
        assert torch.equal(parameter, weights[name])
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)


def test_progress_counts_the_actions_of_all_steps():
    told = []
    measurement(Dropping()).run(lambda done, total: told.append((done, total)))
    actions = 2 * 2 * 4 * (WARMUP_STEPS + 1)
    assert told[-1] == (actions, actions)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_stopping_before_it_begins_stops_it_all_the_same():
    one = measurement(Dropping())
    one.stop()
    with pytest.raises(KeyboardInterrupt):
        one.run(lambda done, total: None)


@pytest.mark.parametrize("moment", [1, 5, 16, 17, 33, 48])
def test_stopping_at_any_moment_leaves_the_model_as_it_was(moment):
    model = Dropping()
    one = measurement(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def progress(done, total):
        if done >= moment:
            one.stop()

    with pytest.raises(KeyboardInterrupt):
        one.run(progress)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert measurement(model).run(lambda done, total: None).makespan > 0


def test_a_stop_asked_for_between_two_steps_interrupts_the_next_one(monkeypatch):
    one = measurement(Dropping())
    interrupted = []

    def step(pipeline, *data, progress, **options):
        one._stopped.set()  # after the last look before a step, when there is nothing to interrupt yet
        progress(1, 16)
        raise KeyboardInterrupt if interrupted else AssertionError("the step would have run to its end")

    monkeypatch.setattr(pp.Pipeline, "step", step)
    monkeypatch.setattr(pp.Pipeline, "interrupt", lambda pipeline: interrupted.append(pipeline))
    with pytest.raises(KeyboardInterrupt):
        one.run(lambda done, total: None)


def test_a_ctrl_c_in_the_main_thread_interrupts_a_run_there():
    one = measurement(Dropping())

    def progress(done, total):
        if done >= 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        one.run(progress)


def test_it_runs_in_another_thread_too():
    found = []
    one = measurement(Dropping())
    thread = threading.Thread(target=lambda: found.append(one.run(lambda done, total: None)))
    thread.start()
    thread.join(LIMIT)
    assert found[0].clock == "virtual"


def test_a_schedule_without_backward_is_refused_with_a_remedy():
    with pytest.raises(pp.PipelabError, match="forward-only has no backward"):
        measurement(Dropping(), name="forward-only").run(lambda done, total: None)


def test_an_error_of_the_model_keeps_its_type():
    class Broken(Dropping):
        def forward(self, x):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        measurement(Broken()).run(lambda done, total: None)


@pytest.mark.gpu
def test_parameters_come_home_from_a_gpu():
    model = Dropping()
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    plan = pp.Plan(pp.Split(["last"]), order, devices=("cuda:0", "cuda:0"))
    model(torch.randn(8, 4)).sum().backward()
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    Measurement(plan, model, x, y, loss_fn=nn.functional.mse_loss, reduction="mean").run(
        lambda done, total: None
    )
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert all(parameter.grad.device.type == "cpu" for parameter in model.parameters())
