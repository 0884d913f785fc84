"""Stages whose weights are updated while other mini-batches are in flight, on copies that hold the right versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from pipelab.core.actions import Action, Kind
from pipelab.errors import PipelabError
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.flow import Flow
from pipelab.runtime.loss import Call
from pipelab.runtime.parameters import Parameters
from pipelab.runtime.stage_weights import StageWeights
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.twins import Twin


class WorkingCopy:
    """A twin of the model on which one mini-batch runs at a time, on each stage with the version that it is handed.

    Args:
        cut_model: the user's model, which has learnt how values flow.
        weights: what each stage trains.

    Attributes:
        cut_model: the twin, cut at the same places.
        minibatch: for each stage which mini-batch it belongs to now; -1 before the first.
        version: for each stage the version of the weights that it holds.
    """

    def __init__(self, cut_model: CutModel, weights: Sequence[StageWeights]) -> None:
        self._twin = Twin(cut_model.model, None)
        self._twin.refresh()
        self.cut_model = cut_model.on_copy(self._twin.model, cut_model.streams)
        self.cut_model.kept_values.alone = False
        self.cut_model.kept_values.look()
        learnt = {each.name: getattr(cut_model.flow, each.name) for each in fields(Flow)}
        self.cut_model.flow = Flow(**_said_of_twins(learnt, self._twin.twin_of))
        homes = cut_model.parameters.homes(cut_model.model, cut_model.names)
        of_twin = {id(mine): theirs for mine, theirs in self._twin.parameters}
        self.cut_model.parameters = _OneStageEach(self._twin, homes, cut_model)
        self.parameters = [[of_twin[id(mine)] for mine in each.parameters] for each in weights]
        self.minibatch = [-1] * len(weights)
        self.version = [-1] * len(weights)

    def enter(self, stage: int, minibatch: int, version: int, weights: Sequence[Tensor]) -> None:
        """From now on the stage works for `minibatch`, on these weights."""
        self.check_no_gradients(stage)
        for parameter, values in zip(self.parameters[stage], weights, strict=True):
            parameter.data = values
        self.minibatch[stage], self.version[stage] = minibatch, version

    def hand_over(self) -> None:
        """What its forwards have left on the modules, such as the last attention, is left on the user's."""
        self._twin.hand_over()

    def check_unchanged(self) -> None:
        """Refuses a forward that changed weights, or put other buffers in the place of the user's."""
        self._twin.check_unchanged()

    def check_no_gradients(self, stage: int) -> None:
        """Refuses gradients that come to a stage while no mini-batch is there, or after its update.

        Raises:
            PipelabError: an earlier stage has used a parameter of this one, unseen.
        """
        for parameter in self.parameters[stage]:
            if parameter.grad is not None:
                raise PipelabError(
                    f"Another stage uses a parameter of stage {stage}, of shape {tuple(parameter.shape)}, on a path "
                    f"that the first mini-batch did not take. Cut so that one stage uses it, or train with a "
                    f"synchronous schedule such as 1f1b."
                )


class UpdatedStages(SuspendedStages):
    """Stages that also do the action U.

    Args:
        contexts: of the copies.
        calls: as for `SuspendedStages`.
        slots: the copy of each micro-batch.
        copies: on which mini-batches take turns.
        weights: what each stage trains.
        per_minibatch: micro-batches in a mini-batch.

    Attributes:
        seen: each action that ran, with the version of the weights that it worked on.
    """

    def __init__(
        self,
        contexts: Sequence[StepContext],
        calls: Sequence[Call],
        slots: Sequence[int],
        copies: Sequence[WorkingCopy],
        weights: Sequence[StageWeights],
        per_minibatch: int,
    ) -> None:
        super().__init__(contexts, calls, slots)
        self._slots, self._copies, self._weights = slots, copies, weights
        self._per_minibatch = per_minibatch
        self.seen: list[tuple[Action, int]] = []

    def forward(self, stage: int, microbatch: int) -> None:
        minibatch, copy = microbatch // self._per_minibatch, self._copies[self._slots[microbatch]]
        if copy.minibatch[stage] != minibatch:
            own = self._weights[stage]
            version = own.versions[minibatch]
            copy.enter(stage, minibatch, version, own.stash.weights(version))
        self._note(Kind.F, stage, microbatch)
        super().forward(stage, microbatch)

    def backward(self, stage: int, microbatch: int) -> None:
        self._note(Kind.B, stage, microbatch)
        super().backward(stage, microbatch)

    def backward_input(self, stage: int, microbatch: int) -> None:
        self._note(Kind.I, stage, microbatch)
        super().backward_input(stage, microbatch)

    def backward_weight(self, stage: int, microbatch: int) -> None:
        self._note(Kind.W, stage, microbatch)
        super().backward_weight(stage, microbatch)

    def update(self, stage: int, microbatch: int) -> None:
        """The mini-batch's gradients go to the newest weights, and the stage's optimizer takes a step.

        Raises:
            PipelabError: the forward went past the copy to the user's model, or changed weights.
        """
        minibatch, copy = microbatch // self._per_minibatch, self._copies[self._slots[microbatch]]
        own = self._weights[stage]
        self.seen.append((Action(Kind.U, stage, microbatch), own.stash.newest))
        if stage == 0:  # the last to be updated: the mini-batch has ended everywhere
            copy.check_unchanged()
        own.stash.before_update(minibatch)
        own.updating = True
        for parameter, twin in zip(own.parameters, copy.parameters[stage], strict=True):
            if parameter.grad is not None:
                raise PipelabError(
                    f"The forward went past the copy of the model to the user's own: a parameter of stage {stage}, of "
                    f"shape {tuple(parameter.shape)}, has a gradient. A function that the model keeps (a lambda, say) "
                    f"refers to the model itself; make it a method."
                )
            parameter.grad, twin.grad = twin.grad, None
        if own.optimizer is not None:
            own.optimizer.step()
        for parameter in own.parameters:
            parameter.grad = None
        own.updating = False
        own.stash.after_update(minibatch)

    def _note(self, kind: Kind, stage: int, microbatch: int) -> None:
        version = self._copies[self._slots[microbatch]].version[stage]
        self.seen.append((Action(kind, stage, microbatch), version))


class _OneStageEach(Parameters):
    """The parameters of a copy: where they are at home is known, and no other stage may use one that is trained."""

    def __init__(self, twin: Twin, homes: dict[int, int], cut_model: CutModel) -> None:
        super().__init__(twin.model, None if cut_model.same_device else cut_model.devices)
        self._names = {id(parameter): name for name, parameter in twin.model.named_parameters()}
        pairs = [*twin.parameters, *zip(cut_model.model.buffers(), twin.model.buffers(), strict=True)]
        self._home = {id(theirs): homes[id(mine)] for mine, theirs in pairs}

    def replica(self, parameter: Tensor, stage: int) -> Tensor:
        if parameter.requires_grad:
            raise PipelabError(
                f"Stage {stage} uses {self._names.get(id(parameter))!r}, a parameter of stage {self.home(parameter)}, "
                f"which the first mini-batch did not do; each stage updates its weights at a time of its own. Cut so "
                f"that one stage uses it, or train with a synchronous schedule such as 1f1b."
            )
        return super().replica(parameter, stage)


def _said_of_twins(value: Any, twin_of: dict[nn.Module, nn.Module]) -> Any:
    """`value` with the twin in the place of each module, also in dicts, sets and sequences."""
    if isinstance(value, nn.Module):
        return twin_of.get(value, value)
    if isinstance(value, dict):
        pairs = value.items()
        return {_said_of_twins(key, twin_of): _said_of_twins(item, twin_of) for key, item in pairs}
    if isinstance(value, (set, frozenset, list, tuple)):
        return type(value)(_said_of_twins(item, twin_of) for item in value)
    return value
