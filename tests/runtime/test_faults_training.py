"""Faults while updates are in flight: the error comes out as it is, and training can begin again from any weights."""

import itertools
import os
import re
import signal
import threading

import pytest
import torch

import pipelab as pp
from tests.runtime.injected import ANYWHERE, ERRORS, Laboratory, Noteless, raising, without_collector

SCHEDULES = {
    "pipedream": pp.schedule("pipedream", num_ranks=3, num_microbatches=6),
    "pipedream-2bw": pp.schedule("pipedream-2bw", num_ranks=3, num_microbatches=3, num_minibatches=3),
}
PLACES = {
    "forward, first stage": ("forward", 0, 1, "F"),
    "forward, last stage, later": ("forward", 2, 2, "F"),
    "backward, middle stage": ("backward", 1, 1, "B"),
    "backward, first stage, later": ("backward", 0, 2, "B"),
    "loss": ("loss", None, 1, "F"),
    "input on its way": ("input", None, 1, "F"),
    "optimizer": ("optimizer", None, None, "U"),
    "optimizer that is made": ("made", None, None, None),
}


class Descent(torch.optim.SGD):
    """Reaches a place when it updates."""

    def __init__(self, parameters, bomb):
        bomb.reach("made")
        super().__init__(parameters, lr=0.1, momentum=0.5)
        self.bomb = bomb

    def step(self, closure=None):
        self.bomb.reach("optimizer")
        return super().step(closure)


class Training(Laboratory):
    """Trains a model in which a fault can go off; every run begins with the same weights."""

    def __init__(self, name, virtual):
        schedule = SCHEDULES[name]
        super().__init__(schedule, pp.virtual(3) if virtual else ["cpu"] * 3)
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.healthy = self.step().losses

    def step(self):
        self.model.load_state_dict(self.start)
        schedule, ((x, ids), target) = self.pipe.schedule, (self.inputs, self.target)
        size = 2 * schedule.num_microbatches // schedule.minibatches
        batches = [
            ((x[i : i + size], ids[i : i + size]), target[i : i + size]) for i in range(0, len(ids), size)
        ]
        return pp.train(self.pipe, batches, optimizer=lambda parameters: Descent(parameters, self.bomb))

    def assert_next_step_right(self):
        assert torch.equal(self.step().losses, self.healthy)


@pytest.fixture(scope="module")
def training():
    """Pipelines that are used for many faults, one after the other; all of their threads end."""
    before, made = threading.active_count(), {}

    def get(name, virtual):
        if (name, virtual) not in made:
            made[name, virtual] = Training(name, virtual)
        return made[name, virtual]

    yield get
    for each in made.values():
        each.pipe.close()
    assert threading.active_count() == before


CASES = [
    pytest.param(place, kind, list(SCHEDULES)[number % 2], bool(number // 2 % 2), id=f"{place}-{kind}")
    for number, (place, kind) in enumerate(itertools.product(PLACES, ERRORS))
]


@pytest.mark.parametrize(("place", "kind", "name", "virtual"), CASES)
def test_an_error_of_any_type_in_training(training, place, kind, name, virtual):
    lab, make = training(name, virtual), ERRORS[kind]
    where, stage, microbatch, action = PLACES[place]
    lab.bomb.arm(where, stage, microbatch, raising(make))
    with without_collector():
        error = lab.failing_step()
        assert type(error) is type(make())
        if action is not None and not isinstance(error, Noteless):
            notes = "\n".join(error.__notes__)
            found = re.search(r"raised in action (\d+)([FBU])(\d+)", notes)
            assert found and found[2] == action, notes
            assert stage is None or int(found[1]) == stage
            assert microbatch is None or int(found[3]) == microbatch
            assert "updates the stages have made" in notes
        del error
        lab.assert_at_rest()
    lab.assert_next_step_right()


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_interrupt_at_any_moment_of_training(training, name, virtual):
    lab = training(name, virtual)
    lab.bomb.arm(ANYWHERE, None, None, None, passes=10**6)
    lab.step()
    for moment in range(0, 10**6 - lab.bomb.passes, 13):
        lab.bomb.arm(ANYWHERE, None, None, lambda: os.kill(os.getpid(), signal.SIGINT), passes=moment)
        assert type(lab.failing_step()) is KeyboardInterrupt
        lab.assert_at_rest()
    lab.assert_next_step_right()
