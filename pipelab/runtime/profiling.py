"""Measures what each layer of a model costs, as a function of the micro-batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelab.core.costs import StageBytes
from pipelab.core.profile import Affine, Profile
from pipelab.core.progress import Bar, Progress
from pipelab.core.quantities import counted
from pipelab.core.split import Split
from pipelab.errors import MANY, PipelabError, annotate, from_one_to, one_of
from pipelab.runtime.batch_dims import BatchDims
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.devices import cores_of_ranks, resolve
from pipelab.runtime.inputs import Args, Batch, batch_size, enlarge
from pipelab.runtime.interception import Cancelled
from pipelab.runtime.interrupt import Interrupts
from pipelab.runtime.layers import layer_names
from pipelab.runtime.loss import loss_call, loss_modules
from pipelab.runtime.loss_weights import REDUCTIONS, Weight
from pipelab.runtime.machine_speed import reference_seconds
from pipelab.runtime.neighbours import Neighbours
from pipelab.runtime.preserve import preserved
from pipelab.runtime.rank_device import RankDevice, rank_devices
from pipelab.runtime.requirements import check_model
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.threads import ThreadPool


@dataclass(frozen=True)
class _Samples:
    """What the runs at one size took: seconds, each of shape (runs, layers)."""

    forward: np.ndarray
    backward: np.ndarray
    input_grad: np.ndarray
    weight_grad: np.ndarray
    uncut: np.ndarray  # shape (runs, 2): F and B of the model without borders


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
    ranks: int = 1,
    progress: Progress = True,
) -> Profile:
    """Runs each layer of a model alone and measures seconds and bytes, at three micro-batch sizes.

    The model's own forward runs, suspended at every layer, so what is timed is what a pipeline later runs, the loss in
    the last layer. Sizes are half, once and twice the given batch; each layer and kind gets a line a + b * n through
    its medians. F and B are measured in runs with whole backwards, I and W in runs with split ones, as a schedule runs
    them; so I + W need not be B. What it costs to suspend a model between two layers, which a stage pays once and not
    for each of its layers, is told apart by runs of the whole model: `profile.border`. Gradients, buffers and random
    state are put back.

    A fixed piece of work is timed before and after: `profile.drift` is the machine's own change of speed meanwhile.
    Between a tenth and nine tenths of all runs, widened by the drift, lies `profile.band`, which predictions carry on.

    Args:
        model: any module; the layers are found as by `pp.layers`.
        inputs: a micro-batch of the usual size: a tensor, a tuple, a dict, or `pp.Args`.
        target: for the loss.
        loss_fn, reduction, batch_dim: as for `Pipeline`.
        repeats: timed runs at each size, after a warm-up.
        device: where to measure; the model must be there.
        threads: CPU threads inside an operation: as many as a rank will have.
        ranks: how many ranks will share the CPU. Each but one is stood in for by a copy of the model that trains in a
            thread beside the measurement, since ranks of one machine slow each other down, and means take the place
            of medians. With 1 the times are those of a rank alone, as on virtual devices or a GPU each.
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
    from_one_to(MANY, repeats=repeats, threads=threads, ranks=ranks)
    one_of("reduction", reduction, REDUCTIONS)
    args, dims = Args.of(inputs), BatchDims.of(batch_dim)
    size = batch_size(args, target, dims)
    (name,) = resolve([device], 1)  # type: ignore[misc]
    if ranks > 1 and torch.device(name).type != "cpu":
        raise PipelabError(
            f"ranks is {ranks}, but only the CPU is shared by ranks that were measured as one. Use 1."
        )
    names = layer_names(model, args)
    sizes = sorted({max(1, size // 2), size, 2 * size})
    runs = len(sizes) * (3 * repeats + 2)
    shared = (name,) * ranks
    own, *others = rank_devices(shared, cores=cores_of_ranks(shared))
    neighbours = Neighbours(others, model, loss_fn, threads)
    bench = _Bench(model, names, own, loss_fn, threads, neighbours)
    bench.weight, bench.dims = Weight(per_sample=reduction == "none"), dims
    host_threads = torch.get_num_threads()
    before = reference_seconds(name)
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
            neighbours.end()
    finally:
        torch.set_num_threads(host_threads)
        bench.close()
    reference = before, reference_seconds(name)
    typical = np.median if ranks == 1 else np.mean
    return _fit(names, measured, typical, size, name, bench, reference)


class _Bench:
    """The model cut at every layer, on one rank's device."""

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        rank: RankDevice,
        loss_fn: Callable[..., Any] | None,
        threads: int,
        neighbours: Neighbours,
    ) -> None:
        check_model(model, Split(list(names[1:])))
        self.model = model
        self._names = names
        self._loss_fn = loss_fn
        self._rank = rank
        self._pool = ThreadPool()
        self._threads = threads
        self._neighbours = neighbours
        self._cut = self._cut_model(names)
        self.weight, self.dims = Weight(), BatchDims()
        self.bytes: dict[int, StageBytes] = {}
        self.receiving: set[int] = set()  # the layers that get values with gradients from others
        self._stages: SuspendedStages | None = None
        self._stopped = False

    def stop(self) -> None:
        """Makes the run that is under way raise KeyboardInterrupt, soon."""
        self._stopped = True
        if self._stages is not None:
            self._stages.cancel()

    def close(self) -> None:
        self._neighbours.stop()
        self._pool.close()

    def measure(self, args: Args, target: Any, size: int, repeats: int, done: Callable[[], None]) -> _Samples:
        """Seconds per layer of each kind at one size, after a warm-up that also counts the bytes."""
        batch = Batch.cut(args, target, 1, self.dims)
        self._cut = self._cut_model(
            self._names
        )  # a fresh one learns again, and counts the bytes at this size
        uncut = self._cut_model(self._names[:1])
        for cut_model in (self._cut, uncut):
            self._run(batch, cut_model)
            done()
        held = self._cut.stage_bytes(mergeable=True)
        assert held is not None  # a step has run
        self.bytes[size] = held
        self._neighbours.begin(batch, self.weight)
        samples: list[list[list[float]]] = []
        for _ in range(repeats):
            found: list[list[float]] = []
            for cut_model, whole in ((self._cut, True), (self._cut, False), (uncut, True)):
                found += self._run(batch, cut_model, whole)
                done()
            samples.append(found)
        f, b, i, w, uncut_f, uncut_b = (np.array(kind) for kind in zip(*samples, strict=True))
        return _Samples(f, b, i, w, uncut=np.hstack([uncut_f, uncut_b]))

    def _cut_model(self, names: tuple[str, ...]) -> CutModel:
        return CutModel(self.model, names[1:], [self._rank] * len(names), self._pool, self._threads)

    def _run(self, batch: Batch, cut_model: CutModel, whole: bool = True) -> tuple[list[float], list[float]]:
        """One forward and backward, stage by stage: seconds of F and B, or of I and W."""
        count = cut_model.num_stages
        split = frozenset() if whole else frozenset((layer, 0) for layer in range(count))
        context = StepContext(cut_model, in_flight=1, split=split)
        call = loss_call(self.model, self._loss_fn, batch, 0, self.weight, cut_model.devices)
        stages = self._stages = SuspendedStages([context], [call], [0])
        torch.set_num_threads(self._threads)
        cut_model.randomness.begin_step()
        forward, backward, weight_grad = ([0.0] * count for _ in range(3))
        layer = 0
        try:
            with stages.running(), self._rank.active():
                self._rank.begin_step()
                for layer in range(count):
                    forward[layer] = self._seconds(stages.forward, layer)
                self.receiving.update(link.target for link in stages.microbatches[0].links)
                for layer in reversed(range(count)):
                    backward[layer] = self._seconds(
                        stages.backward if whole else stages.backward_input, layer
                    )
                for layer in reversed(range(0 if whole else count)):
                    weight_grad[layer] = self._seconds(stages.backward_weight, layer)
                self._rank.finish()
        except Exception as error:
            where = f"layer {self._names[layer]!r}" if cut_model is self._cut else "the whole model"
            annotate(error, f"pipelab: raised in {where}, which ran with {counted(batch.size, 'sample')}.")
            raise
        finally:
            self._stages = None
            cut_model.randomness.end_step()
        if not whole:
            return backward, weight_grad
        if self._rank.device.type == "cpu":
            # Without the hand-over between threads, which is no work of a layer.
            forward = [stages.microbatches[0].seconds.get(layer, 0.0) for layer in range(count)]
        return forward, backward

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


def _fit(
    names: tuple[str, ...],
    measured: dict[int, _Samples],
    typical: Callable[..., np.ndarray],
    size: int,
    device: str,
    bench: _Bench,
    reference: tuple[float, float],
) -> Profile:
    """Lines through what is typical of the runs at each size."""
    sizes, held = np.array(sorted(measured), dtype=float), bench.bytes
    receives = np.isin(np.arange(len(names)), sorted(bench.receiving))

    def lines(values: Callable[[int], Any]) -> tuple[Affine, ...]:
        rows = np.array([values(int(n)) for n in sizes], dtype=float)
        return tuple(affine_fit(sizes, rows[:, layer]) for layer in range(len(names)))

    def seconds(kind: str, border: float = 0.0) -> tuple[Affine, ...]:
        return lines(
            lambda n: np.maximum(typical(getattr(measured[n], kind), axis=0) - border * receives, 0.0)
        )

    first, second = border = _border(measured[int(sizes[0])], receives)
    return Profile(
        layers=names,
        forward=seconds("forward", first),
        input_grad=seconds("input_grad", second),
        weight_grad=seconds("weight_grad"),
        backward=seconds("backward", second),
        border=border,
        parameter_bytes=tuple(map(int, held[int(sizes[0])].parameters)),
        activation_bytes=lines(lambda n: held[n].activations),
        output_bytes=lines(lambda n: held[n].outputs),
        batch_size=size,
        measured_sizes=tuple(int(n) for n in sizes),
        device=device,
        reference=reference,
        band=_band(measured.values(), typical, reference[1] / reference[0]),
    )


def _border(samples: _Samples, receives: np.ndarray) -> tuple[float, float]:
    """What F and B take at each border between layers: by how much all layers are slower than the model without any.

    It is at most what the shortest layer with a border takes: the difference of two long runs is noisy.

    Args:
        samples: of the smallest size. A border hardly depends on the size, and large micro-batches drown it in noise.
        receives: shape (layers,): whether a layer has a border before it.
    """
    if not receives.any():
        return 0.0, 0.0
    layers = np.stack([samples.forward.sum(axis=1), samples.backward.sum(axis=1)], axis=1)
    found = np.median(layers - samples.uncut, axis=0) / receives.sum()
    most = [np.median(kind, axis=0)[receives].min() for kind in (samples.forward, samples.backward)]
    first, second = np.clip(found, 0.0, most)
    return float(first), float(second)


def _band(measured: Iterable[_Samples], typical: Callable[..., Any], drift: float) -> tuple[float, float]:
    """Between which multiples of what is typical nine runs of ten lie, widened by the machine's own drift.

    Args:
        measured: the samples of each size.
        typical: the median or the mean.
        drift: what a fixed piece of work took after the measurement, by what it took before.
    """
    ratios = []
    for samples in measured:
        for first, second in ((samples.forward, samples.backward), (samples.input_grad, samples.weight_grad)):
            runs = (first + second).sum(axis=1)
            ratios.append(runs / (typical(runs) or 1.0))
    low, high = np.quantile(np.concatenate(ratios), [0.1, 0.9])
    return min(1.0, float(low)) * min(1.0, drift), max(1.0, float(high)) * max(1.0, drift)


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
