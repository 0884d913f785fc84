"""What each stage trains when it updates its own weights: parameters, their versions, an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipelab.errors import PipelabError
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.stash import Stash

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
GivenOptimizer = MakeOptimizer | Sequence[torch.optim.Optimizer | None]


@dataclass
class StageWeights:
    """What one stage trains, and with what.

    Attributes:
        parameters: the user's own objects; they hold the newest version.
        versions: for each mini-batch the version that it works on.
        stash: the versions that there are.
        optimizer: of these parameters; None if there are none.
        updating: whether an update has begun and not ended.
    """

    parameters: list[nn.Parameter]
    versions: list[int]
    stash: Stash
    optimizer: torch.optim.Optimizer | None
    updating: bool = False


def stage_weights(
    cut_model: CutModel, versions: list[list[int]], optimizer: GivenOptimizer
) -> list[StageWeights]:
    """For each stage its parameters, versions and optimizer.

    Args:
        cut_model: has learnt which stage uses which parameter.
        versions: for each stage and mini-batch the version that it works on.
        optimizer: makes one of a list of parameters; or one a stage.

    Raises:
        PipelabError: the optimizers are not as many as the stages, or do not hold their parameters.
        TypeError: they are none.
    """
    homes = cut_model.parameters.homes(cut_model.model, cut_model.names)
    parameters: list[list[nn.Parameter]] = [[] for _ in versions]
    for parameter in cut_model.model.parameters():
        if parameter.requires_grad:
            parameters[homes[id(parameter)]].append(parameter)
    optimizers = _optimizers(optimizer, parameters)
    return [
        StageWeights(own, uses, Stash(own, uses), made)
        for own, uses, made in zip(parameters, versions, optimizers, strict=True)
    ]


def _optimizers(
    given: GivenOptimizer, parameters: list[list[nn.Parameter]]
) -> list[torch.optim.Optimizer | None]:
    if callable(given):
        made = [given(own) if own else None for own in parameters]
    elif isinstance(given, Sequence):
        made = list(given)
    else:
        raise TypeError(
            f"optimizer must be a function from a list of parameters to their optimizer, such as lambda params: "
            f"torch.optim.SGD(params, lr=0.1), or run.optimizers of an earlier run, not {type(given).__name__}."
        )
    if len(made) != len(parameters):
        raise PipelabError(
            f"There are {len(made)} optimizers for {len(parameters)} stages. Give one a stage, and None to a stage "
            f"with nothing to train."
        )
    for stage, (each, own) in enumerate(zip(made, parameters, strict=True)):
        if not own:
            continue
        if not isinstance(each, torch.optim.Optimizer):
            raise TypeError(
                f"The optimizer of stage {stage} is {type(each).__name__}, not a torch.optim.Optimizer: return one, "
                f"such as torch.optim.SGD(params, lr=0.1)."
            )
        held = {id(parameter) for group in each.param_groups for parameter in group["params"]}
        if not {id(parameter) for parameter in own} <= held or any(each is other for other in made[:stage]):
            raise PipelabError(
                f"The optimizer of stage {stage} must hold the parameters of this stage, and no other stage may have "
                f"the same one. Make it of the list that the function is given."
            )
    return made
