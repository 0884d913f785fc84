"""One micro-batch before a first step, forward and backward on the user's model, to learn how values flow."""

from __future__ import annotations

from dataclasses import replace

from pipelab.core.actions import Action, Kind
from pipelab.core.schedule import Schedule
from pipelab.runtime.chains import first_chain
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.engine import program
from pipelab.runtime.held import Contents, same_values, state_tensors
from pipelab.runtime.loss import Call
from pipelab.runtime.runner import Runner
from pipelab.runtime.stages import SuspendedStages


def rehearse(runner: Runner, cut_model: CutModel, schedule: Schedule, call: Call, in_flight: int) -> None:
    """Runs one micro-batch through all stages. What it leaves behind is the caller's to put back.

    Args:
        runner: of the pipeline.
        cut_model: the user's model.
        schedule: of the pipeline; the stages of its first chain run where they will.
        call: the model and the loss on a micro-batch.
        in_flight: the most micro-batches that will be in flight at a time.
    """
    placement, used = first_chain(schedule)
    orders = []
    for rank in range(placement.num_ranks):
        own = placement.stages_of(rank)
        forwards = [Action(Kind.F, stage, 0) for stage in own]
        orders.append([*forwards, *(Action(Kind.B, stage, 0) for stage in reversed(own))])
    rehearsed = Schedule(orders, placement, name=f"{schedule.name}, rehearsed")
    context = StepContext(cut_model, in_flight, rehearsal=True)
    cells = tuple(replace(cell, rank=used[cell.rank]) for cell in program(rehearsed))
    modules = list(cut_model.model.modules())
    before = [(module, t, t._version, t.clone()) for module in modules for t in state_tensors(module)]
    contents = [(module, Contents(module)) for module in modules]
    runner.execute(rehearsed, cells, SuspendedStages([context], [call], [0]))
    # Whoever has changed it: in the backward its value may be that of a later micro-batch.
    cut_model.flow.writing.update(
        module for module, t, version, value in before if t._version != version or not same_values(t, value)
    )
    cut_model.flow.writing.update(module for module, held in contents if held.changed)
    cut_model.flow.rehearsed = True
