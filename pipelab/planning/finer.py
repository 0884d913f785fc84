"""The same model in smaller pieces: what its costs are when each stage is cut evenly.

Schedules that hold two stages a rank need twice as many stages. Unless these are half as large, a comparison
with schedules of one stage a rank compares two models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelab.core.costs import Costs, StageBytes

__all__ = ["cut_evenly"]

_SECONDS = ("forward", "input_grad", "weight_grad", "backward", "update", "overlap")


def cut_evenly(costs: Costs, parts: int, slices: int = 1) -> Costs:
    """Costs of the same model with each stage cut into equal parts, and each micro-batch into equal slices.

    Args:
        costs: seconds and bytes per stage.
        parts: in how many stages each stage is cut. A new border is taken to carry what the old one does.
        slices: in how many slices each micro-batch is cut; an update of the weights is not cut by these.

    Example:
        >>> cut_evenly(Costs((1.0, 4.0), (1.0, 2.0), (1.0, 2.0)), 2).forward
        (0.5, 0.5, 2.0, 2.0)
    """
    if parts == slices == 1:
        return costs

    def shared(values: tuple[float, ...] | None, pieces: int) -> tuple[float, ...] | None:
        return None if values is None else tuple(x / pieces for x in values for _ in range(parts))

    pieces = {name: parts if name == "update" else parts * slices for name in _SECONDS}
    seconds: dict[str, Any] = {name: shared(getattr(costs, name), pieces[name]) for name in _SECONDS}
    held = costs.bytes
    if held is not None:
        amounts: dict[str, Any] = {
            "parameters": shared(held.parameters, parts),
            "activations": shared(held.activations, parts * slices),
            "outputs": tuple(x / slices for x in held.outputs for _ in range(parts)),
            "optimizer": shared(held.optimizer, parts),
            "until_weight_grad": shared(held.until_weight_grad, parts * slices),
        }
        held = StageBytes(**amounts)
    return replace(costs, **seconds, bytes=held)
