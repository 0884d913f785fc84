"""The law of execution over random chains of layers, random cuts, and every schedule, also some written by hand."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import pipelab as pp
from pipelab.core.actions import Action, Kind
from tests.runtime.injected import assert_torch_untouched, raising
from tests.runtime.random_chains import NAMES, cases, runs, runs_plainly, schedules
from tests.runtime.watched import actions_told
from tests.zoo.law import accumulate, assert_law, assert_nothing_of_ours

BOUNDED = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@BOUNDED
@given(st.data(), schedules(), st.booleans())
def test_a_step_is_plain_accumulation_in_the_order_of_its_schedule(data, schedule, virtual):
    case = data.draw(cases(schedule))
    assume(runs_plainly(case))
    devices = pp.virtual(schedule.num_ranks) if virtual else None
    ran = defaultdict(list)
    with actions_told(lambda step, action: ran[step].append(action)):
        assert_law(case, schedule, devices, steps=2)
    steps = [actions for actions in ran.values() if any(action.kind is not Kind.F for action in actions)]
    assert len(steps) >= 2
    for actions in steps:
        assert by_rank(actions, schedule) == simulated_order(schedule)


def by_rank(actions: list[Action], schedule: pp.Schedule) -> dict[int, list[Action]]:
    found = defaultdict(list)
    for action in actions:
        found[schedule.placement.ranks[action.stage]].append(action)
    return found


def simulated_order(schedule: pp.Schedule) -> dict[int, list[Action]]:
    """The actions of each rank by the time at which a simulation starts them."""
    ones = (1.0,) * schedule.num_model_stages
    trace = pp.simulate(schedule, pp.Costs(forward=ones, input_grad=ones, weight_grad=ones))
    cells = [cell for order in schedule.orders for cell in order]
    started = [cells[i] for i in np.argsort(trace.start, kind="stable")]
    return by_rank([part for cell in started for part in cell.members or (cell,)], schedule)


@settings(BOUNDED, max_examples=60)
@given(st.data(), schedules(), st.booleans(), st.integers(0, 1000))
def test_after_faults_anywhere_a_step_is_still_plain_accumulation(data, schedule, virtual, seed):
    case = data.draw(cases(schedule))
    assume(runs_plainly(case))
    moments, model = random.Random(seed), case.model
    whole, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    devices = pp.virtual(schedule.num_ranks) if virtual else ["cpu"] * schedule.num_ranks
    with pp.Pipeline(
        model, pp.Split(case.cuts), schedule, loss_fn=case.loss_fn, devices=devices, **case.options
    ) as pipe:
        for _ in range(4):
            act = moments.choice([raising(RuntimeError), raising(SystemExit), press])
            with contextlib.suppress(RuntimeError, SystemExit, KeyboardInterrupt), once(act, moments):
                pipe.step(case.inputs, case.target)
            for each in (model, whole):
                each.zero_grad()
                each.load_state_dict(state)
            step = pipe.step(case.inputs, case.target)
            loss, _ = accumulate(whole, case.loss_fn, case, pipe)
            torch.testing.assert_close(step.loss, loss, rtol=1e-12, atol=1e-13)
            for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
                assert_same_update(ours.grad, theirs.grad)
            assert_nothing_of_ours(model, whole)
    assert_torch_untouched()


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def once(act: Callable[[], None], moments: random.Random) -> Iterator[None]:
    """Inside, `act` is called at some call of a module, or in some backward."""
    left, lock = [moments.randrange(60)], threading.Lock()

    def pass_by(*_: Any) -> None:
        with lock:
            left[0] -= 1
            now = left[0] == -1
        if now:
            act()

    def hook(module: Any, args: Any, output: Any) -> None:
        pass_by()
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(pass_by)

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def assert_same_update(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> None:
    """No gradient and a gradient of zeros are the same."""
    given = ours if ours is not None else theirs
    if given is not None:
        zeros = torch.zeros_like(given)
        a, b = (zeros if gradient is None else gradient for gradient in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()) + 1e-13)


@settings(BOUNDED, max_examples=4)
@given(st.data(), st.integers(0, 1000))
def test_dropout_is_the_same_under_every_schedule(data, seed):
    all_of_them = [made for made in map(with_four_stages, NAMES) if made is not None]
    assert len(all_of_them) == len(NAMES)
    two_chains = next(made for made in all_of_them if made.placement.chains > 1)
    case = data.draw(cases(two_chains, kinds=("linear", "tanh", "dropout", "layer norm", "conv", "tied")))
    assume(runs_plainly(case) and any(layer.kind == "dropout" for layer in case.model.layers))
    first = None
    for number, schedule in enumerate(all_of_them):
        devices = pp.virtual(schedule.num_ranks) if number % 2 else ["cpu"] * schedule.num_ranks
        found = [result.clone() for result in step_with_seed(copy.deepcopy(case), schedule, devices, seed)]
        first = found if first is None else first
        for ours, theirs in zip(found, first, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, msg=schedule.name)


def with_four_stages(name: str) -> pp.Schedule | None:
    for p in (2, 4):
        for v in (1, 2):
            try:
                made = pp.schedule(name, num_ranks=p, num_microbatches=4, stages_per_rank=v)
            except pp.PipelabError:
                continue
            if made.num_model_stages == 4 and runs(made):
                return made
    return None


def step_with_seed(case: Any, schedule: pp.Schedule, devices: Any, seed: int) -> list[torch.Tensor]:
    """Loss, outputs and gradients of a second step."""
    split = pp.Split(case.cuts)
    with pp.Pipeline(
        case.model, split, schedule, loss_fn=case.loss_fn, devices=devices, **case.options
    ) as pipe:
        for _ in range(2):
            case.model.zero_grad()
            torch.manual_seed(seed)
            step = pipe.step(case.inputs, case.target)
    return [
        step.loss,
        *step.outputs.values(),
        *(p.grad for p in case.model.parameters() if p.grad is not None),
    ]
