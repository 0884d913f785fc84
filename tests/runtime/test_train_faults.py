"""A run that fails on the way leaves each stage with the weights of its last whole update, and says how many."""

import copy

import pytest
import torch
import torch.nn.functional as F

import pipelab as pp
from pipelab.runtime import train as train_module
from tests.runtime.test_train import (
    SGD,
    batches_for,
    devices_for,
    model_with,
    pipedream,
    same,
    the_papers_rule,
)


@pytest.mark.parametrize("clock", ["threads", "virtual"])
@pytest.mark.parametrize("what", ["forward", "backward", "interrupt", "update"])
def test_after_a_fault_each_stage_has_made_whole_updates_and_says_how_many(clock, what):
    model = model_with()
    plain, batches = copy.deepcopy(model), batches_for(6)
    error, calls = RuntimeError("boom"), []

    def fail(*_):
        raise error

    def hook(module, _, output):
        calls.append(1)
        if len(calls) == 5:  # once to learn, then mini-batch 3
            if what == "forward":
                fail()
            elif what == "backward":
                output.register_hook(fail)
            elif what == "interrupt":
                pipe.interrupt()

    def failing(params):
        made = SGD(params)
        made.register_step_pre_hook(lambda *_: fail() if len(calls) == 5 and what == "update" else None)
        return made

    model[4].register_forward_hook(hook)
    schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=6)
    with pp.Pipeline(
        model, pp.Split(["4"]), schedule, loss_fn=F.mse_loss, devices=devices_for(2, clock)
    ) as pipe:
        expected = KeyboardInterrupt if what == "interrupt" else RuntimeError
        with pytest.raises(expected) as caught:
            pp.train(pipe, batches, optimizer=failing)
        note = next(note for note in caught.value.__notes__ if "updates" in note)
        assert ("may be half done" in note) == (what == "update")
        made = [int(part) for part in note.split("[")[1].split("]")[0].split(",")]
        _, history = the_papers_rule(plain, 2, batches, SGD, pipedream(2))
        for stage, part in enumerate((model[:4], model[4:])):
            assert 2 <= made[stage] <= 4
            for mine, theirs in zip(part.parameters(), history[stage][made[stage]], strict=True):
                assert torch.equal(mine, theirs)
        assert all(p.grad is None for p in model.parameters())
        model[4]._forward_hooks.clear()
        after = copy.deepcopy(model)
        pp.train(pipe, batches, optimizer=SGD)
        the_papers_rule(after, 2, batches, SGD, pipedream(2))
        assert same(model, after)


def notes_of_an_interrupt(prepare):
    model, schedule = model_with(), pp.schedule("pipedream", num_ranks=2, num_microbatches=6)
    with pp.Pipeline(model, pp.Split(["4"]), schedule, loss_fn=F.mse_loss, devices=pp.virtual(2)) as pipe:
        prepare(pipe)
        with pytest.raises(KeyboardInterrupt) as caught:
            pp.train(pipe, batches_for(6), optimizer=SGD)
    return " ".join(caught.value.__notes__)


def test_an_interrupt_after_the_last_update_says_that_all_were_made(monkeypatch):
    def prepare(pipe):
        original = train_module.measured_trace

        def interrupted(*args, **options):
            pipe.interrupt()
            return original(*args, **options)

        monkeypatch.setattr(train_module, "measured_trace", interrupted)

    assert "of 6 updates the stages have made [6, 6]" in notes_of_an_interrupt(prepare)


def test_an_interrupt_while_it_learns_says_that_none_was_made():
    notes = notes_of_an_interrupt(
        lambda pipe: pipe.model[4].register_forward_pre_hook(lambda *_: pipe.interrupt())
    )
    assert "before the first update" in notes
