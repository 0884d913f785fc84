"""What a pipeline has learnt about how values flow through a model, so that later steps look only where it matters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn


@dataclass
class Flow:
    """Where values of other stages turn up.

    Attributes:
        sites: modules that were handed a value of another stage as an argument.
        noisy: modules whose own code, between the modules it calls, touched one; None stands for the code
            outside the model (the loss).
        callees: for each module (None as above) the modules that its code calls.
        checkpoints: whether a module was called inside torch.utils.checkpoint.
        learnt: the settings of grad mode (True, False) for which a step has been observed.
    """

    sites: set[nn.Module] = field(default_factory=set)
    noisy: set[nn.Module | None] = field(default_factory=set)
    callees: dict[nn.Module | None, set[nn.Module]] = field(default_factory=dict)
    checkpoints: bool = False
    learnt: set[bool] = field(default_factory=set)

    def watched(self, cuts: set[nn.Module]) -> list[nn.Module]:
        """The modules that need hooks in a step that does not learn."""
        around_noise = set().union(*(self.callees.get(module, set()) for module in self.noisy))
        noisy = {module for module in self.noisy if module is not None}
        return list(cuts | self.sites | noisy | around_noise)
