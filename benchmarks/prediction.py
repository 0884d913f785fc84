"""Predicted against measured: how far is a simulated step from the real one?

    python benchmarks/prediction.py [--repeats 7]

For each schedule, two splits and two numbers of micro-batches of one batch: the prediction comes from one profile, made
before any pipelined run and never from the step it predicts; the measurement is the median of several steps after
two to warm up, on the wall clock (a thread a rank, one core each) and on the virtual clock (the same actions one at a
a time, placed on ideal devices). The noise is half the distance between the quartiles of the measured steps. "drift" is
what a fixed kernel took after the pipelined steps against before: the machine's own change of speed in between.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pipelab as pp

BATCH, VOCAB, CONTEXT, RANKS = 16, 2048, 128, 2
RUNS = (("naive", 1), ("gpipe", 1), ("1f1b", 1), ("interleaved-1f1b", 2))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def reference_kernel() -> float:
    """Seconds of a fixed piece of work in one thread: tells how fast the machine is at the moment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(512, 512)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        for _ in range(4):
            a @ a
        times.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return float(np.median(times))


def splits(profile: pp.Profile, num_stages: int) -> tuple[pp.Split, pp.Split]:
    """The balanced split, and one that is off by a block."""
    balanced = pp.balance(profile, num_stages=num_stages)
    index = [profile.layers.index(cut) for cut in balanced.cuts]
    return balanced, pp.Split([profile.layers[index[0] - 1], *balanced.cuts[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each case")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=8, width=256, heads=4, vocab=VOCAB, context=CONTEXT)
    x, y = torch.randint(0, VOCAB, (BATCH, CONTEXT)), torch.randint(0, VOCAB, (BATCH, CONTEXT))
    before = reference_kernel()
    profile = pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=9, progress=False)
    print("schedule           m  split      clock    predicted  measured  noise    error")
    errors: dict[str, list[float]] = {"wall": [], "virtual": []}
    for name, per_rank in RUNS:
        for num_microbatches in (4, 8):
            for kind, split in zip(("balanced", "shifted"), splits(profile, RANKS * per_rank), strict=True):
                schedule = pp.schedule(
                    name, num_ranks=RANKS, num_microbatches=num_microbatches, stages_per_rank=per_rank
                )
                costs = profile.costs(split, batch_size=BATCH // num_microbatches)
                predicted = pp.simulate(schedule, costs).makespan
                for clock, devices in (("wall", ["cpu"] * RANKS), ("virtual", pp.virtual(RANKS))):
                    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=devices) as pipe:
                        for _ in range(2):
                            pipe.step(x, y, outputs=False)
                        model.zero_grad()
                        steps = [
                            pipe.step(x, y, outputs=False).trace.makespan for _ in range(options.repeats)
                        ]
                    low, measured, high = np.quantile(steps, [0.25, 0.5, 0.75])
                    error = predicted / measured - 1
                    errors[clock].append(abs(error))
                    print(
                        f"{name:17} {num_microbatches:2}  {kind:9}  {clock:7}  {predicted * 1e3:6.0f} ms  "
                        f"{measured * 1e3:6.0f} ms  {(high - low) / 2 / measured:5.1%}  {error:+7.1%}"
                    )
    drift = reference_kernel() / before - 1
    for clock, found in errors.items():
        print(f"{clock}: median absolute error {np.median(found):.1%}, largest {max(found):.1%}")
    print(f"drift of the reference kernel: {drift:+.1%}")


if __name__ == "__main__":
    main()
