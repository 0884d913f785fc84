"""Exercises of notebook 02: enough micro-batches, two numbers for one bubble, an order written by hand."""

from __future__ import annotations

from typing import Any

from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.simulation import simulate
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, as_number, number_judge, short
from pipelab.teaching.tour import unit_report

# --- 02.1: enough micro-batches, and not more ---------------------------------------------------------------

ENOUGH_RANKS, ENOUGH_BUBBLE, MOST_TRIED = 8, 0.10, 1000


def judge_enough(answer: Any) -> Verdict:
    value = as_number(answer)
    if isinstance(value, Verdict):
        return value
    if value != int(value) or value < 1:
        return Verdict(f"A whole number of micro-batches is wanted, at least 1, and this is {short(answer)}.")
    if value > MOST_TRIED:
        return Verdict(
            f"{short(answer)} are far more than needed: each one more makes the bubble_fraction smaller."
        )
    m = int(value)
    here = unit_report("1f1b", ENOUGH_RANKS, m)
    if here.bubble_fraction > ENOUGH_BUBBLE:
        return Verdict(
            f"With m = {m} the bubble_fraction is {here.bubble_fraction:.1%}: too few micro-batches."
        )
    if m == 1 or unit_report("1f1b", ENOUGH_RANKS, m - 1).bubble_fraction > ENOUGH_BUBBLE:
        return Verdict(
            f"With m = {m} the bubble_fraction is {here.bubble_fraction:.1%}, and with one less it is "
            f"above 10 %.",
            right=True,
        )
    if here.bubble_ratio <= ENOUGH_BUBBLE < unit_report("1f1b", ENOUGH_RANKS, m - 1).bubble_ratio:
        return Verdict(
            f"m = {m} is where the bubble_ratio (idle over busy) comes down to 10 %. "
            "The question is about the bubble_fraction (idle over all), which gets there earlier."
        )
    return Verdict(
        f"With m = {m} the bubble_fraction is {here.bubble_fraction:.1%}, which will do, but fewer "
        f"micro-batches do too."
    )


enough_microbatches = Exercise(
    name="02.1",
    question="Eight equal stages run under 1F1B on eight ranks (p = 8, F = I = W = 1, free transfers).\n\n"
    "What is the smallest number of micro-batches m for which the bubble_fraction is at most 10 %?",
    judge=judge_enough,
    solution=lambda: 63,
    mistakes=(
        Mistake(lambda: 70, "is where the bubble_ratio"),
        Mistake(lambda: 8, "too few micro-batches"),
        Mistake(lambda: 62, "too few micro-batches"),
        Mistake(lambda: 64, "fewer micro-batches do too"),
        Mistake(lambda: 10**12, "far more than needed"),
        Mistake(lambda: 62.5, "A whole number"),
    ),
)

# --- 02.2: two numbers for one bubble -----------------------------------------------------------------------

CONVERT_MISTAKES = (
    Mistake(
        lambda: unit_report("gpipe", 5, 16).bubble_ratio,
        "That is the number you were given. The two have the same numerator, the idle time, and different "
        "denominators: "
        "one divides by the busy time, the other by busy and idle together.",
    ),
    Mistake(
        lambda: unit_report("gpipe", 5, 16).bubble_ratio / (1 - unit_report("gpipe", 5, 16).bubble_ratio),
        "That goes the other way, from fraction to ratio. A share of the whole cannot be larger than the "
        "idle time over a part of it.",
    ),
    Mistake(
        lambda: 1 - unit_report("gpipe", 5, 16).bubble_ratio,
        "That would be the busy share if 0.25 were the fraction. Put it in numbers: 4 seconds of work and "
        "1 second idle.",
    ),
    Mistake(
        lambda: 100 * unit_report("gpipe", 5, 16).bubble_fraction,
        "The number is right as a percentage. Give it as a fraction, between 0 and 1.",
    ),
)

two_numbers = Exercise(
    name="02.2",
    question="A paper reports a bubble of 0.25 and defines it as idle time over the time of useful work: a "
    "bubble_ratio. "
    "(GPipe with p = 5 and m = 16 on equal stages has it.)\n\n"
    "What share of all the time that the devices are held is idle: what is the bubble_fraction?",
    judge=number_judge(
        lambda: unit_report("gpipe", 5, 16).bubble_fraction,
        "fraction = ratio / (1 + ratio). Which of the two a number is decides what it says: ask before you "
        "compare.",
        CONVERT_MISTAKES,
        "Simulate GPipe with p = 5 and m = 16 and look at both numbers of the report.",
    ),
    solution=lambda: 0.2,
    mistakes=CONVERT_MISTAKES,
)

# --- 02.3: an order by hand ---------------------------------------------------------------------------------

HAND_RANKS, HAND_MICROBATCHES = 2, 4
GPIPE_BY_HAND = [[f"{r}{kind}{i}" for kind in "FB" for i in range(4)] for r in range(2)]
NAIVE_BY_HAND = [[f"{r}{kind}{i}" for i in range(4) for kind in "FB"] for r in range(2)]
ONE_F_ONE_B_BY_HAND = [
    ["0F0", "0F1", "0B0", "0F2", "0B1", "0F3", "0B2", "0B3"],
    ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2", "1F3", "1B3"],
]
BACKWARD_TOO_EARLY = [
    ["0F0", "0F1", "0B0", "0F2", "0B1", "0F3", "0B2", "0B3"],
    ["1B0", "1F0", *ONE_F_ONE_B_BY_HAND[1][2:]],
]


def judge_order(answer: Any) -> Verdict:
    if isinstance(answer, Schedule):
        written = answer
    elif not _looks_like_orders(answer):
        return Verdict(
            "Two lists of cells are wanted, one for each rank, such as `[['0F0', '0B0'], ['1F0', '1B0']]`, "
            f"and this is {short(answer)}."
        )
    else:
        written = Schedule(answer)  # refuses what cannot run, and says which action waits for what
    shape = (written.num_ranks, written.num_model_stages, written.num_microbatches)
    if shape != (HAND_RANKS, HAND_RANKS, HAND_MICROBATCHES) or not written.has_backward:
        return Verdict(
            f"This order has {shape[0]} ranks, {shape[1]} stages and {shape[2]} micro-batches"
            f"{'' if written.has_backward else ', and no backward'}. "
            f"Wanted: {HAND_RANKS} ranks with a stage each, {HAND_MICROBATCHES} micro-batches, forward and "
            f"backward."
        )
    found = simulate(written, Costs.uniform(num_stages=HAND_RANKS)).report()
    gpipe = unit_report("gpipe", HAND_RANKS, HAND_MICROBATCHES)
    if found.makespan > gpipe.makespan:
        return Verdict(
            f"It runs, in {found.makespan:g} units; GPipe needs {gpipe.makespan:g}. "
            "Somewhere a rank waits for work that another could have given it earlier: "
            "`print(pp.Schedule(orders))` shows where."
        )
    if max(found.peak_in_flight) > 2:
        return Verdict(
            f"It is as fast as GPipe, but a rank holds {max(found.peak_in_flight)} micro-batches at once. "
            "Let a rank start a backward as soon as it may, before it takes in another forward."
        )
    return Verdict(
        f"{found.makespan:g} units, as GPipe, with {' and '.join(map(str, found.peak_in_flight))} "
        f"micro-batches in flight: "
        "one forward, one backward, hence the name 1F1B.",
        right=True,
    )


def _looks_like_orders(answer: Any) -> bool:
    """Two short lists: anything else is not worth reading to its end, which it may not have."""
    return (
        isinstance(answer, list | tuple)
        and len(answer) == HAND_RANKS
        and all(isinstance(order, list | tuple) and len(order) <= 100 for order in answer)
    )


order_by_hand = Exercise(
    name="02.3",
    question="Write an order for two ranks and four micro-batches by hand (F = 1, B = 2, free transfers). "
    "It should take no longer "
    "than GPipe's order, and no rank may ever hold more than two micro-batches in flight.\n\n"
    "Answer with two lists of cells, for example `[['0F0', '0B0'], ['1F0', '1B0']]` for a single "
    "micro-batch: "
    "stage, F or B, micro-batch.",
    judge=judge_order,
    solution=lambda: ONE_F_ONE_B_BY_HAND,
    mistakes=(
        Mistake(lambda: GPIPE_BY_HAND, "as fast as GPipe, but a rank holds 4"),
        Mistake(lambda: NAIVE_BY_HAND, "GPipe needs"),
        Mistake(lambda: BACKWARD_TOO_EARLY, "1B0"),
        Mistake(lambda: [["0F0", "0B0"], ["1F0", "1B0"]], "1 micro-batches"),
        Mistake(lambda: [["0F0", "0B0"]], "Two lists of cells"),
        Mistake(lambda: "1f1b", "Two lists of cells"),
    ),
)

EXERCISES = (enough_microbatches, two_numbers, order_by_hand)
