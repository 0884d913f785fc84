"""One training step: pipelab against torch.distributed.pipelining and against plain gradient accumulation.

    python benchmarks/step.py [--rounds 20] [--width 256] [--schedules gpipe 1f1b interleaved-1f1b interleaved-zb]
        [--tuned]   # pp.tune_allocator() on both sides

Two ranks, the same model, split, schedule and micro-batches; one thread an operation everywhere. torch runs in two
processes over gloo, pipelab in two threads of this one, plain accumulation in one thread. The three take turns
(A B C A B C ...), so that a drift of the machine's speed hits all of them alike; ratios are taken round by round. The
interval is a bootstrap of the median over the rounds. "bound" is what the schedule would take if every action lasted as
long as in a profile made beforehand: it says how far the step is from its own best.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelab as pp

RANKS, MICROBATCHES, BATCH, VOCAB, CONTEXT, LAYERS = 2, 8, 16, 2048, 128, 8
STAGES_PER_RANK = {"interleaved-1f1b": 2, "interleaved-zb": 2}


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def make(width: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = pp.zoo.gpt(layers=LAYERS, width=width, heads=4, vocab=VOCAB, context=CONTEXT)
    return model, torch.randint(0, VOCAB, (BATCH, CONTEXT)), torch.randint(0, VOCAB, (BATCH, CONTEXT))


class Part(nn.Module):
    """What one stage of the GPT runs when it is split by hand, as torch's pipelining wants it."""

    def __init__(self, model: nn.Module, begin: int, end: int, first: bool, last: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([model.token_embedding, model.position_embedding]) if first else None
        self.blocks = nn.ModuleList(list(model.blocks)[begin:end])
        self.rest = nn.Sequential(model.norm, model.head) if last else None

    def forward(self, x: Tensor) -> Tensor:
        if self.embeddings is not None:
            token, position = self.embeddings
            x = token(x) + position(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return x if self.rest is None else self.rest(x)


def torch_rank(
    rank: int, port: int, width: int, name: str, borders: list[int], orders: Connection, tuned: bool
) -> None:
    """One process of torch.distributed.pipelining: a step whenever it is told to."""
    import torch.distributed as dist
    from torch.distributed import pipelining

    if tuned:
        pp.tune_allocator()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    model, x, y = make(width)
    count = len(borders) - 1
    stages = [
        pipelining.PipelineStage(
            Part(model, borders[s], borders[s + 1], s == 0, s == count - 1), s, count, torch.device("cpu")
        )
        for s in range(rank, count, RANKS)
    ]
    kinds = {
        "gpipe": pipelining.ScheduleGPipe,
        "1f1b": pipelining.Schedule1F1B,
        "interleaved-1f1b": pipelining.ScheduleInterleaved1F1B,
        "interleaved-zb": pipelining.ScheduleInterleavedZeroBubble,
    }
    given = stages if count > RANKS else stages[0]
    schedule = kinds[name](given, n_microbatches=MICROBATCHES, loss_fn=loss_fn)
    while orders.recv():
        for stage in stages:
            stage.submod.zero_grad()
        dist.barrier()
        begin = time.perf_counter()
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, losses=[])
        dist.barrier()
        orders.send(time.perf_counter() - begin)
    dist.destroy_process_group()


class TorchRunner:
    """Two processes that run a step on demand; they sleep in between."""

    def __init__(self, width: int, name: str, borders: list[int], tuned: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(RANKS):
            here, there = context.Pipe()
            process = context.Process(
                target=torch_rank, args=(rank, port, width, name, borders, there, tuned), daemon=True
            )
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def step(self) -> float:
        for pipe in self.pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self.pipes)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for process in self.processes:
            process.join(20)


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.zero_grad()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for part, goal in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), strict=True):
        (loss_fn(model(part), goal) / MICROBATCHES).backward()
    return time.perf_counter() - begin


def pipelab_step(pipe: pp.Pipeline, x: Tensor, y: Tensor) -> float:
    pipe.model.zero_grad()
    begin = time.perf_counter()
    pipe.step(x, y, outputs=False)
    return time.perf_counter() - begin


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and a 95 % bootstrap interval of it."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (4000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def compare(name: str, width: int, rounds: int, tuned: bool) -> None:
    stages = RANKS * STAGES_PER_RANK.get(name, 1)
    borders = [round(LAYERS * s / stages) for s in range(stages + 1)]
    model, x, y = make(width)
    split = pp.Split([f"blocks.{k}" for k in borders[1:-1]])
    schedule = pp.schedule(
        name, num_ranks=RANKS, num_microbatches=MICROBATCHES, stages_per_rank=stages // RANKS
    )
    size = BATCH // MICROBATCHES
    costs = pp.profile(model, x[:size], y[:size], loss_fn=loss_fn, repeats=7, progress=False).costs(split)
    bound = pp.simulate(schedule, costs).makespan
    runner = TorchRunner(width, name, borders, tuned)
    with pp.Pipeline(model, split, schedule, loss_fn=loss_fn, devices=["cpu"] * RANKS) as pipe:
        turns: list[Callable[[], float]] = [
            lambda: pipelab_step(pipe, x, y),
            runner.step,
            lambda: plain_step(model, x, y),
        ]
        for turn in turns * 2:
            turn()
        seconds = np.array([[turn() for turn in turns] for _ in range(rounds)])
        action = np.median(pipe.step(x, y, outputs=False).trace.durations)
    runner.close()
    ours, theirs, plain = np.median(seconds, axis=0)
    against_torch, against_plain = (
        interval(seconds[:, 0] / seconds[:, 1]),
        interval(seconds[:, 0] / seconds[:, 2]),
    )
    print(
        f"{name:18} {ours:8.3f} {theirs:8.3f} {plain:8.3f}   "
        f"{against_torch[0]:5.3f} [{against_torch[1]:5.3f}, {against_torch[2]:5.3f}]   "
        f"{against_plain[0]:5.3f} [{against_plain[1]:5.3f}, {against_plain[2]:5.3f}]   "
        f"{ours / bound:5.2f}    {action * 1e3:6.1f}   {rounds}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument(
        "--schedules", nargs="+", default=["gpipe", "1f1b", "interleaved-1f1b", "interleaved-zb"]
    )
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    if options.tuned:
        print(pp.tune_allocator())
    print(
        f"GPT of {LAYERS} blocks, width {options.width}, batch {BATCH}, {MICROBATCHES} micro-batches, 2 ranks, CPU"
    )
    print(
        f"{'':18} {'pipelab':>8} {'torch':>8} {'plain':>8}   {'pipelab / torch':21}   {'pipelab / plain':21}   "
        f"{'/bound':6}   {'action':>6}   rounds\n{'':18} {'s':>8} {'s':>8} {'s':>8}   {'median [95 %]':21}   "
        f"{'median [95 %]':21}   {'':6}   {'ms':>6}"
    )
    for name in options.schedules:
        compare(name, options.width, options.rounds, options.tuned)


if __name__ == "__main__":
    main()
