"""Predicted against measured: how far is a simulated step from the real one?

    python benchmarks/prediction.py [--repeats 7] [--schedules gpipe 1f1b interleaved-1f1b zb-h1] [--tuned] [--virtual]

The tour's GPT, 2 ranks, a thread and a core each. For each schedule, two splits and two numbers of micro-batches of one
batch. The predictions come from two profiles, made before any pipelined run and never from the step that they predict:

    alone   each layer by itself, medians
    beside  the same while a copy of the model trains on the other core, means: `pp.profile(..., ranks=2)`

No factor is fitted. The measurement is the median of several steps after two to warm up. "noise" is half the distance
between the quartiles of these steps. "drift" is what a fixed kernel took around these steps against what it took while
the model was profiled: so much did the machine's own speed change in between. "in band" says whether the measured step
lies in the band that the prediction comes with. With --tuned glibc keeps freed memory (`pp.tune_allocator`); with
--virtual the same steps run on the virtual clock too, where the layers alone are what is to be predicted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelab as pp
from pipelab.runtime.machine_speed import reference_seconds

BATCH, VOCAB, CONTEXT, RANKS = 16, 2048, 128, 2
STAGES_PER_RANK = {"interleaved-1f1b": 2, "interleaved-zb": 2, "zb-v": 2}
PROFILES = {"alone": 1, "beside": RANKS}


@dataclass(frozen=True)
class Case:
    """One step that is predicted."""

    split_name: str
    split: pp.Split
    schedule: pp.Schedule

    @property
    def text(self) -> str:
        return f"{self.schedule.name:17} {self.schedule.num_microbatches:2}  {self.split_name:8}"


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def cases(profile: pp.Profile, names: list[str]) -> Iterator[Case]:
    """Each schedule with 4 and 8 micro-batches, balanced and with the first border a block too early."""
    for name in names:
        per_rank = STAGES_PER_RANK.get(name, 1)
        balanced = pp.balance(profile, num_stages=RANKS * per_rank)
        first = profile.layers.index(balanced.cuts[0])
        shifted = pp.Split([profile.layers[first - 1], *balanced.cuts[1:]])
        for m in (4, 8):
            schedule = pp.schedule(name, num_ranks=RANKS, num_microbatches=m, stages_per_rank=per_rank)
            yield Case("balanced", balanced, schedule)
            yield Case("shifted", shifted, schedule)


def measured(
    model: nn.Module, x: Tensor, y: Tensor, case: Case, repeats: int, virtual: bool
) -> list[pp.Trace]:
    devices = pp.virtual(RANKS) if virtual else ["cpu"] * RANKS
    with pp.Pipeline(model, case.split, case.schedule, loss_fn=loss_fn, devices=devices) as pipe:
        traces = []
        for _ in range(2 + repeats):
            model.zero_grad()
            traces.append(pipe.step(x, y, outputs=False).trace)
    return traces[2:]


def show(
    case: Case, clock: str, traces: list[pp.Trace], predicted: dict[str, pp.Trace], drift: float
) -> dict[str, float]:
    """Prints the line of a case; returns the error of each prediction."""
    low, middle, high = np.quantile([trace.makespan for trace in traces], [0.25, 0.5, 0.75])
    errors = {name: trace.makespan / middle - 1 for name, trace in predicted.items()}
    bands = {
        name: trace.band[0] <= middle <= trace.band[1] for name, trace in predicted.items() if trace.band
    }
    noise = (high - low) / 2 / middle
    line = f"{case.text}  {clock:7}  {middle * 1e3:6.0f} ms  {noise:5.1%}  {drift:+6.1%}"
    for name in predicted:
        line += f"  {errors[name]:+7.1%} {'in band' if bands[name] else '       '}"
    print(line, flush=True)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each case")
    parser.add_argument("--schedules", nargs="+", default=["gpipe", "1f1b", "interleaved-1f1b", "zb-h1"])
    parser.add_argument("--tuned", action="store_true", help="with pp.tune_allocator()")
    parser.add_argument("--virtual", action="store_true", help="the virtual clock too")
    options = parser.parse_args()
    if options.tuned:
        print(pp.tune_allocator())
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=8, width=256, heads=4, vocab=VOCAB, context=CONTEXT)
    x, y = torch.randint(0, VOCAB, (BATCH, CONTEXT)), torch.randint(0, VOCAB, (BATCH, CONTEXT))
    begin = time.perf_counter()
    profiles = {
        name: pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=9, ranks=ranks, progress=False)
        for name, ranks in PROFILES.items()
    }
    speed = np.mean([profile.reference for profile in profiles.values()])
    for name, profile in profiles.items():
        low, high = profile.band
        print(f"profile {name}: drift {profile.drift:+.1%}, band {low - 1:+.1%} to {high - 1:+.1%}")
    header = "  ".join(f"{name:>7}        " for name in profiles)
    print(f"\nschedule           m  split     clock    measured   noise   drift  {header}")
    errors: dict[tuple[str, str], list[float]] = {}
    for case in cases(profiles["alone"], options.schedules):
        size = BATCH // case.schedule.num_microbatches
        predicted = {n: pp.simulate(case.schedule, p.costs(case.split, size)) for n, p in profiles.items()}
        for clock in ("wall", "virtual") if options.virtual else ("wall",):
            before = reference_seconds()
            traces = measured(model, x, y, case, options.repeats, clock == "virtual")
            drift = (before + reference_seconds()) / 2 / speed - 1
            for name, error in show(case, clock, traces, predicted, drift).items():
                errors.setdefault((clock, name), []).append(error)
    print()
    for (clock, name), found in errors.items():
        print(
            f"{clock} clock, profile {name}: median absolute error {np.median(np.abs(found)):.1%}, "
            f"largest {max(map(abs, found)):.1%}, mean {np.mean(found):+.1%}"
        )
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
