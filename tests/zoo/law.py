"""The law that every model of the zoo is held to: a step equals plain accumulation of the whole model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import pipelab as pp
from pipelab.runtime.randomness import seed_generators
from pipelab.runtime.trees import Replicated

_TOLERANCE = {torch.float64: (1e-12, 1e-13), torch.float32: (1e-3, 1e-5), torch.bfloat16: (3e-2, 3e-2)}


@dataclass
class Case:
    """One model of the zoo.

    Attributes:
        model, inputs, target, loss_fn: as a step takes them.
        cuts: where the stages begin.
        whole: whether a step also equals the whole batch at once: not so for BatchNorm in training and dropout.
        options: for the Pipeline.
        later: changes the model after two steps, as a branch that is first taken then.
    """

    model: nn.Module
    inputs: Any
    target: Any
    loss_fn: Any
    cuts: list[str]
    whole: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    later: Any = None


def assert_law(
    case: Case,
    schedule: pp.Schedule,
    devices: Any = None,
    steps: int = 3,
    context: Any = contextlib.nullcontext,
) -> pp.Pipeline:
    """Runs a few steps and holds loss, outputs, gradients, buffers and what the model keeps to the whole model's.

    The first step learns, the later ones do not; gradients are cleared in between. Every second step is an accumulating
    one: it adds to what is there.

    Returns:
        The pipeline, closed.
    """
    model = case.model
    whole, loss_fn = copy.deepcopy((model, case.loss_fn))  # together: the loss may read what the model keeps
    keys = list(model.state_dict())
    devices = ["cpu"] * schedule.num_ranks if devices is None else devices
    with pp.Pipeline(
        model, pp.Split(case.cuts), schedule, loss_fn=case.loss_fn, devices=devices, **case.options
    ) as pipe:
        for step in range(steps):
            if case.later is not None and step == 2:
                case.later(model)
                case.later(whole)
            if step != 1:
                model.zero_grad()
                whole.zero_grad()
            with context():
                taken = pipe.step(case.inputs, case.target)
                loss, outputs = accumulate(whole, loss_fn, case, pipe)
            where = f"step {step}"
            _equal(f"{where}: loss", taken.loss, loss)
            _equal_trees(f"{where}: outputs", taken.outputs, outputs, _samples(case, pipe))
            _equal_models(where, model, whole)
            assert list(model.state_dict()) == keys
            assert_nothing_of_ours(model, whole)
            if case.later is None:
                assert not pipe.leaks
        if case.whole:
            model.zero_grad()
            whole.zero_grad()
            with context():
                taken = pipe.step(case.inputs, case.target)
                loss, _ = accumulate(whole, loss_fn, case, pipe, parts=1)
            _equal("the whole batch: loss", taken.loss, loss)
            _equal_gradients("the whole batch", model, whole)
        with context(), torch.no_grad():
            _assert_forward(case, pipe, model, whole)
        assert_nothing_of_ours(model, whole)
    return pipe


def accumulate(
    model: nn.Module, loss_fn: Any, case: Case, pipe: pp.Pipeline, parts: int | None = None
) -> tuple[Any, Any]:
    """Plain gradient accumulation of the whole model, with the random state that each stage of the pipeline had."""
    parts = parts or pipe.schedule.num_microbatches
    inputs, target = [_parts(tree, parts) for tree in (case.inputs, case.target)]
    size = _size(case.inputs)
    total, outputs = torch.zeros((), dtype=torch.float64), []
    for index, (part, goal) in enumerate(zip(inputs, target, strict=True)):
        args = part if isinstance(part, pp.Args) else pp.Args.of(part)
        with _seeded(model, case, pipe, index):
            output = model(*args.args, **args.kwargs)
            loss = output.loss if loss_fn is None else loss_fn(output, goal)
        share = 1.0 if case.options.get("reduction") == "sum" else _size(part) / size
        (loss * share).backward()
        total += loss.detach().double() * share
        outputs.append(output)
    return total.to(loss.dtype), outputs


def _assert_forward(case: Case, pipe: pp.Pipeline, model: nn.Module, whole: nn.Module) -> None:
    flags = [(module, module.training) for each in (model, whole) for module in each.modules()]
    model.eval()
    whole.eval()
    parts = [
        (part if isinstance(part, pp.Args) else pp.Args.of(part))
        for part in _parts(case.inputs, pipe.schedule.num_microbatches)
    ]
    for _ in range(2):
        outputs = pipe.forward(case.inputs)
        _equal_trees(
            "forward", outputs, [whole(*part.args, **part.kwargs) for part in parts], _samples(case, pipe)
        )
    for module, training in flags:
        module.training = training


@contextlib.contextmanager
def _seeded(model: nn.Module, case: Case, pipe: pp.Pipeline, microbatch: int):
    """The random state that the pipeline gave each stage of this micro-batch, where the stage begins."""
    randomness = pipe._cut.randomness
    begun: set[int] = set()

    def begin(stage: int) -> None:
        if stage not in begun and stage in (0, *randomness.drawing_stages):
            begun.add(stage)
            seed_generators(randomness.seed, stage, microbatch, torch.device("cpu"))

    def hook(stage: int) -> Any:
        return lambda module, args: begin(stage)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(stage), prepend=True)
        for stage, name in enumerate(case.cuts, start=1)
    ]
    before = torch.get_rng_state()
    if randomness.drawing_stages:
        begin(0)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        for handle in handles:
            handle.remove()


def assert_nothing_of_ours(model: nn.Module, whole: nn.Module) -> None:
    """Between steps the model carries no hook, no wrapped forward, no other class, and keeps what a plain one keeps."""
    for (name, ours), theirs in zip(model.named_modules(), whole.modules(), strict=True):
        assert type(ours) is type(theirs), name
        assert vars(ours).keys() == vars(theirs).keys(), f"{name}: {vars(ours).keys() ^ vars(theirs).keys()}"
        for hooks in ("_forward_pre_hooks", "_forward_hooks"):
            assert len(getattr(ours, hooks)) == len(getattr(theirs, hooks)), name


def _equal_models(where: str, model: nn.Module, whole: nn.Module) -> None:
    _equal_gradients(where, model, whole)
    for (name, ours), theirs in zip(model.named_buffers(), whole.buffers(), strict=True):
        _equal(f"{where}: buffer {name}", ours, theirs)


def _equal_gradients(where: str, model: nn.Module, whole: nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        # No gradient and a gradient of zeros are the same update.
        a = torch.zeros_like(ours) if ours.grad is None else ours.grad
        b = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        _equal(f"{where}: gradient of {name}", a, b)
    assert any(p.grad is not None and p.grad.any() for p in whole.parameters())


def _equal_trees(where: str, joined: Any, parts: list[Any], samples: list[int]) -> None:
    theirs = [each for leaves in zip(*map(_tensors, parts), strict=True) for each in _join(leaves, samples)]
    ours = _tensors(joined)
    assert len(ours) == len(theirs) > 0, where
    for a, b in zip(ours, theirs, strict=True):
        _equal(where, a, b)


def _join(leaves: tuple[Tensor, ...], samples: list[int]) -> list[Tensor]:
    """What the pipeline makes of one tensor of the output, over the micro-batches."""
    if all(leaf.dim() == 0 for leaf in leaves):
        return [torch.stack(leaves)]
    per_sample = [leaf.shape[:1] for leaf in leaves] == [(count,) for count in samples]
    return [torch.cat(leaves)] if per_sample else list(leaves)


def _tensors(tree: Any) -> list[Tensor]:
    """Its tensors, also inside dataclasses, which pytree does not look into."""
    opened = tree_map(lambda leaf: vars(leaf) if dataclasses.is_dataclass(leaf) else leaf, tree)
    return [leaf for leaf in tree_leaves(opened) if isinstance(leaf, Tensor)]


def _equal(where: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, f"{where}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    relative, absolute = _TOLERANCE.get(theirs.dtype, (0.0, 0.0))
    a, b = ours.detach().double(), theirs.detach().double()
    if b.numel():
        off = float((a - b).abs().max())
        scale = float(b.abs().max())
        assert off <= absolute + relative * scale, f"{where} is off by {off:.2e}, of values up to {scale:.2e}"


def _parts(tree: Any, count: int) -> list[Any]:
    """The micro-batches of a batch: sizes differ by one at most, the larger ones first."""
    if isinstance(tree, pp.Args):
        return [pp.Args(*a, **k) for a, k in _parts((tree.args, tree.kwargs), count)]

    def cut(leaf: Any, index: int) -> Any:
        if isinstance(leaf, Replicated):
            return leaf.value
        return torch.tensor_split(leaf, count)[index] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return [tree_map(lambda leaf: cut(leaf, index), tree) for index in range(count)]  # noqa: B023


def _samples(case: Case, pipe: pp.Pipeline) -> list[int]:
    return [_size(part) for part in _parts(case.inputs, pipe.schedule.num_microbatches)]


def _size(inputs: Any) -> int:
    args = pp.Args.of(inputs)
    return next(leaf for leaf in tree_leaves((args.args, args.kwargs)) if isinstance(leaf, Tensor)).shape[0]
