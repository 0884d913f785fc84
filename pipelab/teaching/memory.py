"""Exercises of notebook 06: what a stage holds, a limit on memory, and a last stage that needs most."""

from __future__ import annotations

from typing import Any

from pipelab.core.costs import Costs, StageBytes
from pipelab.core.profile import Affine, Profile
from pipelab.core.quantities import as_bytes
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, as_number, number_judge, short

MIB, GIB = 2.0**20, 2.0**30

# --- 06.1: what the first rank holds ------------------------------------------------------------------------

LAYERS, RANKS, MICROBATCHES = 16, 8, 16


def rank_peaks(name: str) -> list[float]:
    """GiB of activations that each rank holds at most; every layer keeps 1 GiB for a micro-batch."""
    per_stage = (LAYERS / RANKS * GIB,) * RANKS
    free = (0.0,) * RANKS
    held = StageBytes(parameters=free, activations=per_stage, outputs=free)
    costs = Costs((1.0,) * RANKS, (1.0,) * RANKS, (1.0,) * RANKS, bytes=held)
    one = schedule(name, num_ranks=RANKS, num_microbatches=MICROBATCHES)
    peaks = simulate(one, costs).report().peak_bytes
    assert peaks is not None  # the costs have bytes
    return [peak / GIB for peak in peaks]


FIRST_MISTAKES = (
    Mistake(
        lambda: LAYERS / RANKS,
        "That is one micro-batch: 16 layers over 8 ranks. How many micro-batches does rank 0 have in flight before "
        "the first backward comes back to it?",
    ),
    Mistake(
        lambda: rank_peaks("gpipe")[0],
        "That is GPipe, which holds all 16 micro-batches. Under 1F1B rank 0 starts its first backward earlier.",
    ),
    Mistake(
        lambda: (RANKS - 1) * LAYERS / RANKS,
        "Seven warm-up forwards, and then one more before the first backward is done.",
    ),
    Mistake(
        lambda: float(LAYERS * RANKS),
        "That is 8 micro-batches of the whole model; rank 0 has two of the 16 layers.",
    ),
)

first_rank = Exercise(
    name="06.1",
    question="A model has 16 equal layers, and each keeps 1 GiB of activations for a micro-batch. On one device, one "
    "micro-batch after the other, these are 16 GiB.\n\n"
    "Now p = 8 ranks run two layers each under 1F1B, with m = 16 micro-batches of the same size. How many GiB of "
    "activations does rank 0 hold at its peak?",
    judge=number_judge(
        lambda: rank_peaks("1f1b")[0],
        "An eighth of the layers, and eight micro-batches of it in flight: as much as one device alone held.",
        FIRST_MISTAKES,
        'Simulate it: `pp.schedule("1f1b", num_ranks=8, num_microbatches=16)` and its `peak_in_flight`.',
    ),
    solution=lambda: 16,
    mistakes=FIRST_MISTAKES,
)

# --- 06.2: as many micro-batches as a limit asks for --------------------------------------------------------

BATCH, LIMIT = 64, 1 * GIB


def small_profile(kept: dict[str, float]) -> Profile:
    """Layers that take equally long, with the bytes that each keeps for a sample."""
    count, nothing = len(kept), Affine(0.0, 0.0)
    equal = (Affine(0.0, 1e-3),) * count
    return Profile(
        layers=tuple(kept),
        forward=equal,
        input_grad=equal,
        weight_grad=equal,
        parameter_bytes=(0,) * count,
        activation_bytes=tuple(Affine(0.0, size) for size in kept.values()),
        output_bytes=(nothing,) * count,
        batch_size=1,
        measured_sizes=(1, 2),
        device="made up",
    )


PROFILE = small_profile({f"blocks.{n}": 16 * MIB for n in range(16)})


def peak_at(num_microbatches: int, name: str = "1f1b") -> float:
    """Bytes that the fullest of four ranks holds when the batch is cut in so many."""
    size = -(-BATCH // num_microbatches)  # the largest micro-batch
    costs = PROFILE.costs(Split(["blocks.4", "blocks.8", "blocks.12"]), size)
    one = schedule(name, num_ranks=4, num_microbatches=num_microbatches)
    peaks = simulate(one, costs).report().peak_bytes
    assert peaks is not None  # the profile has bytes
    return max(peaks)


def judge_limit(answer: Any) -> Verdict:
    value = as_number(answer)
    if isinstance(value, Verdict):
        return value
    if value != int(value) or not 1 <= value <= BATCH:
        return Verdict(
            f"A whole number from 1 to {BATCH} is wanted, one sample at least each, not {short(answer)}."
        )
    m = int(value)
    held = peak_at(m)
    if held > LIMIT:
        return Verdict(
            f"With m = {m} a rank holds {as_bytes(held)}: too much. Under 1F1B no rank has more than 4 micro-batches "
            f"in flight; what is left to change is how large each of them is."
        )
    if m > 1 and peak_at(m - 1) <= LIMIT:
        return Verdict(
            f"With m = {m} a rank holds {as_bytes(held)}, which will do; so do fewer micro-batches."
        )
    gpipe = as_bytes(peak_at(m, "gpipe"))
    return Verdict(
        f"4 micro-batches of {BATCH // m} samples: {as_bytes(held)}. GPipe holds {gpipe} at every m, because it holds "
        f"the whole batch.",
        right=True,
    )


under_a_limit = Exercise(
    name="06.2",
    question="A batch has 64 samples. A stage of four layers keeps 64 MiB for each of them, and p = 4 such stages run "
    "1F1B. (Weights and gradients are not counted here.)\n\n"
    "What is the smallest number of micro-batches m with which no rank holds more than 1 GiB of activations?",
    judge=judge_limit,
    solution=lambda: 16,
    mistakes=(
        Mistake(lambda: 4, "With m = 4 a rank holds 4 GiB"),
        Mistake(lambda: 8, "With m = 8 a rank holds 2 GiB"),
        Mistake(lambda: 15, "too much"),
        Mistake(lambda: 64, "so do fewer"),
        Mistake(lambda: 128, "from 1 to 64"),
        Mistake(lambda: "16", "A number is wanted"),
    ),
)

# --- 06.3: a head that needs most ---------------------------------------------------------------------------

HEAD, MOST = 8, 1000 * MIB
WITH_HEAD = small_profile({**{f"blocks.{n}": 100 * MIB for n in range(12)}, "head": HEAD * 100 * MIB})


def peaks_of(split: Split) -> tuple[float, ...]:
    """Bytes that each of four ranks holds at most under 1F1B with eight micro-batches of one sample."""
    one = schedule("1f1b", num_ranks=4, num_microbatches=8)
    peaks = simulate(one, WITH_HEAD.costs(split)).report().peak_bytes
    assert peaks is not None  # the profile has bytes
    return peaks


def judge_split(answer: Any) -> Verdict:
    if isinstance(answer, list | tuple) and len(answer) <= 100 and all(isinstance(n, str) for n in answer):
        answer = Split(answer)
    if not isinstance(answer, Split):
        example = 'pp.Split(["blocks.3", "blocks.6", "blocks.9"])'
        return Verdict(f"A split is wanted, such as `{example}`, and this is {short(answer)}.")
    if answer.num_stages != 4:
        return Verdict(
            f"This makes {answer.num_stages} stages; four ranks with a stage each want three cuts."
        )
    peaks = peaks_of(answer)
    highest = peaks.index(max(peaks))
    held = ", ".join(as_bytes(peak) for peak in peaks)
    if max(peaks) <= MOST:
        return Verdict(
            f"The ranks hold {held}. A block counts as often as its rank has micro-batches in flight, so the first "
            f"stages get few of them, and the last one as few as its head leaves room for.",
            right=True,
        )
    if highest == 3:
        return Verdict(
            f"The ranks hold {held}. Rank 3 has one micro-batch in flight, but the head alone keeps as much as {HEAD} "
            f"blocks: give its stage fewer of them."
        )
    return Verdict(
        f"The ranks hold {held}. Rank {highest} has {4 - highest} micro-batches in flight, so every block there counts "
        f"{4 - highest} times: give it fewer, and a later stage more."
    )


head_room = Exercise(
    name="06.3",
    question="Twelve blocks keep 100 MiB each for a micro-batch, and the vocabulary head behind them keeps 800 MiB. "
    "Four ranks run 1F1B with m = 8, one stage each. (Weights are not counted here.) With three blocks on every rank, "
    "rank 0 holds 1.17 GiB.\n\n"
    "Where do you cut so that no rank holds more than 1,000 MiB? Answer with a split; the layers are `blocks.0` to "
    "`blocks.11` and `head`.",
    judge=judge_split,
    solution=lambda: Split(["blocks.2", "blocks.5", "blocks.10"]),
    mistakes=(
        Mistake(lambda: Split(["blocks.3", "blocks.6", "blocks.9"]), "Rank 0 has 4 micro-batches in flight"),
        Mistake(lambda: Split(["blocks.2", "blocks.5", "blocks.8"]), "give its stage fewer"),
        Mistake(lambda: ["blocks.2", "blocks.6", "blocks.10"], "Rank 1 has 3 micro-batches in flight"),
        Mistake(lambda: Split(["blocks.2", "blocks.5", "head"]), "Rank 2 has 2 micro-batches in flight"),
        Mistake(lambda: Split(["blocks.6"]), "This makes 2 stages"),
        Mistake(lambda: Split(["blocks.2", "blocks.5", "layer.10"]), "no layer of this profile"),
        Mistake(lambda: 3, "A split is wanted"),
    ),
)

EXERCISES = (first_rank, under_a_limit, head_room)
