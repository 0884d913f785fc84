"""Exercises of notebook 05: three fast devices, a split under a heavy head, and how many ranks a head lets work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pipelab.core.costs import Costs
from pipelab.core.profile import Affine, Profile
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.split import Split
from pipelab.planning.balance import balance
from pipelab.teaching.exercise import Exercise, Mistake, Verdict, as_number, number_judge, short

RANKS, MICROBATCHES, MIB = 4, 16, 2**20

# --- 05.1: all devices but one ------------------------------------------------------------------------------


def unit_makespan(times: Sequence[float]) -> float:
    """A step of 1F1B whose stage s takes times[s] seconds for F and twice as many for B."""
    table = schedule("1f1b", num_ranks=len(times), num_microbatches=MICROBATCHES)
    each = tuple(times)
    return simulate(table, Costs(each, each, each)).makespan


ALL_BUT_ONE = (0.5, 0.5, 0.5, 1.0)

FAST_MISTAKES = (
    Mistake(
        lambda: unit_makespan((0.5,) * RANKS),
        "That is what four fast devices take. Rank 3 has the old one, and every micro-batch passes through it.",
    ),
    Mistake(
        lambda: sum(ALL_BUT_ONE) / RANKS * unit_makespan((1.0,) * RANKS),
        "That is 57 s times the mean speed-up of the ranks. Ranks work side by side: saved time is shared out only "
        "if nobody has to wait.",
    ),
    Mistake(
        lambda: unit_makespan((1.0,) * RANKS),
        "Almost, but not nothing: the first micro-batch comes to rank 3 sooner, and the last one gets back sooner.",
    ),
    Mistake(
        lambda: MICROBATCHES * 3.0,
        "So long rank 3 works. Before that it waits for the first F, and after it the last B goes back through "
        "three ranks.",
    ),
)

three_fast_devices = Exercise(
    name="05.1",
    question="Four equal stages run 16 micro-batches under 1F1B, F = 1 s and B = 2 s each, free transfers: 57 s.\n\n"
    "Ranks 0, 1 and 2 get devices twice as fast (F = 0.5 s, B = 1 s). Rank 3 keeps its old one. How many seconds does "
    "the step take now?",
    judge=number_judge(
        lambda: unit_makespan(ALL_BUT_ONE),
        "16 × 3 s on rank 3, and 3 × 1.5 s on the way there and back: three new devices save 8 % of the step.",
        FAST_MISTAKES,
        "Rank 3 has 16 times F + B to do, whatever the others do. What comes before its first F and after its last B?",
    ),
    solution=lambda: 52.5,
    mistakes=FAST_MISTAKES,
)

# --- 05.2: a split under a heavy head ------------------------------------------------------------------------


def made_up(milliseconds: Mapping[str, float], mebibytes: Mapping[str, int] | None = None) -> Profile:
    """A profile of layers whose F + I + W take so long for a micro-batch, a third each."""
    thirds = tuple(Affine(0.0, ms / 3000) for ms in milliseconds.values())
    nothing = (Affine(0.0),) * len(thirds)
    sizes = {} if mebibytes is None else mebibytes
    return Profile(
        layers=tuple(milliseconds),
        forward=thirds,
        input_grad=thirds,
        weight_grad=thirds,
        parameter_bytes=tuple(MIB * sizes.get(layer, 0) for layer in milliseconds),
        activation_bytes=nothing,
        output_bytes=nothing,
        batch_size=1,
        measured_sizes=(1, 2),
        device="made up",
    )


def step_milliseconds(profile: Profile, split: Split) -> float:
    """A step of 1F1B on as many ranks as the split has stages."""
    table = schedule("1f1b", num_ranks=split.num_stages, num_microbatches=MICROBATCHES)
    return 1000 * simulate(table, profile.costs(split)).makespan


BLOCKS = tuple(f"blocks.{n}" for n in range(12))
GPT = made_up(
    {"embedding": 1, **dict.fromkeys(BLOCKS, 2), "head": 5},
    {"embedding": 24, **dict.fromkeys(BLOCKS, 6), "head": 24},
)
EQUAL_COUNT = Split(["blocks.3", "blocks.6", "blocks.10"])  # 4, 3, 4 and 3 of the 14 layers
EQUAL_BYTES = Split(["blocks.1", "blocks.6", "blocks.11"])  # 30 MiB of parameters each


def judge_split(answer: Any) -> Verdict:
    """Whether no split makes the step shorter; what is slow about another one."""
    if isinstance(answer, list | tuple) and len(answer) <= len(GPT.layers):
        answer = Split(answer)
    if not isinstance(answer, Split):
        return Verdict(
            f'A split is wanted, such as `pp.Split(["blocks.3", "blocks.6", "blocks.9"])`, and this is {short(answer)}.'
        )
    if answer.num_stages != RANKS:
        return Verdict(
            f"This makes {answer.num_stages} stages; four ranks with a stage each want three cuts."
        )
    taken, least = (step_milliseconds(GPT, split) for split in (answer, balance(GPT, RANKS)))
    stages = [1000 * sum(GPT.seconds()[part]) for part in GPT.stages(answer)]
    found = f"The stages take {', '.join(f'{ms:.0f}' for ms in stages)} ms and a step {taken:.0f} ms"
    if taken <= least * 1.001:
        return Verdict(
            f"{found}. The head counts for two and a half blocks, the embedding for half a block.", right=True
        )
    slowest = stages.index(max(stages))
    return Verdict(f"{found}; {least:.0f} ms are possible. {_remark(answer, slowest)}")


def _remark(split: Split, slowest: int) -> str:
    if GPT.stages(split) == GPT.stages(EQUAL_BYTES):
        return (
            "Each stage has 30 MiB of parameters, but time is another matter: an embedding looks rows up, it does not "
            "multiply its table. Stage 0 has little to do and waits for the others."
        )
    if slowest == RANKS - 1:
        return "Stage 3 is the slowest: the head is one layer, but it takes as long as two and a half blocks."
    return f"Every micro-batch waits for stage {slowest}, the slowest: move a border of it so that it gets shorter."


heavy_head = Exercise(
    name="05.2",
    question="A GPT has these layers, with the time of F + I + W for one micro-batch and the size of the weights:\n\n"
    "    embedding               1 ms   24 MiB\n"
    "    blocks.0 … blocks.11    2 ms    6 MiB   each\n"
    "    head                    5 ms   24 MiB\n\n"
    "Four ranks run 16 micro-batches under 1F1B. Which split makes the step shortest? Answer with a `pp.Split([...])` "
    "of the three layers at which stages 1, 2 and 3 begin.",
    judge=judge_split,
    solution=lambda: Split(["blocks.3", "blocks.7", "blocks.11"]),
    mistakes=(
        Mistake(lambda: EQUAL_COUNT, "The stages take 7, 6, 8, 9 ms"),
        Mistake(lambda: EQUAL_BYTES, "Each stage has 30 MiB of parameters, but time is another matter"),
        Mistake(lambda: Split(["blocks.3", "blocks.6", "blocks.9"]), "Stage 3 is the slowest: the head"),
        Mistake(lambda: Split(["blocks.4", "blocks.8", "head"]), "Every micro-batch waits for stage 0"),
        Mistake(lambda: ["blocks.3", "blocks.7", "head"], "Every micro-batch waits for stage 2"),
        Mistake(lambda: Split(["blocks.6"]), "This makes 2 stages"),
        Mistake(lambda: Split(["blocks.3", "blocks.7", "layers.11"]), "no layer of this profile"),
        Mistake(lambda: "blocks.3", "A split is wanted"),
    ),
)

# --- 05.3: as many ranks as a head lets work ------------------------------------------------------------------

UNCUT = made_up({**dict.fromkeys(BLOCKS, 2), "head": 8})


@cache
def best_step(num_ranks: int) -> float:
    """Milliseconds of a step on so many ranks, under the split whose slowest stage is fastest."""
    return step_milliseconds(UNCUT, balance(UNCUT, num_ranks))


def judge_ranks(answer: Any) -> Verdict:
    """Whether more ranks would not make the step shorter, and fewer would make it longer."""
    value = as_number(answer)
    if isinstance(value, Verdict):
        return value
    if value not in range(1, UNCUT.num_layers + 1):
        return Verdict(
            f"There are {UNCUT.num_layers} layers, so 1 to {UNCUT.num_layers} ranks can have one, and this is "
            f"{short(answer)}."
        )
    ranks, most = int(value), UNCUT.num_layers
    here, least = best_step(ranks), min(best_step(n) for n in range(1, most + 1))
    if here > least * 1.001:
        return Verdict(
            f"{ranks} ranks take {here:.0f} ms at best, and more of them {least:.0f} ms. How long does the slowest "
            f"stage take here, and which layer can it not fall below?"
        )
    if ranks > 1 and best_step(ranks - 1) <= least * 1.001:
        return Verdict(
            f"{ranks} ranks take {here:.0f} ms, and so do fewer: {ranks - 1} ranks take {best_step(ranks - 1):.0f} ms. "
            f"Every rank that is not needed waits for the slowest stage, and is paid for."
        )
    return Verdict(
        f"32 ms in four stages of 8 ms, one of them the head alone: {here:.0f} ms. From there on the head sets the "
        f"pace, and {most} ranks take {best_step(most):.0f} ms. What helps now is to cut the head itself in two.",
        right=True,
    )


enough_ranks = Exercise(
    name="05.3",
    question="Twelve blocks take 2 ms each for a micro-batch (F + I + W), and the head behind them takes 8 ms; a layer "
    "cannot be cut in two. 16 micro-batches run under 1F1B, a stage on each rank, free transfers, the best split for "
    "that number of ranks.\n\n"
    "More ranks make the step shorter, up to a number. With how many ranks at least is it as short as it can get?",
    judge=judge_ranks,
    solution=lambda: 4,
    mistakes=(
        Mistake(lambda: 13, "and so do fewer: 12 ranks take 152 ms"),
        Mistake(lambda: 5, "and so do fewer: 4 ranks take 152 ms"),
        Mistake(lambda: 3, "3 ranks take 212 ms at best, and more of them 152 ms"),
        Mistake(lambda: 2, "which layer can it not fall below?"),
        Mistake(lambda: 16, "There are 13 layers"),
        Mistake(lambda: "four", "A number is wanted"),
    ),
)

EXERCISES = (three_fast_devices, heavy_head, enough_ranks)
