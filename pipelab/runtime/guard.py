"""The guard: before each backward, does the stage's graph stay inside the stage?

What was learnt from earlier steps says where values cross. A branch first taken later may let a value through that
was never seen; without this check its gradient would be lost silently or counted in the wrong stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch.autograd.graph import GradientEdge

from pipelab.runtime.parameters import Parameters

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch

_ACCUMULATE = 2**64 - 1  # the sequence number of AccumulateGrad, where a graph ends in a leaf


def leaks(run: MicroBatch, stage: int, roots: list[GradientEdge], parameters: Parameters) -> list[str]:
    """The places where the graph under `roots` reaches into another stage; empty if it does not.

    Args:
        run: the micro-batch.
        stage: whose backward is about to run.
        roots: where that backward begins.
        parameters: whose parameter is whose.
    """
    begin = run.starts[run.stages.index(stage)]
    found: list[str] = []
    seen = set()
    todo: list[Any] = [root.node for root in roots]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        number = node._sequence_nr()
        if number == _ACCUMULATE:
            parameter = cast(Any, node).variable
            home = parameters.home(parameter)
            if home not in (None, stage):
                found.append(
                    f"stage {stage} uses a parameter of stage {home}, of shape {tuple(parameter.shape)}"
                )
        elif number < begin:
            found.append(f"stage {stage} uses a value of an earlier stage ({node.name()})")
        else:
            todo += [following for following, _ in node.next_functions]
    return found
