"""Activations live from their forward to their backward, or to the W that needs them, and no longer."""

import threading

import pytest

import pipelab as pp
from pipelab.core.actions import Kind
from tests.runtime.injected import Laboratory, raising, runnable_schedules, without_collector
from tests.runtime.watched import actions_told

SCHEDULES = runnable_schedules(6)


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_in_memory_follows_the_micro_batches_in_flight(name, virtual):
    schedule = SCHEDULES[name]
    ranks, m = schedule.num_ranks, schedule.num_microbatches
    lab = Laboratory(schedule, pp.virtual(ranks) if virtual else ["cpu"] * ranks)
    lab.step()
    lab.bomb.memory.clear()
    lock, most, early, late = threading.Lock(), [0] * ranks, [], []
    members = [part for order in schedule.orders for cell in order for part in cell.members or (cell,)]
    split = {(each.stage, each.microbatch) for each in members if each.kind is Kind.W}

    def look(step, action):
        with lock:
            chains = [schedule.placement.chain_of(i, m) * lab.stages for i in range(m)]
            alive = {(chains[i] + stage, i) for stage, i in lab.alive("needed")}
            rank, pair = schedule.placement.ranks[action.stage], (action.stage, action.microbatch)
            most[rank] = max(most[rank], sum(schedule.placement.ranks[stage] == rank for stage, _ in alive))
            needed = action.kind is Kind.F or (action.kind is Kind.I and pair in split)
            if needed and pair not in alive:
                early.append(action)
            model_stage = action.stage % lab.stages
            sent_on = (model_stage, action.microbatch) in lab.alive("sent")
            if (not needed and pair in alive) or (action.kind is not Kind.F and sent_on):
                late.append(action)

    with actions_told(look), without_collector():
        lab.pipe.step(lab.inputs, lab.target, outputs=False)
        assert not lab.alive("needed") | lab.alive("sent")
    assert not late, f"still in memory after their backward: {late}"
    assert not early, f"gone before their backward: {early}"
    assert tuple(most) == schedule.peak_in_flight
    lab.pipe.close()


def test_forward_alone_keeps_nothing():
    schedule = SCHEDULES["1f1b"]
    lab = Laboratory(schedule, ["cpu"] * schedule.num_ranks)
    lab.bomb.memory.clear()
    with without_collector():
        outputs = lab.pipe.forward(lab.inputs)
        assert len(lab.bomb.memory) == 2 * lab.stages * schedule.num_microbatches
        assert not lab.alive("needed") | lab.alive("sent") and len(outputs) == len(lab.target)
    lab.pipe.close()


@pytest.mark.parametrize("name", ["gpipe", "zb-h1", "chimera"])
def test_an_error_that_is_kept_keeps_no_other_microbatch_in_memory(name):
    schedule = SCHEDULES[name]
    lab = Laboratory(schedule, ["cpu"] * schedule.num_ranks)
    lab.step()
    for place, stage in [("forward", 1), ("backward", 1), ("backward", 0), ("loss", None)]:
        lab.bomb.arm(place, stage, 2, raising(RuntimeError))
        with without_collector():
            error = lab.failing_step()
            assert {microbatch for _, microbatch in lab.alive("needed") | lab.alive("sent")} <= {2}
            del error
            assert not lab.alive("needed") | lab.alive("sent")
    lab.pipe.close()
