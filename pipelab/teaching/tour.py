"""Exercises of notebook 00, the tour: memory under 1F1B, twice the micro-batches, a split by hand."""

from __future__ import annotations

from typing import Any

from pipelab.core.costs import Costs
from pipelab.core.profile import Affine, Profile
from pipelab.core.report import Report
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.planning.balance import balance
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, number_judge, short


def unit_report(name: str, num_ranks: int, num_microbatches: int) -> Report:
    """The report of a schedule of that name when F = I = W = 1 on every stage and transfers are free."""
    table = schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    return simulate(table, Costs.uniform(num_stages=table.num_model_stages)).report()


# --- 00.1: how much the first rank holds --------------------------------------------------------------------

IN_FLIGHT_MISTAKES = (
    Mistake(
        lambda: unit_report("gpipe", 4, 8).peak_in_flight[0],
        "That many are in flight under GPipe, which runs all forwards before the first backward. "
        "Look at the grid of 1F1B: where does rank 0 run its first B?",
    ),
    Mistake(
        lambda: unit_report("1f1b", 4, 8).peak_in_flight[3],
        "That is the last rank, which can run a backward right after each forward. "
        "Rank 0 must wait until its first micro-batch has gone all the way down and come back.",
    ),
    Mistake(
        lambda: 8 / 4,
        "That is m / p, but the micro-batches are not dealt out among the ranks: every one passes through "
        "every rank. "
        "Count the F cells of rank 0 before its first B.",
    ),
)

in_flight = Exercise(
    name="00.1",
    question="Four ranks run eight micro-batches under 1F1B (p = 4, m = 8, equal stages). A micro-batch is "
    "in flight on a "
    "rank from the start of its forward to the end of its backward there, and its activations are kept for "
    "that long.\n\n"
    "How many micro-batches are in flight on rank 0 at the peak?",
    judge=number_judge(
        lambda: unit_report("1f1b", 4, 8).peak_in_flight[0],
        "Rank r holds min(m, p - r) micro-batches: 4, 3, 2 and 1 here. GPipe would hold all 8 on every rank.",
        IN_FLIGHT_MISTAKES,
        "`print(pp.schedule('1f1b', num_ranks=4, num_microbatches=8))` shows the order; count on the first "
        "row.",
    ),
    solution=lambda: 4,
    mistakes=IN_FLIGHT_MISTAKES,
)

# --- 00.2: twice the micro-batches --------------------------------------------------------------------------

TWICE_MISTAKES = (
    Mistake(
        lambda: unit_report("1f1b", 4, 8).bubble_fraction / 2,
        "Half of what it was is close, but the step got shorter too, and the fraction is taken of the "
        "shorter step.",
    ),
    Mistake(
        lambda: unit_report("1f1b", 4, 16).bubble_ratio,
        "That is idle time over busy time, the bubble_ratio. The bubble_fraction is idle time over all of "
        "the time.",
    ),
    Mistake(
        lambda: unit_report("1f1b", 4, 8).bubble_fraction,
        "That is the fraction at 8 micro-batches. The idle time of the step is (p - 1) times the work of one "
        "micro-batch on one stage: what happens to that work when the micro-batches are half as large?",
    ),
    Mistake(
        lambda: 100 * unit_report("1f1b", 4, 16).bubble_fraction,
        "The number is right as a percentage. Give it as a fraction, between 0 and 1.",
    ),
)

twice_the_microbatches = Exercise(
    name="00.2",
    question="Under 1F1B with p = 4 equal stages, m = 8 micro-batches and free transfers, 3/11 = 27.3 % of "
    "the time of "
    "all ranks is idle: that is the bubble_fraction.\n\n"
    "Cut the same batch into 16 micro-batches, and say each action takes half as long as before. "
    "What is the bubble_fraction then, as a number between 0 and 1?",
    judge=number_judge(
        lambda: unit_report("1f1b", 4, 16).bubble_fraction,
        "(p - 1) / (m + p - 1) = 3/19. In truth an action of half the size takes more than half the time; "
        "the profile knows by how much.",
        TWICE_MISTAKES,
        "Simulate it: `pp.simulate(schedule, pp.Costs.uniform(num_stages=4)).report().bubble_fraction`.",
    ),
    solution=lambda: 3 / 19,
    mistakes=TWICE_MISTAKES,
)

# --- 00.3: a split by hand ----------------------------------------------------------------------------------

LAYER_MILLISECONDS = {"embedding": 1, **{f"blocks.{k}": 2 for k in range(6)}, "head": 5}


def small_profile() -> Profile:
    """Eight layers whose F + I + W take `LAYER_MILLISECONDS` for one micro-batch, a third each."""
    a_third = tuple(Affine(fixed=0.0, per_sample=ms / 3000) for ms in LAYER_MILLISECONDS.values())
    nothing = tuple(Affine(fixed=0.0, per_sample=0.0) for _ in a_third)
    return Profile(
        layers=tuple(LAYER_MILLISECONDS),
        forward=a_third,
        input_grad=a_third,
        weight_grad=a_third,
        parameter_bytes=(0,) * len(a_third),
        activation_bytes=nothing,
        output_bytes=nothing,
        batch_size=1,
        measured_sizes=(1, 2),
        device="made up",
    )


def step_milliseconds(split: Split) -> float:
    """One step of 1F1B with eight micro-batches on as many ranks as the split has stages."""
    table = schedule("1f1b", num_ranks=split.num_stages, num_microbatches=8)
    return 1000 * simulate(table, small_profile().costs(split)).makespan


def judge_split(answer: Any) -> Verdict:
    if isinstance(answer, str):
        answer = [answer]
    if not isinstance(answer, Split | list | tuple):
        return Verdict(f"A split is wanted, such as `pp.Split(['blocks.1'])`, and this is {short(answer)}.")
    split = answer if isinstance(answer, Split) else Split(answer)
    if split.num_stages != 2:
        return Verdict(
            f"This split has {split.num_stages} stages, and there are two ranks. Name the one layer at "
            f"which the second stage begins."
        )
    taken, best = step_milliseconds(split), step_milliseconds(balance(small_profile(), num_stages=2))
    if taken <= best * 1.001:
        return Verdict(f"Both stages take equally long, and a step takes {taken:.0f} ms.", right=True)
    first, second = _stage_milliseconds(split)
    return Verdict(
        f"The stages take {first:.0f} and {second:.0f} ms and a step takes {taken:.0f} ms; {best:.0f} ms "
        f"are possible. "
        "Every micro-batch waits for the slower stage: move the border so that it gets faster."
    )


def _stage_milliseconds(split: Split) -> tuple[float, ...]:
    costs = small_profile().costs(split)
    return tuple(
        1000 * (f + i + w) for f, i, w in zip(costs.forward, costs.input_grad, costs.weight_grad, strict=True)
    )


split_by_hand = Exercise(
    name="00.3",
    question="A model has these layers, with the time of F + I + W for one micro-batch:\n\n    "
    + ", ".join(f"{name} {ms} ms" for name, ms in LAYER_MILLISECONDS.items())
    + "\n\nTwo ranks run it under 1F1B. Which split makes the step shortest? Answer with a "
    "`pp.Split([...])` that names the "
    "layer at which the second stage begins.",
    judge=judge_split,
    solution=lambda: Split(["blocks.4"]),
    mistakes=(
        Mistake(lambda: Split(["blocks.3"]), "The stages take 7 and 11 ms"),
        Mistake(lambda: Split(["head"]), "The stages take 13 and 5 ms"),
        Mistake(lambda: Split(["blocks.2", "head"]), "This split has 3 stages"),
    ),
)

EXERCISES = (in_flight, twice_the_microbatches, split_by_hand)
