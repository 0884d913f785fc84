"""How many bytes a stage keeps between its forward and its backward, read off the autograd graph that it made.

No hook is in the way of the forward: torch.jit, torch.func, checkpoints and deferred weight gradients run as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from pipelab.core.costs import StageBytes

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch
    from pipelab.runtime.parameters import Parameters

Key = tuple[int, int]
"""A tensor's memory: where its storage begins, and its offset in it."""

_RAW = "_raw_saved_"


def saved_tensors(roots: Iterable[Node], begin: int) -> Iterator[Tensor]:
    """The tensors that the nodes under `roots` keep for their backward, some of them several times.

    What saved-tensor hooks have packed counts as it was packed: nothing is unpacked, since that would run a
    checkpoint's forward again. Of a checkpoint count the inputs, which it keeps to run again. A scripted graph does not
    show what it keeps, and counts as nothing.

    Args:
        roots: the last nodes of a stage.
        begin: the first sequence number of the stage; older nodes belong to others.
    """
    names: dict[type, list[str]] = {}
    seen: set[Node] = set()
    todo: list[Node | None] = list(roots)
    while todo:
        node = todo.pop()
        if node is None or node in seen or node._sequence_nr() < begin:
            continue
        seen.add(node)
        kind = type(node)
        if kind not in names:
            names[kind] = [name for name in dir(kind) if name.startswith(_RAW)]
        for name in names[kind]:
            yield from _kept(getattr(node, name))
        todo += [following for following, _ in node.next_functions]


def _kept(saved: Any) -> Iterator[Tensor]:
    """What one saved variable keeps, or several of them do."""
    if isinstance(saved, (tuple, list)):
        for one in saved:
            yield from _kept(one)
    elif saved is not None:
        hook = saved.unpack_hook
        for value in tree_leaves(saved.data):
            if isinstance(value, Tensor):
                yield value
        if hook is not None:
            yield from _checkpoint_inputs(hook)


def _checkpoint_inputs(unpack: Any) -> Iterator[Tensor]:
    """What torch.utils.checkpoint keeps to run its forward again: its frame, which its hook closes over, has it."""
    for cell in getattr(unpack, "__closure__", None) or ():
        frame = cell.cell_contents
        if callable(frame):  # a hook around the hook
            yield from _checkpoint_inputs(frame)
        for saved in getattr(frame, "saved_args", ()):
            if hasattr(saved, "unpack_hook"):
                yield from _kept(saved)


class KeptBytes:
    """Counts what one micro-batch keeps and sends, per stage.

    Counted is `numel * element_size` per (storage, offset): a view of a batch must not be charged with the whole
    batch, and a tensor saved by two operations counts once. Parameters and their replicas are left out: they are no
    activations.

    Args:
        num_stages: how many counters.
    """

    def __init__(self, num_stages: int) -> None:
        self._saved: list[dict[Key, int]] = [{} for _ in range(num_stages)]
        self._sent: list[dict[Key, int]] = [{} for _ in range(num_stages)]
        self._left: list[int | None] = [None] * num_stages  # by a split backward to the weight gradients
        self._senders: dict[int, int] = {}  # the storage of a received copy: that of what was sent
        self.known = False

    def count(self, microbatch: MicroBatch, parameters: Parameters) -> None:
        """Counts a micro-batch whose forward has just ended; no backward of it has run.

        Args:
            microbatch: which.
            parameters: whose storages are left out.
        """
        left_out = parameters.storages()
        saved: list[dict[Key, int]] = [{} for _ in self._saved]
        sent: list[dict[Key, int]] = [{} for _ in self._sent]
        for stage, begin in zip(microbatch.stages, microbatch.starts, strict=True):
            for tensor in saved_tensors(roots_of(microbatch, stage), begin):
                _charge(saved[stage], tensor, left_out)
        self._senders = {}
        for link in microbatch.links:
            if link.sent is not None:
                _charge(sent[link.source], link.sent, frozenset())
                if link.received is not None:
                    self._senders[_storage(link.received)] = _storage(link.sent)
        self._saved, self._sent = saved, sent
        self._left = [None] * len(saved)
        self.known = True

    def count_left(self, stage: int, tensors: Iterable[Tensor], parameters: Parameters) -> None:
        """Counts what a split backward has left to the action W, once for each stage.

        Args:
            stage: whose.
            tensors: what is kept.
            parameters: whose storages are left out.
        """
        if self._left[stage] is None:
            counted: dict[Key, int] = {}
            left_out = parameters.storages()
            for tensor in tensors:
                _charge(counted, tensor, left_out)
            self._left[stage] = sum(counted.values())

    def stage_bytes(self, parameters: list[int]) -> StageBytes:
        """The counts per stage. A stage holds what it sent, too, until its backward.

        Args:
            parameters: bytes of each stage's own parameters.
        """
        activations = [sum({**s, **k}.values()) for s, k in zip(self._sent, self._saved, strict=True)]
        is_split = any(left is not None for left in self._left)
        return StageBytes(
            parameters=tuple(parameters),
            activations=tuple(activations),
            outputs=tuple(sum(counted.values()) for counted in self._sent),
            until_weight_grad=tuple(
                kept if left is None else left for kept, left in zip(activations, self._left, strict=True)
            )
            if is_split
            else None,
        )

    def mergeable_bytes(self, parameters: list[int]) -> StageBytes:
        """The counts per stage as if nothing were copied at the borders: sums over stages are those of one stage.

        What is kept on both sides of a border counts on the receiver's: a sender keeps it anyway, because it was sent.

        Args:
            parameters: bytes of each stage's own parameters.
        """
        seen: set[Key] = set()
        activations: list[int] = []
        for counted in reversed(self._saved):
            merged = {(self._original(storage), offset): size for (storage, offset), size in counted.items()}
            activations.append(sum(size for key, size in merged.items() if key not in seen))
            seen |= merged.keys()
        return StageBytes(
            parameters=tuple(parameters),
            activations=tuple(reversed(activations)),
            outputs=tuple(sum(counted.values()) for counted in self._sent),
        )

    def _original(self, storage: int) -> int:
        while storage in self._senders and self._senders[storage] != storage:
            storage = self._senders[storage]
        return storage


def roots_of(microbatch: MicroBatch, stage: int) -> list[Node]:
    """Where the backward of a stage will begin, known once the micro-batch's forward has ended."""
    roots = [link.edge.node for link in microbatch.links if link.source == stage and link.edge is not None]
    root = microbatch.result.root if microbatch.result is not None else None
    if stage == microbatch.stages[-1] and root is not None and root.requires_grad:
        roots.append(get_gradient_edge(root).node)
    return roots


def _charge(counted: dict[Key, int], tensor: Tensor, left_out: frozenset[int]) -> None:
    if tensor.layout is not torch.strided:
        return  # a sparse tensor has no storage to count
    key = (_storage(tensor), int(tensor.storage_offset()))
    if key[0] not in left_out:
        counted[key] = max(tensor.numel() * tensor.element_size(), counted.get(key, 0))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
