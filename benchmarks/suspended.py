"""What it costs to run a model's own forward suspended at the cuts, against running its layers directly.

    python benchmarks/suspended.py [--rounds 20] [--widths 64 256] [--device cpu]

The same micro-batches, forward and backward. On the CPU: one thread an operation, one action at a time (virtual
devices). On a GPU: all stages on that GPU, against plain gradient accumulation there; take a width that fills it.
pipelab and a plain loop over the layers take turns, so that a drift of the machine's speed hits both alike; ratios are
taken round by round. Stages: 1, 2 and 4.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelab as pp

MICROBATCHES, BATCH, VOCAB, CONTEXT, LAYERS = 8, 16, 512, 128, 8


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def directly(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The layers one after the other, as a stage split by hand would run them."""
    model.zero_grad()
    torch.set_num_threads(1)
    finish(x)
    begin = time.perf_counter()
    for part, goal in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), strict=True):
        hidden = model.token_embedding(part) + model.position_embedding(
            torch.arange(part.shape[1], device=part.device)
        )
        for block in model.blocks:
            hidden = block(hidden)
        (loss_fn(model.head(model.norm(hidden)), goal) / MICROBATCHES).backward()
    finish(x)
    return time.perf_counter() - begin


def finish(x: Tensor) -> None:
    """Waits for the device, outside what is timed inside a step."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def suspended(pipe: pp.Pipeline, x: Tensor, y: Tensor) -> float:
    pipe.model.zero_grad()
    finish(x)
    begin = time.perf_counter()
    pipe.step(x, y, outputs=False)
    finish(x)
    return time.perf_counter() - begin


def compare(width: int, stages: int, rounds: int, device: str) -> None:
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=LAYERS, width=width, heads=4, vocab=VOCAB, context=CONTEXT).to(device)
    x, y = torch.randint(0, VOCAB, (2, BATCH, CONTEXT), device=device)
    split = pp.Split([f"blocks.{LAYERS * s // stages}" for s in range(1, stages)])
    schedule = pp.schedule("1f1b", num_ranks=stages, num_microbatches=MICROBATCHES)
    devices = pp.virtual(stages) if device == "cpu" else [device] * stages
    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=devices) as pipe:
        for _ in range(3):
            suspended(pipe, x, y), directly(model, x, y)
        seconds = np.array([(suspended(pipe, x, y), directly(model, x, y)) for _ in range(rounds)])
    ratios = seconds[:, 0] / seconds[:, 1]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    ours, plain = np.median(seconds, axis=0)
    print(f"{width:6} {stages:7} {ours:12.3f} {plain:11.3f} {middle:9.3f} [{low:.3f}, {high:.3f}]   {rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(
        f"GPT of {LAYERS} blocks, context {CONTEXT}, batch {BATCH}, {MICROBATCHES} micro-batches, on {options.device}"
    )
    print(
        f"{'width':>6} {'stages':>7} {'suspended s':>12} {'directly s':>11} {'ratio':>9} [quartiles]      rounds"
    )
    for width in options.widths:
        for stages in (1, 2, 4):
            compare(width, stages, options.rounds, options.device)


if __name__ == "__main__":
    main()
