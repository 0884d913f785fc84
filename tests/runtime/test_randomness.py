"""Random states belong to (seed, stage, micro-batch), and to nobody else."""

import torch
from torch import nn

from pipelab.runtime.randomness import Randomness, seed_generators

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
