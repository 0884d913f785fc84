"""Exercises of notebook 03: an action that hides, a step that waits, and what a machine's drift allows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pipelab.core.costs import Costs
from pipelab.core.gap import WAITING, explain_gap
from pipelab.core.profile import Affine, Profile
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.core.trace import Trace
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, as_number, number_judge, short

# --- 03.1: an action that gets longer where nobody waits for it ---------------------------------------------

FORWARD, HALF_BACKWARD = (
    (20.0, 30.0),
    (20.0, 30.0),
)  # ms of F, and of I as of W, on the fast stage and the slow one
MICROBATCHES = 8


def step_milliseconds(forward: tuple[float, float] = FORWARD) -> float:
    """One step of 1F1B on two ranks."""
    table = schedule("1f1b", num_ranks=2, num_microbatches=MICROBATCHES)
    return simulate(table, Costs(forward, HALF_BACKWARD, HALF_BACKWARD)).makespan


def longer_milliseconds() -> float:
    return step_milliseconds((25.0, 30.0)) - step_milliseconds()


HIDDEN_MISTAKES = (
    Mistake(
        lambda: MICROBATCHES * 5.0,
        "That would be so if somebody waited for each of the eight. Rank 1 has work of its own to do while most of "
        "them run.",
    ),
    Mistake(
        lambda: 0.0,
        "Most of them hide behind the slow stage, but not all: what does rank 1 do until its first input is there?",
    ),
    Mistake(
        lambda: 0.25 * step_milliseconds(),
        "25 % of one kind of action on one stage is not 25 % of the step.",
    ),
)

an_action_that_hides = Exercise(
    name="03.1",
    question="Two ranks run eight micro-batches under 1F1B, transfers are free. Predicted: F = 20 ms and B = 40 ms on "
    "stage 0, F = 30 ms and B = 60 ms on stage 1. In the measured step every F of stage 0 takes 25 ms instead of 20, "
    "all else is as predicted.\n\n"
    "By how many milliseconds is the step longer than predicted?",
    judge=number_judge(
        longer_milliseconds,
        "Rank 1 waits for the first F of stage 0 alone. From then on it is behind with its own work, and the other "
        "seven have time to spare. `explain_gap` counts what the step pays, not what the actions took.",
        HIDDEN_MISTAKES,
        "Simulate both: `pp.simulate(schedule, pp.Costs((20, 30), (20, 30), (20, 30)))` and the same with 25.",
    ),
    solution=lambda: 5,
    mistakes=HIDDEN_MISTAKES,
)

# --- 03.2: a step that is longer though no action is --------------------------------------------------------

WAIT_SHARE = 0.10


def judge_waiting(answer: Any) -> Verdict:
    if not isinstance(answer, Costs):
        return Verdict(
            f"Costs are wanted, such as `pp.Costs.uniform(num_stages=2)`, and this is {short(answer)}."
        )
    if answer.num_stages != 2:
        return Verdict(f"These are costs for {answer.num_stages} stages, and there are two.")
    table = schedule("1f1b", num_ranks=2, num_microbatches=4)
    predicted, longer = (simulate(table, costs) for costs in (Costs.uniform(2), answer))
    gap = explain_gap(predicted, longer)
    shares = {part.cause: part.seconds for part in gap.parts}
    others = {cause: seconds for cause, seconds in shares.items() if cause != WAITING}
    changed = [cause for cause, seconds in others.items() if not math.isclose(seconds, 0, abs_tol=1e-9)]
    if changed:
        return Verdict(
            f"The step takes {longer.makespan:g} s, and explain_gap finds {others[changed[0]]:+g} s of it under "
            f"{changed[0]!r}. Leave F, I and W at 1 second each, and let nothing follow the last action."
        )
    if shares[WAITING] < WAIT_SHARE * predicted.makespan:
        return Verdict(
            f"The right place, but the step is only {shares[WAITING] / predicted.makespan:.1%} longer."
        )
    return Verdict(
        f"{longer.makespan:g} s instead of {predicted.makespan:g}, all of it waiting: each value is late by what its "
        f"transfer takes, and under 1F1B a rank soon waits for the answer to what it has just sent.",
        right=True,
    )


a_step_that_waits = Exercise(
    name="03.2",
    question="1F1B with two ranks and four micro-batches, F = I = W = 1 second and free transfers: "
    "`pp.Costs.uniform(num_stages=2)`. A measured step is 10 % longer or more, yet every action takes exactly as long "
    "as predicted: `explain_gap` puts the whole difference under waiting.\n\n"
    "Write costs that give such a step: `pp.Costs(...)` or `pp.Costs.uniform(...)`.",
    judge=judge_waiting,
    solution=lambda: Costs.uniform(2, latency=0.5),
    mistakes=(
        Mistake(lambda: Costs.uniform(2, forward=1.5), "Leave F, I and W at 1 second each"),
        Mistake(lambda: Costs.uniform(2, update=2.0), "let nothing follow the last action"),
        Mistake(lambda: Costs.uniform(2, latency=0.1), "The right place, but the step is only"),
        Mistake(lambda: Costs.uniform(4, latency=0.5), "costs for 4 stages"),
        Mistake(lambda: 0.5, "Costs are wanted"),
    ),
)

# --- 03.3: what a drift allows ------------------------------------------------------------------------------

BEFORE, AFTER, PREDICTED = 300.0, 330.0, 500.0  # microseconds, microseconds, milliseconds


def drifting() -> Trace:
    """A prediction of 500 ms from a profile during which the machine slowed down by a tenth."""
    line, nothing = (Affine(PREDICTED / 3000),), (Affine(0.0),)
    profile = Profile(("all",), line, line, line, (0,), nothing, nothing, 1, (1, 2), "made up")
    profile = replace(profile, reference=(BEFORE, AFTER), band=(1.0, AFTER / BEFORE))
    return simulate(schedule("gpipe", num_ranks=1, num_microbatches=1), profile.costs(Split()))


def judge_band(answer: Any) -> Verdict:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return Verdict(
            f"Two numbers are wanted, the lowest and the highest, such as `(480, 520)`, and this is {short(answer)}."
        )
    pair = [as_number(one) for one in answer]
    for one in pair:
        if isinstance(one, Verdict):
            return one
    given = tuple(float(one) for one in pair if not isinstance(one, Verdict))
    band = drifting().band
    assert band is not None  # the profile has one
    if _close(given, tuple(1000 * second for second in band)):
        return Verdict(
            "While the profile was made the machine slowed down by a tenth, at a moment that nobody knows. So what was "
            "timed early may take a tenth longer now, and nothing may take less.",
            right=True,
        )
    hints = {
        (
            450.0,
            550.0,
        ): "The drift has a direction: the kernel took longer afterwards, so nothing got faster.",
        (450.0, 500.0): "The kernel took longer afterwards, so the machine got slower, and steps longer.",
        (500.0, 530.0): "The kernel's 30 us are a tenth of its own 300 us. A tenth of 500 ms is what counts.",
    }
    for wrong, hint in hints.items():
        if _close(given, wrong):
            return Verdict(hint)
    return Verdict(
        f"{short(answer)} is not it. By which factor did the machine get slower, and could that have happened before "
        f"all of the profile, or after all of it?"
    )


def _close(given: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, rel_tol=0.002) for a, b in zip(given, wanted, strict=True))


what_a_drift_allows = Exercise(
    name="03.3",
    question="A profile predicts a step of 500 ms. Before the profile was made a reference kernel took 300 us on this "
    "machine, afterwards 330 us, and it stays at that. When in between the machine got slower is not known.\n\n"
    "If nothing else is wrong with the prediction, between which two makespans does the measured step lie? Answer with "
    "the lowest and the highest, in milliseconds: `(lowest, highest)`.",
    judge=judge_band,
    solution=lambda: (500, 550),
    mistakes=(
        Mistake(lambda: (450, 550), "The drift has a direction"),
        Mistake(lambda: (450, 500), "the machine got slower, and steps longer"),
        Mistake(lambda: (500, 530), "a tenth of its own 300 us"),
        Mistake(lambda: (500, 600), "By which factor did the machine get slower"),
        Mistake(lambda: 550, "Two numbers are wanted"),
        Mistake(lambda: ("500", 550), "A number is wanted here"),
    ),
)

EXERCISES = (an_action_that_hides, a_step_that_waits, what_a_drift_allows)
