"""Where each parameter lives, and what other stages get instead of it.

A parameter belongs to the first stage that touches it. Any other stage works on a *replica*, made once a step; the
replicas' gradients are added to the parameter's in stage order when the step ends. So two ranks never write
to one `.grad` (which loses updates), and the sum does not depend on which rank was faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError


class Parameters:
    """The parameters and buffers of one model, each with its home stage.

    Args:
        model: the user's model; its Parameter objects are never replaced.
        devices: the device of each stage, or None when all stages share one.
    """

    def __init__(self, model: nn.Module, devices: list[torch.device] | None) -> None:
        self._devices = devices
        self._tensors = [*model.parameters(), *model.buffers()]
        self._home: dict[int, int | None] = {id(tensor): None for tensor in self._tensors}
        self._replicas: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def home(self, tensor: Tensor) -> int | None:
        """The home stage; None when no stage has touched it yet, or when it is no tensor of the model."""
        return self._home.get(id(tensor))

    def knows(self, tensor: Tensor) -> bool:
        return id(tensor) in self._home

    def touch(self, tensor: Tensor, stage: int) -> int | None:
        """Notes that `stage` uses `tensor`. The first to do so becomes its home, and it moves there."""
        key = id(tensor)
        if key not in self._home:
            return None
        home = self._home[key]
        if home is None:
            with self._lock:
                home = self._home[key]
                if home is None:
                    self._move(tensor, stage)
                    home = self._home[key] = stage
        return home

    def replica(self, parameter: Tensor, stage: int) -> Tensor:
        """The copy of `parameter` that `stage` works on during this step."""
        key = (id(parameter), stage)
        with self._lock:
            if key not in self._replicas:
                if has_gradient_hooks(parameter):
                    raise PipelabError(
                        f"A parameter of shape {tuple(parameter.shape)} has hooks on its gradient and is used by "
                        f"stages {self._home.get(id(parameter))} and {stage}; its hooks would see a part of it. "
                        f"Remove the hooks, or cut so that one stage uses it."
                    )
                copy = parameter.detach()
                if self._devices is not None:
                    copy = copy.to(self._devices[stage])
                copy.requires_grad_(parameter.requires_grad)
                self._replicas[key] = (parameter, copy)
                self._home[id(copy)] = stage
            return self._replicas[key][1]

    def homes(self, model: nn.Module, cuts: Sequence[str]) -> dict[int, int]:
        """The stage of each parameter and buffer, by identity; a guess for those that no stage has touched yet."""
        known = {key: home for key, home in self._home.items() if home is not None}
        return homes(model, cuts) | known

    def replicas(self) -> list[tuple[Tensor, int, Tensor]]:
        """The replicas of this step: of which parameter, on which stage, and the copy."""
        return [(parameter, stage, copy) for (_, stage), (parameter, copy) in self._replicas.items()]

    def shared(self) -> dict[int, list[int]]:
        """For each parameter with replicas in this step, by identity, the stages that use it, its home first."""
        found: dict[int, list[int]] = {}
        for parameter, stage, _ in self.replicas():
            found.setdefault(id(parameter), [self._home[id(parameter)] or 0]).append(stage)
        return {key: [home, *sorted(others)] for key, (home, *others) in found.items()}

    def storages(self) -> frozenset[int]:
        """Where the memory of the model's own tensors begins, that of the replicas too."""
        tensors = [*self._tensors, *(copy for _, _, copy in self.replicas())]
        return frozenset(t.untyped_storage().data_ptr() for t in tensors if t.layout is torch.strided)

    def reduce(self) -> None:
        """Adds the replicas' gradients to the parameters', in stage order, and forgets the replicas."""
        for _, (parameter, copy) in sorted(self._replicas.items(), key=lambda item: item[0][1]):
            if copy.grad is not None:
                add_gradient(parameter, copy.grad)
        self.drop_replicas()

    def drop_replicas(self) -> None:
        for _, copy in self._replicas.values():
            self._home.pop(id(copy), None)
        self._replicas = {}

    def _move(self, tensor: Tensor, stage: int) -> None:
        if self._devices is None or tensor.device == self._devices[stage]:
            return
        move(tensor, self._devices[stage])


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether somebody waits for the moment when the parameter gets its gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Adds to `.grad`, on the parameter's device, in place where it can be."""
    gradient = gradient.to(parameter.device)
    if parameter.grad is None:
        parameter.grad = gradient
    elif parameter.grad.is_sparse and not gradient.is_sparse:  # it does not take up a dense one
        parameter.grad = gradient + parameter.grad
    else:
        parameter.grad.add_(gradient)


def move(tensor: Tensor, device: torch.device) -> None:
    """Moves a parameter or buffer in place, as Module.to does: an optimizer that holds it stays right."""
    with torch.inference_mode(False):  # or the weights could not be trained any more
        tensor.data = tensor.data.to(device)
        if tensor.grad is not None:
            tensor.grad = tensor.grad.to(device)


def modules_of_stages(
    model: nn.Module, cuts: Sequence[str], *, all_names: bool = False
) -> Iterator[tuple[int, nn.Module]]:
    """Each module with its stage as far as names tell: a module counts to the last cut registered before it.

    Args:
        model: the user's.
        cuts: names of the modules at which stages 1, 2, ... begin.
        all_names: whether a module with several names comes once for each.
    """
    starts = {name: stage for stage, name in enumerate(cuts, start=1)}
    stage = 0
    for name, module in model.named_modules(remove_duplicate=not all_names):
        stage = starts.get(name, stage)
        yield stage, module


def homes(model: nn.Module, cuts: Sequence[str]) -> dict[int, int]:
    """The stage of each parameter and buffer, by identity, as far as it can be told before the model runs.

    `Parameters.touch` corrects what this gets wrong.
    """
    found: dict[int, int] = {}
    for stage, module in modules_of_stages(model, cuts):
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            found.setdefault(id(tensor), stage)
    return found


def spread(model: nn.Module, cuts: Sequence[str], devices: Sequence[torch.device]) -> None:
    """Moves each stage's parameters and buffers to its device, in place."""
    home = homes(model, cuts)
    for tensor in [*model.parameters(), *model.buffers()]:
        move(tensor, devices[home[id(tensor)]])
