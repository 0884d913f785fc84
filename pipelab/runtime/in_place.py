"""Buffers and plain tensors on modules that one stage changes in place and another uses.

Run one after the other, micro-batches may share such a tensor. Suspended between the two stages, they would mix:

    micro-batch 0   mean.copy_(m0) | cut                  | read mean
    micro-batch 1                  | mean.copy_(m1) | cut |             read mean

A tensor knows no micro-batch, so this cannot be kept apart as what is bound to an attribute can: it is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pipelab.errors import PipelabError
from pipelab.runtime.held import MODULES_OWN


class _Watched:
    """One tensor during a step.

    Attributes:
        tensor, name: which.
        version: as it was when the step began.
        stages: those that use it.
    """

    def __init__(self, tensor: Tensor, name: str, stages: set[int]) -> None:
        self.tensor, self.name, self.version, self.stages = tensor, name, tensor._version, stages


class ChangedInPlace:
    """The tensors on one model's modules that stages may change in place, over all steps.

    Args:
        model: whose modules are minded.

    Attributes:
        watching: whether uses are to be noted: in steps that learn, while several micro-batches are in flight.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._watched: dict[int, _Watched] = {}
        self._shared: dict[str, set[int]] = {}  # by name, the stages that use it, where there are several
        self._lock = threading.Lock()
        self.watching = False

    @contextlib.contextmanager
    def minded(self, in_flight: int, learning: bool) -> Iterator[None]:
        """While a step runs. A step that does not learn looks at its end at the tensors that several stages use.

        Args:
            in_flight: the most micro-batches that are in flight at a time.
            learning: whether the model is looked at anew.

        Raises:
            PipelabError: a tensor that several stages use was changed in place.
        """
        if in_flight > 1 and (learning or self._shared):
            self._look(learning)
        self.watching = learning and bool(self._watched)
        try:
            yield
            for watched in self._watched.values():
                self._check(watched)
            if learning:
                found = {w.name: w.stages for w in self._watched.values() if len(w.stages) > 1}
                self._shared = {**self._shared, **found}
        finally:
            self._watched = {}
            self.watching = False

    def touch(self, tensor: Tensor, stage: int) -> None:
        """Notes that `stage` uses `tensor`, or the tensor that it is a view of.

        Raises:
            PipelabError: it was changed in place in this step, and another stage uses it too.
        """
        watched = self._watched.get(id(tensor))
        if watched is None and tensor._is_view():
            watched = self._watched.get(id(tensor._base))
        if watched is not None:
            with self._lock:
                watched.stages.add(stage)
            self._check(watched)

    def _look(self, learning: bool) -> None:
        for name, tensor in self._tensors():
            if learning or name in self._shared:
                stages = set() if learning else set(self._shared[name])
                self._watched.setdefault(id(tensor), _Watched(tensor, name, stages))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for module_name, module in self._model.named_modules():
            kept: dict[str, Any] = {k: v for k, v in vars(module).items() if k not in MODULES_OWN}
            for name, value in {**module._buffers, **kept}.items():
                if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.is_inference():
                    continue
                yield f"{module_name}.{name}" if module_name else name, value

    def _check(self, watched: _Watched) -> None:
        if len(watched.stages) < 2 or watched.tensor._version == watched.version:
            return
        *others, last = sorted(watched.stages)
        raise PipelabError(
            f"The forward changes {watched.name!r} in place (a buffer, or a tensor on a module), and the stages "
            f"{', '.join(map(str, others))} and {last} use it: the micro-batches in flight would see one another's "
            f"values. Pass the value on as an argument, bind a new tensor (`self.x = ...`), cut so that one stage uses "
            f"it, or use a schedule with one micro-batch in flight."
        )
