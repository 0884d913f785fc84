"""Training with updates in flight: asynchronous schedules (PipeDream, 2BW) on real weights that are really stale.

Every forward and backward of a mini-batch works on the version of the weights that `schedule.weight_versions()` names:
on a twin of the model, which is handed that version stage by stage as the mini-batch enters. The action U(stage,
micro-batch) gives the twin's gradients to the user's own parameters, which are the newest version, and lets the
stage's own optimizer change them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pipelab.core.actions import Kind
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError, annotate
from pipelab.runtime.context import StepContext
from pipelab.runtime.engine import Progress, most_in_flight, with_weight_gradients
from pipelab.runtime.loss import loss_modules
from pipelab.runtime.loss_weights import LossWeight
from pipelab.runtime.measured import measured_trace
from pipelab.runtime.minibatches import MiniBatches
from pipelab.runtime.pipeline import Pipeline
from pipelab.runtime.rehearsal import rehearse
from pipelab.runtime.runnable import check_updates
from pipelab.runtime.stage_weights import GivenOptimizer, StageWeights, stage_weights
from pipelab.runtime.training import SeenVersions, Training
from pipelab.runtime.twins import check_loss
from pipelab.runtime.updating import UpdatedStages, WorkingCopy


def train(
    pipe: Pipeline,
    batches: Iterable[Any],
    *,
    optimizer: GivenOptimizer,
    loss_weight: LossWeight = None,
    consistent: bool | None = None,
    progress: Progress | None = None,
) -> Training:
    """Runs an asynchronous schedule: many mini-batches in flight, with updates of the weights in between.

    The model ends with the weights that these mini-batches made of them, and with no gradients. The first call also
    runs one micro-batch beforehand, to learn which stage uses which parameter; gradients, buffers and random state are
    put back, but hooks on the model see it. For other schedules the loop is yours: `pipe.step`, then your optimizer.

    A stage keeps as many versions of its weights as `schedule.weight_versions().kept` says, in memory that the trace
    does not count. The forwards run on copies of the model: hooks are handed a module of a copy.

    Args:
        pipe: a pipeline whose schedule updates the weights, such as pipedream or pipedream-2bw.
        batches: pairs (inputs, target), as for `Pipeline.step`, one a mini-batch; without a target (inputs, None). A
            list must have as many as the schedule has mini-batches; an iterator gives so many, and keeps the rest.
        optimizer: makes an optimizer of a list of parameters; called once for each stage. Or those of an earlier run.
        loss_weight: as for `Pipeline.step`, in each mini-batch.
        consistent: which versions are seen, as for `Schedule.weight_versions`: on every stage that of the entry (2BW),
            or the newest of each stage (PipeDream). None: the first where a mini-batch has several micro-batches.
        progress: called now and then with (actions done, actions in all).

    Returns:
        Losses, trace, versions and optimizers.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> schedule = pp.schedule("pipedream", num_ranks=2, num_microbatches=6)
        >>> batches = [(torch.ones(4, 8), torch.zeros(4, 1))] * 6
        >>> with pp.Pipeline(model, pp.Split(["2"]), schedule, loss_fn=torch.nn.functional.mse_loss,
        ...                  devices=pp.virtual(2)) as pipe:
        ...     run = pp.train(pipe, batches, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
        >>> run.versions.of_stages.tolist()
        [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]

    Raises:
        PipelabError: a synchronous schedule, batches that do not fit, or a parameter that several stages train; nothing
            has been updated.
        KeyboardInterrupt: on an interrupt, once everything is at rest.
        Exception: whatever the model or an optimizer raised. The weights of each stage are then those after its last
            whole update; a note says how many each has made.
    """
    if not isinstance(pipe, Pipeline):
        raise TypeError(
            f"train() takes a Pipeline, not {type(pipe).__name__}: pp.train(pipe, batches, optimizer=...)."
        )
    schedule = pipe.schedule
    check_updates(schedule)
    if not torch.is_grad_enabled():
        raise PipelabError(
            "train() needs gradients, but they are switched off here. Call it outside of torch.no_grad()."
        )
    versions = schedule.weight_versions(consistent).version
    data = MiniBatches.of(pipe, batches, loss_weight)
    weights: list[StageWeights] = []
    try:
        with pipe._step() as written:
            written.watch(data.wanting_gradients())
            _learn(pipe, data)
            _check_learnt(pipe)
            weights += stage_weights(pipe._cut, versions.tolist(), optimizer)
            for parameter in pipe.model.parameters():
                parameter.grad = None
            try:
                return _run(pipe, data, weights, progress)
            finally:
                for parameter in pipe.model.parameters():
                    parameter.grad = None
    except BaseException as error:  # an interrupt may come until the very end
        if weights:
            annotate(error, _state(weights, schedule))
        elif isinstance(error, KeyboardInterrupt):
            annotate(error, "pipelab: interrupted before the first update of any stage.")
        raise


def _learn(pipe: Pipeline, data: MiniBatches) -> None:
    """One micro-batch on the user's model, which shows the flow of values and which stage uses which parameter."""
    if True not in pipe._cut.flow.learnt or pipe._cut.recompute.wants_rehearsal:
        call = data.call(pipe, pipe.model, 0)
        in_flight = min(most_in_flight(pipe.schedule), data.per_minibatch)
        with pipe._put_back(data.batches[0]):
            rehearse(pipe._runner, pipe._cut, pipe.schedule, call, in_flight)
        pipe._fingerprint.note_devices()  # learning may have moved a parameter to the stage that uses it


def _check_learnt(pipe: Pipeline) -> None:
    """Refuses what has no version: parameters of several stages or of the loss, values that the model keeps.

    Raises:
        PipelabError: names it.
    """
    check_loss(pipe.loss_fn, pipe.model, pipe._cut.kept_values.names)
    buffers = {name for name, _ in pipe.model.named_buffers()}
    for name in pipe._cut.kept_values.names:
        if name in buffers or name.removeprefix("model.") in buffers:
            raise PipelabError(
                f"The forward puts another tensor in the place of the buffer {name!r}, but it runs on copies of the "
                f"model that share the buffers. Change it in place, such as with copy_(), or train with a synchronous "
                f"schedule such as 1f1b."
            )
    inside = {id(parameter) for parameter in pipe.model.parameters()}
    for module in loss_modules(pipe.loss_fn):
        if any(p.requires_grad and id(p) not in inside for p in module.parameters()):
            raise PipelabError(
                f"The loss function has parameters to train ({type(module).__name__}), but no stage, which would "
                f"update them. Put them into the model and let it return the loss, or freeze them."
            )
    for name, parameter in pipe.model.named_parameters():
        users = pipe._cut.shared.get(id(parameter), ())
        if len(users) > 1 and parameter.requires_grad:
            raise PipelabError(
                f"The stages {', '.join(map(str, users[:-1]))} and {users[-1]} use the parameter {name!r}, but each "
                f"stage updates its weights at a time of its own, so this one would have no version. Cut so that one "
                f"stage uses it, freeze it, or train with a synchronous schedule such as 1f1b."
            )


def _run(
    pipe: Pipeline, data: MiniBatches, weights: list[StageWeights], progress: Progress | None
) -> Training:
    schedule = pipe.schedule
    copies = [WorkingCopy(pipe._cut, weights) for _ in range(_alive_at_once(schedule))]
    in_flight, split = min(most_in_flight(schedule), data.per_minibatch), with_weight_gradients(schedule)
    contexts = [StepContext(copy.cut_model, in_flight, split) for copy in copies]
    slots = [i // data.per_minibatch % len(copies) for i in range(schedule.num_microbatches)]
    calls = [data.call(pipe, copies[slot].cut_model.model, i) for i, slot in enumerate(slots)]
    stages = UpdatedStages(contexts, calls, slots, copies, weights, data.per_minibatch)
    times = pipe._runner.execute(schedule, pipe._training, stages, progress)
    for copy in copies:
        copy.check_unchanged()
        for stage in range(len(weights)):
            copy.check_no_gradients(stage)
    # The last mini-batch comes last.
    for slot in slots[-len(copies) * data.per_minibatch :: data.per_minibatch]:
        copies[slot].hand_over()
    pipe._leaks = tuple(leak for context in contexts for leak in context.leaks)
    if pipe._leaks:
        pipe._cut.flow.learnt.discard(True)  # the next run learns again
    trace = measured_trace(
        schedule,
        times,
        devices=pipe.devices,
        links=pipe.plan.links,
        bytes=pipe._cut.stage_bytes(),
        leaks=len(pipe._leaks),
    )
    losses = data.losses([m.result for m in stages.microbatches if m.result is not None])
    optimizers = tuple(each.optimizer for each in weights)
    return Training(losses, trace, SeenVersions.of(schedule, stages.seen), optimizers)


def _alive_at_once(schedule: Schedule) -> int:
    """How many copies of the model the mini-batches take turns on.

    On each stage a mini-batch's copy must be free again, by its update there, before a later one enters on it.
    """
    per_minibatch = schedule.num_microbatches // schedule.minibatches
    needed = 1
    alive: list[list[int]] = [[] for _ in range(schedule.num_stages)]
    for order in schedule.orders:
        for action in (part for cell in order for part in cell.parts):
            minibatch, there = action.microbatch // per_minibatch, alive[action.stage]
            if action.kind is Kind.U:
                there.remove(minibatch)
            elif minibatch not in there and action.kind is Kind.F:
                there.append(minibatch)
                needed = max(needed, minibatch - min(there) + 1)
    return needed


def _state(weights: list[StageWeights], schedule: Schedule) -> str:
    made = [each.stash.newest for each in weights]
    halves = [str(stage) for stage, each in enumerate(weights) if each.updating]
    half = f" The update of stage {', '.join(halves)} did not end, and may be half done." if halves else ""
    return (
        f"pipelab: of {schedule.minibatches} updates the stages have made {made}; the weights of each are those after "
        f"its last. All gradients are None.{half}"
    )
