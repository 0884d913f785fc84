"""What a person should know about a model in a pipeline though nothing is wrong: said once, and listed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelab.core.quantities import as_bytes, counted
from pipelab.core.split import Split
from pipelab.errors import PipelabWarning
from pipelab.runtime.parameters import modules_of_stages

_MOST_NAMES = 3


class Cautions:
    """The warnings of one pipeline. Each is raised once, as a `PipelabWarning`.

    Args:
        model: the user's.
        split: where it is cut.
        num_microbatches: of a step.
        same_device: whether all stages share one device.
    """

    def __init__(self, model: nn.Module, split: Split, num_microbatches: int, same_device: bool) -> None:
        self._model, self._same_device = model, same_device
        self._shared = self._of_shared(_registered_twice(model, split))
        self._others = _of_batchnorm(model, num_microbatches)
        for sentence in self.sentences:
            _warn(sentence)

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of them, as far as they are known by now."""
        return (*self._others, *self._shared.values())

    def learn(self, shared: Mapping[int, Sequence[int]], not_compiled: Sequence[nn.Module] = ()) -> None:
        """Puts what a step has shown in the place of what names had suggested.

        Args:
            shared: for each parameter that several stages used, by identity, these stages, its home first.
            not_compiled: modules that went through torch.compile and run as if they had not.
        """
        self._learn_plain(
            [name or "the model" for name, m in self._model.named_modules() if m in not_compiled]
        )
        known, self._shared = self._shared, self._of_shared(shared)
        for stages, sentence in self._shared.items():
            if stages not in known:
                _warn(sentence)

    def _learn_plain(self, names: list[str]) -> None:
        if not names:
            return
        sentence = (
            f"{_listed(names)}: torch.compile has no effect in a step, because a stage begins inside, a value of "
            f"another stage is used there, or the module sets attributes. Compile modules that lie in one stage whole."
        )
        if sentence not in self._others:
            self._others = (*self._others, sentence)
            _warn(sentence)

    def _of_shared(self, shared: Mapping[int, Sequence[int]]) -> dict[tuple[int, ...], str]:
        """One sentence for all parameters that the same stages use."""
        together: dict[tuple[int, ...], list[int]] = {}
        for key, stages in shared.items():
            together.setdefault(tuple(stages), []).append(key)
        named = _named(self._model)
        return {
            stages: self._sentence(stages, [named[key] for key in keys]) for stages, keys in together.items()
        }

    def _sentence(self, stages: tuple[int, ...], parameters: Sequence[tuple[nn.Parameter, list[str]]]) -> str:
        names = [one[0] + f" (also {', '.join(one[1:])})" * bool(one[1:]) for _, one in parameters]
        size = as_bytes(sum(parameter.numel() * parameter.element_size() for parameter, _ in parameters))
        trained = any(parameter.requires_grad for parameter, _ in parameters)
        several = len(names) > 1
        home, *others = stages
        if self._same_device:
            cost = f"keeps a gradient of its own, {size}, until the step ends"
        elif trained:
            cost = f"gets a copy once a step and returns its gradient once, {size} each, and holds both meanwhile"
        else:
            cost = f"gets a copy once a step, {size}"
        each = "stage" if len(others) == 1 else "each of stages"
        return (
            f"{_listed(names)} {'are' if several else 'is'} used by stages {_and(stages)}. "
            f"{'They live' if several else 'It lives'} in stage {home}; {each} {_and(others)} {cost}. "
            f"The gradients are right; a split that leaves {'them' if several else 'it'} in one stage saves this."
        )


def _registered_twice(model: nn.Module, split: Split) -> dict[int, list[int]]:
    """The parameters with names in several stages, as far as names tell."""
    found: dict[int, set[int]] = {}
    for stage, module in modules_of_stages(model, split.cuts, all_names=True):
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:  # what is frozen may be read in place
                found.setdefault(id(parameter), set()).add(stage)
    return {key: sorted(stages) for key, stages in found.items() if len(stages) > 1}


def _named(model: nn.Module) -> dict[int, tuple[nn.Parameter, list[str]]]:
    named: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), (parameter, []))[1].append(name)
    return named


def batchnorms(model: nn.Module) -> list[str]:
    """The names of the BatchNorms that take their statistics from what they are given: they mix its samples."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]


def _of_batchnorm(model: nn.Module, num_microbatches: int) -> tuple[str, ...]:
    names = batchnorms(model)
    if not names or num_microbatches == 1:
        return ()
    return (
        f"{_listed(names)}: BatchNorm takes its statistics from each of the {num_microbatches} micro-batches by "
        f"itself, as in plain gradient accumulation, so loss and gradients are not those of the whole batch at once. "
        f"Running statistics change {counted(num_microbatches, 'time')} a step. In eval mode neither is so.",
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return f"{', '.join(names[:_MOST_NAMES])} and {more} more" if more > 0 else _and(names)


def _and(things: Sequence[object]) -> str:
    *most, last = map(str, things)
    return f"{', '.join(most)} and {last}" if most else last


def _warn(sentence: str) -> None:
    """Warns at the line of the user's code that called pipelab."""
    frame, level = sys._getframe(1), 2  # level 1 is this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pipelab":
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, PipelabWarning, stacklevel=level)
