"""Measures what each layer of a model costs, as a function of the micro-batch size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelab.core.profile import Affine, Profile
from pipelab.core.progress import Bar, Progress
from pipelab.core.split import Split
from pipelab.errors import PipelabError, one_of
from pipelab.runtime.batch_dims import BatchDims
from pipelab.runtime.devices import resolve
from pipelab.runtime.inputs import Args, Batch, batch_size, enlarge
from pipelab.runtime.interception import Cancelled
from pipelab.runtime.interrupt import Interrupts
from pipelab.runtime.layers import layer_names
from pipelab.runtime.loss import loss_call, loss_modules
from pipelab.runtime.loss_weights import REDUCTIONS, Weight
from pipelab.runtime.preserve import preserved
from pipelab.runtime.rank_device import rank_devices
from pipelab.runtime.requirements import check_model
from pipelab.runtime.stages import CutModel, StepContext, SuspendedStages
from pipelab.runtime.threads import ThreadPool


@dataclass(frozen=True)
class _Sample:
    """What one run of all layers took: seconds per layer."""

    forward: list[float]
    input_grad: list[float] | None  # a run measures either this
    backward: list[float] | None  # or the whole backward


def profile(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    *,
    loss_fn: Callable[..., Any] | None = None,
    reduction: str = "mean",
    batch_dim: int | tuple[int, int, int] = 0,
    repeats: int = 5,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress = True,
) -> Profile:
    """Runs each layer of a model alone and measures seconds and bytes, at three micro-batch sizes.

    The model's own forward runs, suspended at every layer, so what is timed is what a pipeline later runs, the loss in
    the last layer. Sizes are half, once and twice the given batch; each layer and kind gets a line a + b * n through
    its medians. I is the time of the gradients of a layer's inputs, W what the whole backward takes beyond it, so
    that B = I + W is the whole backward as it was measured. Gradients, buffers and random state are put back.

    Args:
        model: any module; the layers are found as by `pp.layers`.
        inputs: a micro-batch of the usual size: a tensor, a tuple, a dict, or `pp.Args`.
        target: for the loss.
        loss_fn, reduction, batch_dim: as for `Pipeline`.
        repeats: timed runs at each size, after a warm-up.
        device: where to measure; the model must be there.
        threads: CPU threads inside an operation: as many as a rank will have.
        progress: True shows a bar when it takes over a second; or a function (done, in all).

    Returns:
        The profile.

    Raises:
        PipelabError: the data does not fit, the device does not exist, the loss is not one number.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> profile = pp.profile(model, torch.ones(4, 8), torch.zeros(4, 1), loss_fn=torch.nn.functional.mse_loss)
        >>> profile.layers
        ('0', '1', '2')
    """
    if repeats < 1 or threads < 1:
        raise PipelabError(f"repeats is {repeats} and threads is {threads}; both must be at least 1.")
    one_of("reduction", reduction, REDUCTIONS)
    args, dims = Args.of(inputs), BatchDims.of(batch_dim)
    size = batch_size(args, target, dims)
    (name,) = resolve([device], 1)  # type: ignore[misc]
    names = layer_names(model, args)
    sizes = sorted({max(1, size // 2), size, 2 * size})
    runs = len(sizes) * (2 * repeats + 1)
    bench = _Bench(model, names, torch.device(name), loss_fn, threads)
    bench.weight, bench.dims = Weight(per_sample=reduction == "none"), dims
    host_threads = torch.get_num_threads()
    try:
        with (
            preserved(model, *loss_modules(loss_fn)),
            torch.enable_grad(),
            Interrupts(bench.stop),
            Bar(runs, progress, "profile") as bar,
        ):
            measured = {
                n: bench.measure(*enlarge(args, target, n, dims), n, repeats, bar.advance) for n in sizes
            }
    finally:
        torch.set_num_threads(host_threads)
        bench.close()
    return _fit(names, measured, size, name, bench)


class _Bench:
    """The model cut at every layer, on one device."""

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        device: torch.device,
        loss_fn: Callable[..., Any] | None,
        threads: int,
    ) -> None:
        check_model(model, Split(list(names[1:])))
        self.model = model
        self._names = names
        self._device = device
        self._loss_fn = loss_fn
        (self._rank,) = rank_devices([str(device)])
        self._pool = ThreadPool()
        self._threads = threads
        self._cut = self._cut_model()
        self.weight, self.dims = Weight(), BatchDims()
        self.bytes: dict[int, Any] = {}
        self._stages: SuspendedStages | None = None
        self._stopped = False

    def stop(self) -> None:
        """Makes the run that is under way raise KeyboardInterrupt, soon."""
        self._stopped = True
        if self._stages is not None:
            self._stages.cancel()

    def close(self) -> None:
        self._pool.close()

    def measure(
        self, args: Args, target: Any, size: int, repeats: int, done: Callable[[], None]
    ) -> dict[str, np.ndarray]:
        """Median seconds per layer of F, I and B at one size, after a warm-up that also counts the bytes."""
        batch = Batch.cut(args, target, 1, self.dims)
        self._cut = self._cut_model()  # a fresh one learns again, and counts the bytes at this size
        self._run(batch, whole=True)
        done()
        self.bytes[size] = self._cut.stage_bytes(mergeable=True)
        samples = []
        for _ in range(repeats):
            for whole in (True, False):
                samples.append(self._run(batch, whole))
                done()
        return {
            "forward": _median([s.forward for s in samples]),
            "input_grad": _median([s.input_grad for s in samples if s.input_grad is not None]),
            "backward": _median([s.backward for s in samples if s.backward is not None]),
        }

    def _cut_model(self) -> CutModel:
        streams = [self._rank] * len(self._names)
        return CutModel(self.model, self._names[1:], streams, self._pool, self._threads)

    def _run(self, batch: Batch, whole: bool) -> _Sample:
        """One forward and backward, layer by layer. A run that times I alone runs the backward too, untimed."""
        count = len(self._names)
        context = StepContext(self._cut, in_flight=1)
        call = loss_call(self.model, self._loss_fn, batch, 0, self.weight, self._cut.devices)
        stages = self._stages = SuspendedStages([context], [call], [0])
        torch.set_num_threads(self._threads)
        self._cut.randomness.begin_step()
        forward, timed = [0.0] * count, [0.0] * count
        try:
            with stages.running(), self._rank.active():
                self._rank.begin_step()
                for layer in range(count):
                    forward[layer] = self._seconds(stages.forward, layer)
                for layer in reversed(range(count)):
                    if whole:
                        timed[layer] = self._seconds(stages.backward, layer)
                        continue
                    if stages.has_input_gradient(layer, 0):
                        timed[layer] = self._seconds(stages.input_gradient_alone, layer)
                    stages.backward(layer, 0)
                self._rank.finish()
        finally:
            self._stages = None
            self._cut.randomness.end_step()
        if self._device.type == "cpu":  # without the hand-over between threads, which is no work of a layer
            forward = [stages.microbatches[0].seconds.get(layer, 0.0) for layer in range(count)]
        return _Sample(forward, None if whole else timed, timed if whole else None)

    def _seconds(self, action: Callable[[int, int], None], layer: int) -> float:
        if self._stopped:
            raise KeyboardInterrupt
        self._rank.finish()
        begin = time.perf_counter()
        try:
            action(layer, 0)
        except Cancelled:
            raise KeyboardInterrupt from None
        self._rank.finish()
        return time.perf_counter() - begin


def _median(rows: list[list[float]]) -> np.ndarray:
    return np.median(np.array(rows), axis=0)


def _fit(
    names: tuple[str, ...], measured: dict[int, dict[str, np.ndarray]], size: int, device: str, bench: _Bench
) -> Profile:
    sizes = np.array(sorted(measured), dtype=float)

    def lines(values: Callable[[int], Any]) -> tuple[Affine, ...]:
        rows = np.array([values(int(n)) for n in sizes], dtype=float)
        return tuple(affine_fit(sizes, rows[:, layer]) for layer in range(len(names)))

    input_grad = lines(lambda n: np.minimum(measured[n]["input_grad"], measured[n]["backward"]))
    weight_grad = lines(lambda n: np.maximum(measured[n]["backward"] - measured[n]["input_grad"], 0.0))
    return Profile(
        layers=names,
        forward=lines(lambda n: measured[n]["forward"]),
        input_grad=input_grad,
        weight_grad=weight_grad,
        parameter_bytes=bench.bytes[int(sizes[0])].parameters,
        activation_bytes=lines(lambda n: bench.bytes[n].activations),
        output_bytes=lines(lambda n: bench.bytes[n].outputs),
        batch_size=size,
        measured_sizes=tuple(int(n) for n in sizes),
        device=device,
    )


def affine_fit(sizes: np.ndarray, values: np.ndarray) -> Affine:
    """The line a + b * n, neither of them negative, that fits best in relative terms.

    Relative, because the cost of a small micro-batch matters as much as that of a large one; not negative, because
    neither a fixed cost nor a cost per sample can be.

    Args:
        sizes: shape (k,): micro-batch sizes.
        values: shape (k,): seconds or bytes at each.
    """
    if not values.any():
        return Affine(0.0, 0.0)
    weight = 1 / np.maximum(values, values.max() * 1e-6)
    candidates = []
    for columns in (
        [np.ones_like(sizes), sizes],
        [np.zeros_like(sizes), sizes],
        [np.ones_like(sizes), np.zeros_like(sizes)],
    ):
        matrix = np.stack(columns, axis=1)
        solution = np.linalg.lstsq(matrix * weight[:, None], values * weight, rcond=None)[0]
        if (solution >= 0).all():
            error = float((((matrix @ solution - values) * weight) ** 2).sum())
            candidates.append((error, float(solution[0]), float(solution[1])))
    _, fixed, per_sample = min(candidates)
    return Affine(fixed, per_sample)
