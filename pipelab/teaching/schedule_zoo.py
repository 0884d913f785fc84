"""Exercises of notebook 07: a schedule for little memory, what latency costs, and a warm-up of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pipelab.core.actions import as_index
from pipelab.core.costs import Costs
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.core.sweep import Sweep
from pipelab.errors import nearest
from pipelab.planning.sweep import sweep
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, number_judge, short

# --- 07.1: the shortest step that fits ----------------------------------------------------------------------

CAP_RANKS, CAP_MICROBATCHES, CAP = 8, 32, 5


@cache
def candidates() -> Sweep:
    """Every named schedule that is a training step of whole micro-batches, at the size of the exercise."""
    names = [name for name, info in SCHEDULES.items() if info.is_step]
    found = sweep(schedules=names, num_ranks=CAP_RANKS, num_microbatches=CAP_MICROBATCHES, progress=False)
    return found.where(schedule={point.schedule for point in found if not point.refusal})


def judge_fitting(answer: Any) -> Verdict:
    if not isinstance(answer, str):
        return Verdict(f"The name of a schedule is wanted, such as '1f1b', and this is {short(answer)}.")
    if answer not in candidates().schedules:
        near = nearest(answer, candidates().schedules)
        hint = f"Did you mean {near[0]!r}?" if near else "`print(pp.SCHEDULES)` lists them."
        return Verdict(f"{short(answer)} is no schedule of one training step here. {hint}")
    (point,) = candidates().where(schedule=answer)
    best = candidates().best(peak_activations=CAP)
    held, taken = point.value("peak_activations"), point.value("makespan")
    if held > CAP:
        return Verdict(
            f"{answer} takes {taken:g} s, but a rank holds {held:g} micro-batches at its peak; {CAP} fit."
        )
    if taken > best.value("makespan") * (1 + 1e-9):
        return Verdict(
            f"{answer} fits, with {held:g} micro-batches at its peak, and takes {taken:g} s. "
            "One that also fits is shorter."
        )
    return Verdict(
        f"{answer}: {taken:g} s with {held:g} micro-batches at the peak. 1F1B holds {CAP_RANKS} on its first rank "
        "and needs longer.",
        right=True,
    )


fitting_schedule = Exercise(
    name="07.1",
    question=f"Eight ranks, {CAP_MICROBATCHES} micro-batches (p = 8, m = {CAP_MICROBATCHES}); F = I = W = 1 for the "
    "stages of a rank together, free transfers. A rank has room for the activations of "
    f"{CAP} micro-batches of its share of the model: `peak_activations` of at most {CAP}.\n\n"
    "Which schedule has the shortest step? Answer with its name. Schedules that are not one training step, or that cut "
    "micro-batches into slices, do not count.",
    judge=judge_fitting,
    solution=lambda: candidates().best(peak_activations=CAP).schedule,
    mistakes=(
        Mistake(lambda: candidates().best().schedule, "but a rank holds"),
        Mistake(lambda: "1f1b", "holds 8 micro-batches at its peak; 5 fit"),
        Mistake(lambda: candidates().best("peak_activations").schedule, "One that also fits is shorter"),
        Mistake(lambda: "1F1B", "Did you mean '1f1b'?"),
        Mistake(lambda: "forward-only", "is no schedule of one training step"),
        Mistake(lambda: 5, "The name of a schedule is wanted"),
    ),
)

# --- 07.2: what latency costs -------------------------------------------------------------------------------

LATENCY = 0.5


def added_by_latency(name: str, num_microbatches: int) -> float:
    """Seconds by which a transfer time of `LATENCY` lengthens a step on four ranks at F = I = W = 1."""
    order = schedule(name, num_ranks=4, num_microbatches=num_microbatches)
    slow, free = (simulate(order, Costs.uniform(4, latency=c)).makespan for c in (LATENCY, 0.0))
    return slow - free


LATENCY_MISTAKES = (
    Mistake(
        lambda: added_by_latency("gpipe", 16),
        "That is what GPipe pays: down the ranks once and up once, 2(p - 1) transfers. Under 1F1B a rank waits "
        "for the answer to what it sent, again and again.",
    ),
    Mistake(
        lambda: added_by_latency("1f1b", 8),
        "That is what 1F1B pays at m = 8. The longest path zigzags between neighbours for as long as there are "
        "micro-batches: with more of them it crosses more often.",
    ),
    Mistake(
        lambda: 2 * added_by_latency("1f1b", 8),
        "That is twice the number of m = 8. Warm-up and cool-down are crossed once whatever m is, so it less than "
        "doubles.",
    ),
    Mistake(
        lambda: added_by_latency("1f1b", 16) / LATENCY,
        "So many transfers lie on the longest path. Each takes half a second.",
    ),
    Mistake(
        lambda: (
            simulate(
                schedule("1f1b", num_ranks=4, num_microbatches=16), Costs.uniform(4, latency=LATENCY)
            ).makespan
        ),
        "That is the whole step. By how much is it longer than with free transfers?",
    ),
)

cost_of_latency = Exercise(
    name="07.2",
    question="Four equal stages under 1F1B, sixteen micro-batches (p = 4, m = 16, F = I = W = 1). Each transfer "
    "between two ranks takes half a second.\n\n"
    "By how many seconds is the step longer than with free transfers?",
    judge=number_judge(
        lambda: added_by_latency("1f1b", 16),
        "28 transfers lie on the longest path, 12 more than at m = 8. GPipe pays for 6, whatever m is.",
        LATENCY_MISTAKES,
        "`pp.Costs.uniform(4, latency=0.5)` makes the costs; "
        "`pp.plot_timeline(trace, critical_path=True)` shows where the path crosses.",
    ),
    solution=lambda: 14,
    mistakes=LATENCY_MISTAKES,
)

# --- 07.3: a warm-up of one's own ---------------------------------------------------------------------------

WARM_RANKS, WARM_MICROBATCHES, WARM_SECONDS, WARM_HELD = 4, 8, 37.0, 5


def with_warmup(warmup: Sequence[int]) -> Schedule:
    """Rank r runs `warmup[r]` forwards, then one forward and one backward in turn, then the backwards that are left."""
    m, orders = WARM_MICROBATCHES, []
    for rank, first in enumerate(warmup):
        forwards, backwards = ([f"{rank}{kind}{i}" for i in range(m)] for kind in "FB")
        turns = [cell for pair in zip(forwards[first:], backwards, strict=False) for cell in pair]
        orders.append(forwards[:first] + turns + backwards[m - first :])
    return Schedule(orders, name="own warm-up")


def warm_report(warmup: Sequence[int]) -> Report:
    return simulate(with_warmup(warmup), Costs.uniform(WARM_RANKS, latency=LATENCY)).report()


def judge_warmup(answer: Any) -> Verdict:
    if not isinstance(answer, list | tuple) or len(answer) != WARM_RANKS:
        return Verdict(f"Four numbers are wanted, such as `[3, 2, 1, 0]`, and this is {short(answer)}.")
    warmup = [as_index("a warm-up", number) for number in answer]
    if not all(0 <= number <= WARM_MICROBATCHES for number in warmup):
        return Verdict(
            f"Each number is from 0 to {WARM_MICROBATCHES}, the forwards there are; not {short(answer)}."
        )
    found = warm_report(warmup)  # refuses what cannot run, and says which action waits for what
    held = max(found.peak_in_flight)
    said = f"{found.makespan:g} s, with {' '.join(map(str, found.peak_in_flight))} in flight"
    if held > WARM_HELD:
        return Verdict(
            f"{said}: rank {found.peak_in_flight.index(held)} holds more than {WARM_HELD}. Begin less."
        )
    if found.makespan > WARM_SECONDS:
        return Verdict(
            f"{said}: still longer than {WARM_SECONDS:g} s. Somewhere a rank waits for an answer with nothing to do: "
            "`trace.why(rank, time)` says for what."
        )
    return Verdict(
        f"{said}. One forward more on each rank but the last is in flight while the answer travels.",
        right=True,
    )


own_warmup = Exercise(
    name="07.3",
    question="Four ranks, eight micro-batches, half a second for each transfer (p = 4, m = 8, F = 1, B = 2). 1F1B "
    "begins with 3, 2, 1 and 0 forwards on ranks 0 to 3 and takes 41 s. Eager 1F1B begins with 6, 4, 2 and 0, takes "
    "36 s, and holds 7 micro-batches on rank 0.\n\n"
    f"Choose your own: at most {WARM_SECONDS:g} s, and at most {WARM_HELD} micro-batches in flight on any rank. After "
    "these forwards each rank runs one forward and one backward in turn. Answer with four numbers, rank 0 first.",
    judge=judge_warmup,
    solution=lambda: [4, 3, 2, 0],
    mistakes=(
        Mistake(lambda: [3, 2, 1, 0], "41 s, with 4 3 2 1 in flight: still longer"),
        Mistake(lambda: [6, 4, 2, 0], "rank 0 holds more than 5"),
        Mistake(lambda: [8, 8, 8, 8], "rank 0 holds more than 5"),
        Mistake(lambda: [4, 3, 2, 1], "40 s, with 5 4 3 2 in flight: still longer"),
        Mistake(lambda: [0, 1, 2, 3], "0F"),
        Mistake(lambda: [9, 3, 2, 0], "from 0 to 8"),
        Mistake(lambda: 4, "Four numbers are wanted"),
    ),
)

EXERCISES = (fitting_schedule, cost_of_latency, own_warmup)
