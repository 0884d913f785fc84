"""`pipelab demo`: a small GPT is profiled, split, predicted, trained under three schedules, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

import pipelab as pp
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor, nn

    from pipelab.runtime.devices import Devices

NAMES = ("naive", "gpipe", "1f1b")
NUM_RANKS, NUM_MICROBATCHES = 2, 8
LAYERS, WIDTH, HEADS, VOCAB, CONTEXT, BATCH = 8, 256, 4, 2048, 128, 16
LEARNING_RATE = 3e-4
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Run:
    """What was predicted for one schedule, and what its training steps measured.

    Attributes:
        name: The schedule.
        predicted: The simulated trace.
        measured: The trace of the median step. The first step, which learns how values flow, is not measured.
        losses: The loss at each step, the first one included.
    """

    name: str
    predicted: pp.Trace
    measured: pp.Trace
    losses: tuple[float, ...]


def demonstrate(*, steps: int, figures: str | None = None, overwrite: bool = False) -> int:
    """Does the main job without a notebook, and prints the comparison.

    Args:
        steps: Measured training steps per schedule; one more comes before them.
        figures: The folder for the figures; None for none.
        overwrite: Whether figures of the same names may be replaced.

    Raises:
        PipelabError: Before anything runs, for a number of steps or a folder that will not do.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise PipelabError(f"--steps is {steps}; it must be from 1 to {MOST_STEPS:,}.")
    files = _figure_files(Path(figures).expanduser(), overwrite) if figures else {}
    from pipelab.runtime.devices import describe, resolve

    devices = resolve("auto", NUM_RANKS)
    print(
        f"A GPT of {LAYERS} blocks, width {WIDTH}; {BATCH} sequences of {CONTEXT} tokens a step, "
        f"in {NUM_MICROBATCHES} micro-batches.\nDevices: {describe(devices)}."
    )
    profile = _profile(devices)
    split = pp.balance(profile, num_stages=NUM_RANKS)
    print(f"Balanced split: {split}.\n")
    runs = _train_all(profile, split, devices, steps)
    print("\n".join(_table(runs)))
    if files:
        for name, axes in _pictures(profile, split, runs):
            if (figure := axes.get_figure(root=True)) is not None:
                figure.savefig(files[name], dpi=150, bbox_inches="tight")
        print(f"\nFigures: {', '.join(str(path) for path in files.values())}")
    return 0


def _profile(devices: Devices) -> pp.Profile:
    """The layers' costs on the device of the first rank, at the size of a micro-batch."""
    where = devices[0] if isinstance(devices, tuple) else devices.device
    inputs, targets = (whole[: BATCH // NUM_MICROBATCHES].to(where) for whole in _batch())
    return pp.profile(_model().to(where), inputs, target=targets, loss_fn=_loss, device=where)


def _train_all(profile: pp.Profile, split: pp.Split, devices: Devices, steps: int) -> list[Run]:
    """The same model from the same start under each schedule in turn, with one progress bar."""
    from tqdm import tqdm

    costs = profile.costs(split, batch_size=BATCH // NUM_MICROBATCHES)
    runs = []
    with tqdm(total=len(NAMES) * (steps + 1), unit="step", leave=False) as bar:
        for name in NAMES:
            bar.set_description(f"training under {name}")
            schedule = pp.schedule(name, num_ranks=NUM_RANKS, num_microbatches=NUM_MICROBATCHES)
            with pp.Pipeline(_model(), split, schedule, loss_fn=_loss, devices=devices) as pipe:
                traces, losses = _train(pipe, steps + 1, bar.update)
            runs.append(Run(name, pp.simulate(schedule, costs), _median(traces[1:]), losses))
    return runs


def _train(
    pipe: pp.Pipeline, steps: int, done: Callable[[], object]
) -> tuple[list[pp.Trace], tuple[float, ...]]:
    import torch

    optimizer = torch.optim.AdamW(pipe.model.parameters(), lr=LEARNING_RATE)
    inputs, targets = _batch()
    traces, losses = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        step = pipe.step(inputs, targets, outputs=False)
        optimizer.step()
        traces.append(step.trace)
        losses.append(float(step.loss))
        done()
    return traces, tuple(losses)


def _median(traces: Sequence[pp.Trace]) -> pp.Trace:
    """The trace whose makespan is the (lower) median: one that really happened."""
    middle = median_low(trace.makespan for trace in traces)
    return next(trace for trace in traces if trace.makespan == middle)


def _model() -> nn.Module:
    import torch

    torch.manual_seed(0)
    return pp.zoo.gpt(layers=LAYERS, width=WIDTH, heads=HEADS, vocab=VOCAB, context=CONTEXT)


def _batch() -> tuple[Tensor, Tensor]:
    """Random tokens, and the token that follows each of them (the first one after the last)."""
    import torch

    tokens = torch.randint(0, VOCAB, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.roll(-1, dims=1)


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, 1), target.flatten())


ROW = "{:<10}{:>11}{:>10}{:>9}{:>12}{:>10}{:>9}{:>8}"


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """The comparison, a line a schedule, and what its columns are."""
    yield ROW.format("", "step [ms]:", "", "", "bubble [%]:", "", "loss:", "").rstrip()
    yield ROW.format("schedule", "predicted", "measured", "error", "predicted", "measured", "first", "last")
    for run in runs:
        predicted, measured = run.predicted.report(), run.measured.report()
        yield ROW.format(
            run.name,
            f"{1000 * predicted.makespan:.0f}",
            f"{1000 * measured.makespan:.0f}",
            f"{predicted.makespan / measured.makespan - 1:+.1%}",
            f"{100 * predicted.bubble_fraction:.1f}",
            f"{100 * measured.bubble_fraction:.1f}",
            f"{run.losses[0]:.4f}",
            f"{run.losses[-1]:.4f}",
        )
    yield ""
    yield f"Measured: the median step of {len(runs[0].losses) - 1}, {runs[0].measured.clock} clock."
    yield "Bubble: bubble_fraction = idle / (ranks x makespan)."
    yield f"Largest difference between the losses of the schedules at any step: {_loss_difference(runs):.1e}."
    yield from dict.fromkeys(f"Note: {note}" for run in runs for note in run.measured.notes)


def _loss_difference(runs: Sequence[Run]) -> float:
    return max(max(losses) - min(losses) for losses in zip(*(run.losses for run in runs), strict=True))


def _figure_files(folder: Path, overwrite: bool) -> dict[str, Path]:
    """Name of a figure -> its file. Refused before the work if they cannot be written, or may not."""
    files = {
        name: folder / f"{name}.png" for name in ("stages", *NAMES, *(f"{name}_memory" for name in NAMES))
    }
    there = [path.name for path in files.values() if path.exists()]
    if there and not overwrite:
        raise PipelabError(
            f"{folder} has {', '.join(there)} already. "
            "Name another folder, or say --overwrite to replace them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelabError(
            f"the folder {folder} cannot be made: {error.strerror}. Name another one."
        ) from error
    return files


def _pictures(profile: pp.Profile, split: pp.Split, runs: Sequence[Run]) -> Iterator[tuple[str, Axes]]:
    """The stages, and for each schedule its prediction over its measurement, and its memory."""
    import matplotlib

    matplotlib.use("Agg")  # files only: no window, no display needed
    yield "stages", pp.plot_stages(profile, split)
    for run in runs:
        yield run.name, pp.plot_timelines([run.predicted, run.measured])
        yield f"{run.name}_memory", pp.plot_memory(run.measured)
