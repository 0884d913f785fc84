"""Where a model can be cut, and at what cost: the modules of its main chain, in the order of their first call."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipelab.core.quantities import as_bytes, as_seconds, counted
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.errors import MANY, PipelabError, annotate, from_one_to
from pipelab.runtime.inputs import Args
from pipelab.runtime.preserve import preserved
from pipelab.runtime.trees import tensors

if TYPE_CHECKING:
    import pandas as pd

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, eq=False, repr=False)
class Layers(Sequence[str]):
    """The layers of a model with what each costs. It is a sequence of their names, and equals a tuple of them.

    Attributes:
        names: of the modules at which a stage can begin, in the order of their first call.
        types: the class of each module.
        parameters: how many numbers each layer's parameters hold; a shared one counts where it comes first.
        parameter_bytes: their bytes.
        forward: seconds of each layer's forward, without gradients: from its module's first call to the next layer's.
        output_bytes: of what its module returns.
        others: how many numbers are in parameters that belong to no layer, such as the model's own.
        measured: how the seconds were measured, in words.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    parameters: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    forward: tuple[float, ...]
    output_bytes: tuple[int, ...]
    others: int
    measured: str

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        names = other.names if isinstance(other, Layers) else other
        return self.names == names if isinstance(names, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.names)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by their names, with units; one row a layer."""
        return {
            "layer": np.array(self.names, dtype=object),
            "type": np.array(self.types, dtype=object),
            "parameters": np.array(self.parameters, dtype=np.int64),
            "parameters [bytes]": np.array(self.parameter_bytes, dtype=np.int64),
            "forward [s]": np.array(self.forward),
            "output [bytes]": np.array(self.output_bytes, dtype=np.int64),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table, units in the names of the columns."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        header = ["layer", "type", "parameters", "their bytes", "forward", "output"]
        rows = [
            [name, kind, f"{count:,}", as_bytes(size), as_seconds(seconds), as_bytes(output)]
            for name, kind, count, size, seconds, output in zip(
                self.names,
                self.types,
                self.parameters,
                self.parameter_bytes,
                self.forward,
                self.output_bytes,
                strict=True,
            )
        ]
        return header, rows

    def _note(self) -> str:
        others = f" {self.others:,} more parameters belong to no layer." if self.others else ""
        return (
            f"forward: {self.measured}.{others} A stage can begin at any of these but the first; "
            f"pp.balance(pp.profile(model, inputs, ...), num_stages) proposes where."
        )

    def __str__(self) -> str:
        return text_table(*self._rows(), self._note())

    def __repr__(self) -> str:
        return f"<Layers: {counted(len(self), 'layer')}, {as_seconds(sum(self.forward))} forward>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), note=self._note())


def layers(model: nn.Module, inputs: Any, *, repeats: int = 3) -> Layers:
    """The layers of a model: where a stage can begin, and what each layer costs.

    A layer runs from its module's first call to the next layer's. Layers are the children of the model; Sequential,
    ModuleList and ModuleDict are opened, and so is every module on the way to a large chain of them. The model's
    forward runs `repeats` times and once more before, without gradients; random state and buffers are put back.
    `pp.profile` measures more: backwards, kept bytes, other batch sizes.

    Args:
        model: any module.
        inputs: as for `Pipeline.step`; one sample is enough.
        repeats: timed runs; the median counts.

    Returns:
        A sequence of names that prints as a table. The first name is where the model begins, and no place to cut.

    Raises:
        PipelabError: the forward calls no module at all.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> tuple(pp.layers(model, torch.ones(2, 4)))
        ('0', '1', '2')
    """
    from_one_to(MANY, repeats=repeats)
    args = Args.of(inputs)
    runs = [_watch(model, args) for _ in range(repeats + 1)]
    names, outputs = tuple(runs[0].begins), runs[0].outputs
    seconds = np.median([run.seconds(names) for run in runs[1:]], axis=0)
    parameters = _parameters(model, names)
    held = {id(parameter) for each in parameters for parameter in each}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    threads = f", {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    return Layers(
        names,
        types=tuple(type(model.get_submodule(name)).__name__ for name in names),
        parameters=tuple(sum(p.numel() for p in each) for each in parameters),
        parameter_bytes=tuple(sum(p.numel() * p.element_size() for p in each) for each in parameters),
        forward=tuple(seconds.tolist()),
        output_bytes=tuple(outputs.get(name, 0) for name in names),
        others=sum(p.numel() for p in model.parameters() if id(p) not in held),
        measured=f"median of {counted(repeats, 'run')} without gradients on {device}{threads}, with the inputs given",
    )


def layer_names(model: nn.Module, inputs: Any) -> tuple[str, ...]:
    """The names that `layers` finds, from one run of the forward.

    Raises:
        PipelabError: the forward calls no module at all.
    """
    return tuple(_watch(model, Args.of(inputs)).begins)


@dataclass
class _Run:
    """One run of the forward.

    Attributes:
        begins: when each layer was first called, in that order; seconds from the start of the forward.
        outputs: bytes of what each layer's module first returned.
        end: seconds of the whole forward.
    """

    begins: dict[str, float]
    outputs: dict[str, int]
    end: float

    def seconds(self, names: tuple[str, ...]) -> list[float]:
        """How long each layer took; one that this run did not call took nothing."""
        begins = [0.0, *(self.begins.get(name, math.nan) for name in names[1:]), self.end]
        for n in reversed(range(len(names))):
            if math.isnan(begins[n]):
                begins[n] = begins[n + 1]
        return np.diff(begins).tolist()


def _watch(model: nn.Module, args: Args) -> _Run:
    names = {module: name for name, module in reversed(list(candidates(model)))}
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    run = _Run({}, {}, 0.0)

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def enter(module: nn.Module, _args: Any) -> None:
        if names[module] not in run.begins:
            run.begins[names[module]] = now()

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        if names[module] not in run.outputs:
            run.outputs[names[module]] = sum(t.numel() * t.element_size() for t in tensors(output))

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with preserved(model), torch.no_grad():
            start = time.perf_counter()
            args.passed_to(model)
            run.end = now()
    except Exception as error:
        where = next((f" in layer {name!r}" for name in reversed(run.begins) if name not in run.outputs), "")
        annotate(error, f"pipelab: raised{where}, in a forward of the whole model with the inputs given.")
        raise
    finally:
        for handle in handles:
            handle.remove()
    if not run.begins:
        raise PipelabError(
            f"{type(model).__name__}'s forward calls none of its modules, so there is nowhere to cut it."
        )
    return run


def _parameters(model: nn.Module, names: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parameters of each layer's module; one that several share is the first's."""
    seen: set[int] = set()
    found = []
    for name in names:
        own = [p for p in model.get_submodule(name).parameters() if id(p) not in seen]
        seen |= {id(parameter) for parameter in own}
        found.append(own)
    return found


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may be layers, in the order of registration."""
    spine = _ancestors_of_large_chains(model)

    def open_up(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if (isinstance(child, _CONTAINERS) and len(child)) or path in spine:
                yield from open_up(f"{path}.", child)
            else:
                yield path, child

    yield from open_up("", model)


def _ancestors_of_large_chains(model: nn.Module) -> set[str]:
    """Names of the modules that hold a large chain, from the model down to it.

    A chain is a ModuleList, Sequential or ModuleDict; it is large if it holds more than half as many modules as the
    largest. An encoder and a decoder are both opened; the small Sequential inside a block is not.
    """
    sizes = {
        name: sum(1 for _ in module.modules())
        for name, module in model.named_modules()
        if name and isinstance(module, _CONTAINERS) and len(module) > 1
    }
    opened = set()
    for name, size in sizes.items():
        if 2 * size > max(sizes.values()):
            parts = name.split(".")
            opened |= {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return opened
