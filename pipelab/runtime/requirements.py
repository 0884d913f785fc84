"""What a model must bring before a pipeline runs; checked before anything is moved or run."""

from __future__ import annotations

import difflib

from torch import nn

from pipelab.core.split import Split
from pipelab.errors import PipelabError

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def check_model(model: nn.Module, split: Split) -> None:
    """Refuses a model that cannot be cut there.

    Raises:
        PipelabError: names the cut or the parameter, and says what to change.
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    modules = dict(model.named_modules())
    for name in split.cuts:
        if name not in modules:
            near = difflib.get_close_matches(name[:200], modules, n=3, cutoff=0.3)
            hint = f"The nearest are {', '.join(map(repr, near))}. " if near else ""
            raise PipelabError(
                f"A stage begins at {name!r}, but {type(model).__name__} has no module of that name. {hint}"
                f"model.named_modules() lists all; pp.layers(model, inputs) lists good places to cut."
            )
        if isinstance(modules[name], _NEVER_CALLED):
            child = next((child for child, _ in modules[name].named_children()), None)
            instead = f" Cut at a module in it, such as {f'{name}.{child}'!r}." if child is not None else ""
            raise PipelabError(
                f"A stage begins at {name!r}, a {type(modules[name]).__name__}, which holds modules and is never "
                f"called itself.{instead}"
            )
    twice = [
        name for i, name in enumerate(split.cuts) if modules[name] in [modules[n] for n in split.cuts[:i]]
    ]
    if twice:
        raise PipelabError(
            f"Two stages begin at the same module (one of its names is {twice[0]!r}). Drop one cut."
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type == "meta":
            raise PipelabError(
                f"{name!r} is on the meta device and has no values. Load the weights first, for instance with "
                f"model.to_empty(device='cpu') and model.load_state_dict(...)."
            )


class Fingerprint:
    """Notices that a model was changed after it was cut.

    Args:
        model: as it was cut.
        split: where.
    """

    def __init__(self, model: nn.Module, split: Split) -> None:
        self._cuts = {name: model.get_submodule(name) for name in split.cuts}
        self._tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.note_devices()

    def note_devices(self) -> None:
        """The devices are right as they are now."""
        self._devices = {name: tensor.device for name, tensor in self._tensors.items()}

    def check(self, model: nn.Module) -> None:
        """Compares with the model as it is now.

        Raises:
            PipelabError: names what was replaced, added, removed or moved, and the remedy.
        """
        remedy = "Make a new Pipeline for the changed model."
        now = dict([*model.named_parameters(), *model.named_buffers()])
        for name, tensor in self._tensors.items():
            if name not in now:
                raise PipelabError(f"{name!r} has gone from the model since it was cut. {remedy}")
            if isinstance(tensor, nn.Parameter) and now[name] is not tensor:
                raise PipelabError(f"The parameter {name!r} was replaced since the model was cut. {remedy}")
            if now[name].device != self._devices[name]:
                raise PipelabError(
                    f"{name!r} was moved from {self._devices[name]} to {now[name].device} since the model was cut. "
                    f"{remedy}"
                )
        added = [name for name in now if name not in self._tensors]
        if added:
            raise PipelabError(f"{added[0]!r} was added to the model since it was cut. {remedy}")
        modules = dict(model.named_modules())
        for name, module in self._cuts.items():
            if modules.get(name) is not module:
                raise PipelabError(f"The module {name!r}, where a stage begins, was replaced. {remedy}")
