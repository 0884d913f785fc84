"""Random states belong to (seed, stage, micro-batch), and to nobody else."""

import pytest
import torch
from torch import nn

from pipelab.runtime.randomness import ENOUGH, Randomness, seed_generators

CPU = torch.device("cpu")


def draw(seed, stage, microbatch):
    seed_generators(seed, stage, microbatch, CPU)
    return torch.rand(3).tolist()


def test_the_same_three_numbers_give_the_same_draw_and_others_another():
    first = draw(1, 2, 3)
    assert first == draw(1, 2, 3)
    assert len({tuple(draw(*key)) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)]}) == 5


def step(randomness, stages):
    randomness.begin_step()
    for stage, draws in stages.items():
        turn = randomness.enter(stage, 0, CPU)
        if draws:
            torch.rand(1)
        if turn is not None:
            turn.leave()
    randomness.end_step()
    randomness.note_whole_step()


def test_stages_that_draw_are_found_and_the_others_are_never_asked_again():
    randomness = Randomness(nn.Dropout(0.5), [CPU])
    step(randomness, {0: False, 1: True})
    assert randomness.drawing_stages == (1,)
    randomness.begin_step()
    assert randomness.enter(0, 1, CPU) is None
    turn = randomness.enter(1, 1, CPU)
    assert turn is not None
    turn.leave()
    randomness.end_step()


def test_without_draws_the_default_generator_is_left_alone_and_with_them_it_moves_on_by_one():
    quiet, drawing, again = (Randomness(nn.Identity(), [CPU]) for _ in range(3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    step(quiet, {0: False})
    assert torch.equal(torch.get_rng_state(), before)
    step(drawing, {0: True})
    after, seed = torch.get_rng_state(), drawing.seed
    assert not torch.equal(after, before)
    step(drawing, {0: True})
    assert drawing.seed != seed, "the next step has another seed"
    torch.manual_seed(5)
    step(again, {0: True})
    assert again.seed == seed and torch.equal(torch.get_rng_state(), after), "and manual_seed repeats it"


def test_a_draw_that_appears_later_makes_every_stage_be_looked_at_again():
    randomness = Randomness(nn.Identity(), [CPU])
    step(randomness, {0: False})
    step(randomness, {0: True})  # drew, though it is known not to
    step(randomness, {0: True})
    assert randomness.drawing_stages == (0,)


def test_a_draw_that_appears_beside_stages_that_draw_is_noticed_too():
    randomness = Randomness(nn.Identity(), [CPU])
    step(randomness, {0: False, 1: True})
    step(randomness, {0: True, 1: True})
    step(randomness, {0: True, 1: True})
    assert randomness.drawing_stages == (0, 1)


def forward(randomness, stage, microbatch, draws, ended=True):
    """One forward of a stage; returns what it drew, and whether it had a turn."""
    turn = randomness.enter(stage, microbatch, CPU)
    drawn = torch.rand(1).item() if draws else None
    if turn is not None:
        turn.leave(ended)
    return drawn, turn is not None


def test_a_stage_that_draws_only_for_a_later_microbatch_has_its_own_random_state_from_the_start():
    randomness = Randomness(nn.Identity(), [CPU])
    torch.manual_seed(5)
    randomness.begin_step()
    forward(randomness, 0, 0, draws=False)
    drawn, _ = forward(randomness, 0, 1, draws=True)
    assert drawn == pytest.approx(draw(randomness.seed, 0, 1)[0]) and randomness.drawing_stages == (0,)
    randomness.end_step()


def test_forwards_that_were_given_up_say_nothing_about_their_stage():
    randomness = Randomness(nn.Identity(), [CPU])
    randomness.begin_step()
    for i in range(ENOUGH + 1):
        forward(randomness, 0, i, draws=False, ended=False)
    randomness.end_step()
    randomness.begin_step()
    assert forward(randomness, 0, 0, draws=True)[1] and randomness.drawing_stages == (0,)
    randomness.end_step()


def test_without_a_whole_step_so_many_quiet_forwards_are_enough_and_more_after_a_surprise():
    randomness = Randomness(nn.Identity(), [CPU])
    randomness.begin_step()
    turns = [forward(randomness, 0, i, draws=False)[1] for i in range(ENOUGH + 1)]
    assert turns == [True] * ENOUGH + [False]
    forward(randomness, 0, ENOUGH + 1, draws=True)
    randomness.end_step()
    randomness.begin_step()
    assert all(forward(randomness, 0, i, draws=False)[1] for i in range(ENOUGH + 1))
    randomness.end_step()


def test_what_was_learnt_in_training_is_known_after_an_evaluation():
    model = nn.Dropout(0.5)
    randomness = Randomness(model, [CPU])
    step(randomness, {0: False, 1: True})
    model.eval()
    step(randomness, {0: False, 1: False})
    assert randomness.drawing_stages == ()
    model.train()
    randomness.begin_step()
    assert randomness.drawing_stages == (1,) and not randomness.may_draw(0)
    randomness.end_step()
