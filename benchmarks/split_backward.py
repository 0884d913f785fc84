"""What it costs to split a backward in I and W: I + W against the whole backward B, and what F pays for it.

    python benchmarks/split_backward.py [--rounds 20] [--width 256] [--device cpu]

The middle one of three stages (GPT blocks; residual convolutions) runs as the engine runs it, one action at a time, one
thread an operation, with weights that have gradients already. Whole and split backwards take turns, in alternating
order, so that a drift of the machine's speed hits both alike; ratios are taken round by round. On the CPU the clock
counts this process's own CPU time as well: work of other processes disturbs it less than the time of day. The aim is
I + W <= 1.05 x B. torch's own split, a walk through the graph in Python, took 1.11-1.21 x B.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelab as pp
from pipelab.core.tables import text_table
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.loss import Result
from pipelab.runtime.rank_device import rank_devices
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.threads import ThreadPool

MICROBATCHES, CONTEXT, VOCAB = 4, 128, 512
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


class Stage:
    """The middle stage of a model, run action by action.

    Args:
        model: with gradients on its weights already.
        cuts: where the middle stage and the last one begin.
        inputs: of one micro-batch.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, cuts: tuple[str, str], inputs: Tensor, device: str) -> None:
        self.model, self.inputs = model.to(device), inputs.to(device)
        (self.rank,) = rank_devices([device])
        self.pool = ThreadPool()
        self.cut = CutModel(self.model, cuts, [self.rank] * 3, self.pool, 1)

    def seconds(self, split: bool) -> dict[str, np.ndarray]:
        """Of each kind of action of the middle stage, on each clock, for all micro-batches together."""
        pairs = [(stage, i) for stage in range(3) for i in range(MICROBATCHES)] if split else []
        stages = SuspendedStages(
            [StepContext(self.cut, MICROBATCHES, frozenset(pairs))],
            [self._call] * MICROBATCHES,
            [0] * MICROBATCHES,
        )
        found: dict[str, np.ndarray] = {}
        torch.set_num_threads(1)
        self.cut.randomness.begin_step()
        with stages.running(), self.rank.active():
            for microbatch in range(MICROBATCHES):
                for stage in range(3):
                    self._timed(found, "F", stages.forward, stage, microbatch)
            for microbatch in range(MICROBATCHES):
                for stage in reversed(range(3)):
                    if split:
                        self._timed(found, "I", stages.backward_input, stage, microbatch)
                        self._timed(found, "W", stages.backward_weight, stage, microbatch)
                    else:
                        self._timed(found, "B", stages.backward, stage, microbatch)
        self.cut.randomness.end_step()
        return found

    def _call(self, stage_now: Callable[[], int]) -> Result:
        return Result(self.model(self.inputs).float().pow(2).mean(), None, None)

    def _timed(
        self, found: dict[str, np.ndarray], kind: str, action: Callable[[int, int], Any], stage: int, i: int
    ) -> None:
        self.rank.finish()
        begin = np.array([clock() for clock in CLOCKS.values()])
        action(stage, i)
        self.rank.finish()
        if stage == 1:
            took = np.array([clock() for clock in CLOCKS.values()]) - begin
            found[kind] = found.get(kind, 0.0) + took


def gpt(width: int, microbatch: int, device: str) -> Stage:
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=4, width=width, heads=4, vocab=VOCAB, context=CONTEXT)
    return Stage(model, ("blocks.1", "blocks.3"), torch.randint(0, VOCAB, (microbatch, CONTEXT)), device)


class ConvNet(nn.Module):
    """Convolutions with ReLU between them, of growing width."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(64, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for conv in self.middle:
            x = F.relu(conv(x))
        return self.last(x)


def cnn(microbatch: int, device: str) -> Stage:
    torch.manual_seed(0)
    return Stage(ConvNet(), ("middle.0", "last"), torch.randn(microbatch, 3, 32, 32), device)


def interval(values: np.ndarray) -> str:
    """The median and a 95 % bootstrap interval of it."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (4000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


def measure(name: str, stage: Stage, rounds: int, clocks: list[str]) -> list[list[str]]:
    for split in (False, True) * 2:
        stage.seconds(split)
    pairs = []
    for turn in range(rounds):
        both = {split: stage.seconds(split) for split in ((False, True) if turn % 2 else (True, False))}
        pairs.append((both[False], both[True]))
    stage.pool.close()
    rows = []
    for number, clock in enumerate(CLOCKS):
        if clock in clocks:
            backward = np.array([whole["B"][number] for whole, _ in pairs])
            ratio = np.array([split["I"][number] + split["W"][number] for _, split in pairs]) / backward
            inputs = np.array([split["I"][number] for _, split in pairs]) / backward
            forward = np.array([split["F"][number] / whole["F"][number] for whole, split in pairs])
            milliseconds = f"{np.median(backward) / MICROBATCHES * 1e3:.2f}"
            rows.append(
                [name, clock, milliseconds, interval(ratio), f"{np.median(inputs):.2f}", interval(forward)]
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    clocks = list(CLOCKS) if options.device == "cpu" else ["wall"]
    rows = []
    for size in (1, 2, 8):
        name = f"2 GPT blocks of width {options.width}, micro-batch {size}"
        rows += measure(name, gpt(options.width, size, options.device), options.rounds, clocks)
    for size in (2, 8):
        rows += measure(
            f"4 convolutions, micro-batch {size}", cnn(size, options.device), options.rounds, clocks
        )
    header = ["", "clock", "B, ms", "(I + W) / B", "I / B", "F split / F whole"]
    print(f"{options.rounds} rounds of {MICROBATCHES} micro-batches; medians with 95 % intervals")
    print(text_table(header, rows))


if __name__ == "__main__":
    main()
