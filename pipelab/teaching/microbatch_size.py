"""Exercises of notebook 04: the best number of micro-batches, what more ranks change, and a batch that grows too."""

from __future__ import annotations

from typing import Any

from pipelab.core.costs import Costs
from pipelab.core.report import Report
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, as_number, number_judge, short

BATCH, FIXED, PER_SAMPLE = 64, 2.0, 0.5  # samples; ms of F + B of a stage: 2 + 0.5 for each sample
DIVISORS = (1, 2, 4, 8, 16, 32, 64)
FEW_RANKS, MANY_RANKS = 4, 13


def report_of(num_ranks: int, num_microbatches: int, samples: float) -> Report:
    """One step of 1F1B on equal stages, in milliseconds; F, I and W take a third each."""
    third = (FIXED + PER_SAMPLE * samples) / 3
    table = schedule("1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches)
    return simulate(table, Costs.uniform(num_ranks, third, third, third)).report()


def step_milliseconds(num_ranks: int, num_microbatches: int) -> float:
    """A step of the whole batch."""
    return report_of(num_ranks, num_microbatches, BATCH / num_microbatches).makespan


def best_microbatches(num_ranks: int) -> int:
    return min(DIVISORS, key=lambda m: step_milliseconds(num_ranks, m))


def judge_best(num_ranks: int, answer: Any) -> Verdict:
    """Whether no other number of micro-batches that divides the batch makes the step shorter."""
    value = as_number(answer)
    if isinstance(value, Verdict):
        return value
    if value not in DIVISORS:
        return Verdict(
            f"The micro-batches are to be equally large, so m is one of 1, 2, 4, 8, 16, 32 and 64, and this is "
            f"{short(answer)}."
        )
    m, best = int(value), best_microbatches(num_ranks)
    here, there = step_milliseconds(num_ranks, m), step_milliseconds(num_ranks, best)
    if m == best:
        return Verdict(
            f"{here:g} ms. With half as many the bubble costs more than is saved, with twice as many the fixed "
            f"{FIXED:g} ms do.",
            right=True,
        )
    if m > best:
        return Verdict(
            f"With m = {m} the step takes {here:g} ms, and fewer micro-batches take {there:g}. The bubble is small "
            f"here, but each micro-batch pays the fixed {FIXED:g} ms on each rank."
        )
    return Verdict(
        f"With m = {m} the step takes {here:g} ms, and more micro-batches take {there:g}. Little is paid twice here, "
        f"but the ranks wait long for the first micro-batch to come and for the last to go."
    )


_COSTS = (
    "F + B of one stage take 2 ms for each micro-batch and 0.5 ms more for each of its samples. The batch has 64 "
    "samples and is cut into m micro-batches of equal size, under 1F1B on equal stages with free transfers."
)

the_best_m = Exercise(
    name="04.1",
    question=f"{_COSTS}\n\nThere are four ranks. Which m makes the step shortest?",
    judge=lambda answer: judge_best(FEW_RANKS, answer),
    solution=lambda: 8,
    mistakes=(
        Mistake(lambda: 64, "each micro-batch pays the fixed 2 ms"),
        Mistake(lambda: 16, "fewer micro-batches take 66"),
        Mistake(lambda: 4, "the ranks wait long for the first micro-batch"),
        Mistake(lambda: 1, "With m = 1 the step takes 136 ms"),
        Mistake(lambda: 7, "one of 1, 2, 4, 8, 16, 32 and 64"),
    ),
)

# --- 04.2: more ranks -----------------------------------------------------------------------------------------

more_ranks = Exercise(
    name="04.2",
    question=f"{_COSTS}\n\nNow there are 13 ranks instead of four, each with a stage that costs as much as before: "
    "p − 1 is four times as large. Which m makes the step shortest?",
    judge=lambda answer: judge_best(MANY_RANKS, answer),
    solution=lambda: 16,
    mistakes=(
        Mistake(lambda: 8, "With m = 8 the step takes 120 ms, and more micro-batches take 112"),
        Mistake(lambda: 32, "With m = 32 the step takes 132 ms, and fewer micro-batches take 112"),
        Mistake(lambda: 28, "one of 1, 2, 4, 8, 16, 32 and 64"),
    ),
)

# --- 04.3: the batch grows with m -----------------------------------------------------------------------------

SAMPLES, BUBBLE = 4, 0.10


def samples_for(name: str) -> int:
    """The smallest batch of micro-batches of four whose bubble, in one of its definitions, is at most a tenth."""
    at_most = BUBBLE * (1 + 1e-9)  # sums are rounded
    m = next(m for m in range(1, 1000) if getattr(report_of(FEW_RANKS, m, SAMPLES), name) <= at_most)
    return SAMPLES * m


GROWING_MISTAKES = (
    Mistake(
        lambda: samples_for("bubble_fraction") / SAMPLES,
        "That many micro-batches it takes. The question is how many samples the batch has then.",
    ),
    Mistake(
        lambda: samples_for("bubble_ratio"),
        "There idle / busy comes down to 10 %, the bubble_ratio. The bubble_fraction is idle / all, which gets there "
        "earlier.",
    ),
    Mistake(
        lambda: BATCH,
        "64 samples are 16 micro-batches of four, and the bubble_fraction is then 3/19 = 15.8 %.",
    ),
)

a_batch_that_grows = Exercise(
    name="04.3",
    question="Now a micro-batch always has four samples, and a larger batch has more of them: no action gets shorter, "
    "so the more the better. But the batch decides what is learnt in a step, too.\n\n"
    "Four equal stages on four ranks under 1F1B, free transfers. How many samples must a batch have at least for a "
    "bubble_fraction of 10 % or less?",
    judge=number_judge(
        lambda: samples_for("bubble_fraction"),
        "(p − 1)/(m + p − 1) = 3/30 at m = 27. Twice the ranks want more than twice the batch: m = 63, 252 samples.",
        GROWING_MISTAKES,
        "(p − 1)/(m + p − 1) with p = 4 says which m it takes; each micro-batch has four samples.",
        tolerance=1e-9,
    ),
    solution=lambda: 108,
    mistakes=GROWING_MISTAKES,
)

EXERCISES = (the_best_m, more_ranks, a_batch_that_grows)
