"""What `pp.tune_allocator()` changes: seconds and page faults of a step, with it and without, in turns.

    python benchmarks/allocator.py [--rounds 10] [--steps 3] [--width 256] [--schedules gpipe 1f1b zb-h1]

Two processes a schedule, one tuned and one not, since what is set stays set; they take turns (A B A B ...), so that a
drift of the machine's speed hits both alike. Two ranks, a thread each. The ratio is taken round by round; the interval
is a bootstrap of its median. Page faults are those of a whole step, without reading from disk; they do not depend on
what else the machine does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pipelab as pp

RANKS, MICROBATCHES, BATCH, VOCAB, CONTEXT, LAYERS = 2, 8, 16, 2048, 128, 8


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def steps_on_demand(name: str, width: int, tuned: bool, orders: Connection) -> None:
    """A process that runs as many steps as it is told and answers with (seconds, faults) of each."""
    if tuned:
        orders.send(str(pp.tune_allocator()))
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=LAYERS, width=width, heads=4, vocab=VOCAB, context=CONTEXT)
    x, y = torch.randint(0, VOCAB, (BATCH, CONTEXT)), torch.randint(0, VOCAB, (BATCH, CONTEXT))
    schedule = pp.schedule(name, num_ranks=RANKS, num_microbatches=MICROBATCHES)
    split = pp.Split([f"blocks.{LAYERS // 2}"])
    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=["cpu"] * RANKS) as pipe:
        while count := orders.recv():
            found = []
            for _ in range(count):
                model.zero_grad()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                seconds = pipe.step(x, y, outputs=False).trace.makespan
                found.append((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
            orders.send(found)


class Process:
    """One of the two processes of a schedule; it sleeps between its turns."""

    def __init__(self, name: str, width: int, tuned: bool) -> None:
        self._orders, there = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=steps_on_demand, args=(name, width, tuned, there), daemon=True
        )
        self._process.start()
        self.said = self._orders.recv() if tuned else ""
        self.run(2)

    def run(self, steps: int) -> tuple[float, float]:
        """Medians of the seconds and of the faults of some steps."""
        self._orders.send(steps)
        seconds, faults = np.median(self._orders.recv(), axis=0)
        return float(seconds), float(faults)

    def close(self) -> None:
        self._orders.send(0)
        self._process.join(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="in each turn")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--schedules", nargs="+", default=["gpipe", "1f1b", "zb-h1"])
    options = parser.parse_args()
    print(
        f"GPT of {LAYERS} blocks, width {options.width}, {MICROBATCHES} micro-batches, {RANKS} ranks on the CPU"
    )
    print("schedule      plain     tuned    tuned / plain [95 %]     faults plain   tuned")
    for name in options.schedules:
        plain, tuned = Process(name, options.width, False), Process(name, options.width, True)
        turns = np.array(
            [(*plain.run(options.steps), *tuned.run(options.steps)) for _ in range(options.rounds)]
        )
        plain.close()
        tuned.close()
        ratios = turns[:, 2] / turns[:, 0]
        random = np.random.default_rng(0)
        low, high = np.quantile(np.median(random.choice(ratios, (4000, len(ratios))), axis=1), [0.025, 0.975])
        a, faults, b, fewer = np.median(turns, axis=0)
        print(
            f"{name:10}  {a * 1e3:6.0f} ms  {b * 1e3:6.0f} ms   {np.median(ratios):5.3f} [{low:.3f}, {high:.3f}]   "
            f"      {faults:10,.0f}  {fewer:6,.0f}"
        )
    print(tuned.said)


if __name__ == "__main__":
    main()
