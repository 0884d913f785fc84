"""What a pipeline has learnt about how values flow through a model, so that later steps look only where it matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipelab.runtime.held import tensors_inside


@dataclass
class Flow:
    """Where values of other stages turn up.

    Attributes:
        sites: modules that were handed a value of another stage as an argument.
        noisy: modules whose own code, between the modules it calls, touched one; None stands for the code
            outside the model (the loss).
        callees: for each module (None as above) the modules that its code calls.
        called_in: for each module the stages in which it was called.
        checkpoints: whether anything ran inside torch.utils.checkpoint that the model itself uses.
        checkpointed: the modules that did.
        changing: modules that changed in place what they were handed; looked at where stages are recomputed.
        writing: modules with a buffer, tensor or container that was changed in place; likewise.
        rehearsed: whether a micro-batch ran before the first step.
        cuts_reached: whether some micro-batch came to every cut.
        learnt: the settings of grad mode (True, False) for which a step has been observed.
    """

    sites: set[nn.Module] = field(default_factory=set)
    noisy: set[nn.Module | None] = field(default_factory=set)
    callees: dict[nn.Module | None, set[nn.Module]] = field(default_factory=dict)
    called_in: dict[nn.Module, set[int]] = field(default_factory=dict)
    checkpoints: bool = False
    checkpointed: set[nn.Module] = field(default_factory=set)
    changing: set[nn.Module] = field(default_factory=set)
    writing: set[nn.Module] = field(default_factory=set)
    rehearsed: bool = False
    cuts_reached: bool = False
    learnt: set[bool] = field(default_factory=set)

    @property
    def amount(self) -> tuple[int, ...]:
        """How much is known: what follows from it holds until this changes."""
        modules = (self.sites, self.noisy, self.checkpointed, self.changing, self.writing)
        return (*(len(found) for found in modules), sum(map(len, self.called_in.values())))

    def watched(self, cuts: set[nn.Module]) -> list[nn.Module]:
        """The modules that need hooks in a step that does not learn."""
        around_noise = set().union(*(self.callees.get(module, set()) for module in self.noisy))
        noisy = {module for module in self.noisy if module is not None}
        return list(cuts | self.sites | noisy | around_noise)


class Handed:
    """What a module was handed, as it was before its forward.

    Args:
        module: about to run.
        handed: its arguments.
    """

    def __init__(self, module: nn.Module, handed: Any) -> None:
        self._module = module
        self._handed = handed
        self._before = [(t, t._version) for t in _tensors(handed) if not t.is_inference()]

    def compare(self, flow: Flow) -> None:
        """Notes what the forward has changed: a tensor, or what a list, a cache or another object holds."""
        before = [id(tensor) for tensor, _ in self._before]
        filled = [id(tensor) for tensor in _tensors(self._handed) if not tensor.is_inference()] != before
        if filled or any(tensor._version != version for tensor, version in self._before):
            flow.changing.add(self._module)


def _tensors(handed: Any) -> list[Tensor]:
    return [tensor for leaf in tree_leaves(handed) for tensor in tensors_inside(leaf)]
