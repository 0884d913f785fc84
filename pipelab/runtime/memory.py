"""How many bytes a stage keeps between its forward and its backward, counted where torch saves them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelab.core.costs import StageBytes

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch


class KeptBytes:
    """Counts one micro-batch's saved tensors per stage.

    Counted is `numel * element_size` per (storage, offset): a view of a batch must not be charged with the whole
    batch, and a tensor saved by two operations counts once. Parameters are left out: they are no activations.

    Args:
        model: whose parameters are left out.
        num_stages: how many counters.
    """

    def __init__(self, model: nn.Module, num_stages: int) -> None:
        self._model = model
        self._num_stages = num_stages
        self._kept: list[dict[tuple[int, int], int]] = []
        self._sent: list[int] = []
        self.pack: Any = None  # the hook that counts, while it does

    @property
    def known(self) -> bool:
        return bool(self._sent)

    @contextlib.contextmanager
    def watching(self, microbatch: MicroBatch) -> Iterator[None]:
        """Counts what is saved in this thread, for the stage that the micro-batch is in."""
        kept: list[dict[tuple[int, int], int]] = [{} for _ in range(self._num_stages)]
        parameters = {p.untyped_storage().data_ptr() for p in self._model.parameters()}

        def pack(tensor: Tensor) -> Any:
            if tensor.layout is not torch.strided:
                return tensor  # a sparse tensor has no storage to count
            storage = tensor.untyped_storage().data_ptr()
            if storage not in parameters:
                key = (storage, int(tensor.storage_offset()))
                size = tensor.numel() * tensor.element_size()
                counted = kept[microbatch.stage]
                counted[key] = max(size, counted.get(key, 0))
            return (
                tensor.detach()
            )  # the tensor itself would be a cycle when the operation saves its own output

        self.pack = pack
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                yield
        finally:
            self.pack = None  # it knows the micro-batch, whose tensors a failed step must not keep
        self._kept = kept
        sent = [0] * self._num_stages
        for link in microbatch.links:
            if link.sent is not None:
                sent[link.source] += link.sent.numel() * link.sent.element_size()
        self._sent = sent

    def stage_bytes(self, parameters: list[int]) -> StageBytes:
        """The counts of the micro-batch that was watched."""
        kept = [sum(counted.values()) for counted in self._kept]
        return StageBytes(parameters=tuple(parameters), activations=tuple(kept), outputs=tuple(self._sent))
