"""Training with updates in flight: asynchronous schedules (PipeDream, 2BW) on real weights that are really stale.

Every forward and backward of a mini-batch works on the version of the weights that `schedule.weight_versions()` names:
on a twin of the model, which is handed that version stage by stage as the mini-batch enters. The action U(stage,
micro-batch) gives the twin's gradients to the user's own parameters, which are the newest version, and lets the
stage's own optimizer change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.core.actions import Action, Kind
from pipelab.core.schedule import Schedule
from pipelab.errors import PipelabError, annotate
from pipelab.runtime.context import StepContext
from pipelab.runtime.engine import Progress, program, with_weight_gradients
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss import Call, loss_call, total_loss
from pipelab.runtime.loss_weights import LossWeight, Weight, weigh
from pipelab.runtime.measured import measured_trace
from pipelab.runtime.pipeline import Pipeline, most_in_flight
from pipelab.runtime.preserve import preserved
from pipelab.runtime.runnable import check_updates
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.stash import Stash
from pipelab.runtime.training import SeenVersions, Training
from pipelab.runtime.twins import check_loss
from pipelab.runtime.updating import StageWeights, UpdatedStages, WorkingCopy

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def train(
    pipe: Pipeline,
    batches: Iterable[Any],
    *,
    optimizer: MakeOptimizer | Sequence[torch.optim.Optimizer | None],
    loss_weight: LossWeight = None,
    consistent: bool | None = None,
    progress: Progress | None = None,
) -> Training:
    """Runs an asynchronous schedule: many mini-batches in flight, with updates of the weights in between.

    The model ends with the weights that these mini-batches made of them, and with no gradients. The first call also
    runs one micro-batch beforehand, to learn which stage uses which parameter; gradients, buffers and random state are
    put back, but hooks on the model see it. For other schedules the loop is yours: `pipe.step`, then your optimizer.

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
        raise PipelabError("train() needs gradients, but they are switched off here.")
    versions = schedule.weight_versions(consistent).version
    data = _Data.of(pipe, batches, loss_weight)
    with pipe._step():
        for parameter in pipe.model.parameters():
            parameter.grad = None
        _learn(pipe, data)
        weights = _stage_weights(pipe, versions.tolist(), optimizer)
        try:
            return _run(pipe, data, weights, progress)
        except BaseException as error:
            annotate(error, _state(weights, schedule))
            raise
        finally:
            for parameter in pipe.model.parameters():
                parameter.grad = None


class _Data:
    """The mini-batches of a run, each cut into its micro-batches.

    Attributes:
        batches: of each mini-batch.
        weights: of each micro-batch of each mini-batch.
        per_minibatch: micro-batches in a mini-batch.
    """

    def __init__(self, batches: list[Batch], weights: list[list[Weight]]) -> None:
        self.batches, self.weights = batches, weights
        self.per_minibatch = len(weights[0])

    @classmethod
    def of(cls, pipe: Pipeline, batches: Iterable[Any], loss_weight: LossWeight) -> _Data:
        schedule = pipe.schedule
        pairs = _pairs(batches, schedule)
        m = schedule.num_microbatches // schedule.minibatches
        cut = [Batch.cut(inputs, target, m, pipe.batch_dims) for inputs, target in pairs]
        return cls(cut, [weigh(batch, pipe.reduction, loss_weight) for batch in cut])

    def call(self, pipe: Pipeline, model: nn.Module, microbatch: int) -> Call:
        """Model and loss for one micro-batch, numbered through."""
        n, index = divmod(microbatch, self.per_minibatch)
        weight = self.weights[n][index]
        return loss_call(model, pipe.loss_fn, self.batches[n], index, weight, pipe._cut.devices)


def _pairs(batches: Iterable[Any], schedule: Schedule) -> list[tuple[Any, Any]]:
    needed = schedule.minibatches
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be pairs (inputs, target), one a mini-batch, not {type(batches).__name__}."
        )
    given = list(islice(batches, needed))
    count = len(batches) if hasattr(batches, "__len__") else len(given)
    if count != needed:
        raise PipelabError(
            f"The schedule {schedule.name!r} has {needed} mini-batches, but there are {count} batches. Make the "
            f"schedule for {count}, or pass {needed}, such as itertools.islice(batches, {needed})."
        )
    for n, pair in enumerate(given):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise PipelabError(
                f"Batch {n} is {type(pair).__name__}{f' of {len(pair)}' if isinstance(pair, (tuple, list)) else ''}; "
                f"each must be a pair (inputs, target); without a target (inputs, None)."
            )
    return [(inputs, target) for inputs, target in given]


def _learn(pipe: Pipeline, data: _Data) -> None:
    """One micro-batch on the user's model, which shows the flow of values and which stage uses which parameter."""
    if True not in pipe._cut.flow.learnt:
        placement = pipe.schedule.placement
        orders = []
        for rank in range(placement.num_ranks):
            stages = placement.stages_of(rank)
            forwards = [Action(Kind.F, stage, 0) for stage in stages]
            orders.append([*forwards, *(Action(Kind.B, stage, 0) for stage in reversed(stages))])
        schedule = Schedule(orders, placement, name=f"{pipe.schedule.name}, learning")
        context = StepContext(pipe._cut, min(most_in_flight(pipe.schedule), data.per_minibatch))
        stages = SuspendedStages([context], [data.call(pipe, pipe.model, 0)], [0])
        with preserved(pipe.model):
            pipe._execute(schedule, program(schedule), stages, None)
    check_loss(pipe.loss_fn, pipe.model, pipe._cut.kept_values.names)
    for name, parameter in pipe.model.named_parameters():
        users = pipe._cut.shared.get(id(parameter), ())
        if len(users) > 1 and parameter.requires_grad:
            raise PipelabError(
                f"The stages {', '.join(map(str, users[:-1]))} and {users[-1]} use the parameter {name!r}, but each "
                f"stage updates its weights at a time of its own, so this one would have no version. Cut so that one "
                f"stage uses it, freeze it, or train with a synchronous schedule such as 1f1b."
            )


def _stage_weights(
    pipe: Pipeline,
    versions: list[list[int]],
    optimizer: MakeOptimizer | Sequence[torch.optim.Optimizer | None],
) -> list[StageWeights]:
    """For each stage its parameters, versions and optimizer."""
    homes = pipe._cut.parameters.homes(pipe.model, pipe._cut.names)
    parameters: list[list[nn.Parameter]] = [[] for _ in versions]
    for parameter in pipe.model.parameters():
        if parameter.requires_grad:
            parameters[homes[id(parameter)]].append(parameter)
    optimizers = _optimizers(optimizer, parameters)
    return [
        StageWeights(own, uses, Stash(own, uses), made)
        for own, uses, made in zip(parameters, versions, optimizers, strict=True)
    ]


def _optimizers(
    given: MakeOptimizer | Sequence[torch.optim.Optimizer | None], parameters: list[list[nn.Parameter]]
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
            f"There are {len(made)} optimizers for {len(parameters)} stages. Give one a stage."
        )
    for stage, (each, own) in enumerate(zip(made, parameters, strict=True)):
        if not own:
            continue
        if not isinstance(each, torch.optim.Optimizer):
            raise TypeError(
                f"The optimizer of stage {stage} is {type(each).__name__}, not a torch.optim.Optimizer."
            )
        held = {id(parameter) for group in each.param_groups for parameter in group["params"]}
        if not {id(parameter) for parameter in own} <= held or any(each is other for other in made[:stage]):
            raise PipelabError(
                f"The optimizer of stage {stage} must hold the parameters of this stage, and no other stage may have "
                f"the same one. Make it of the list that the function is given."
            )
    return made


def _run(pipe: Pipeline, data: _Data, weights: list[StageWeights], progress: Progress | None) -> Training:
    schedule = pipe.schedule
    copies = [WorkingCopy(pipe._cut, weights) for _ in range(_alive_at_once(schedule))]
    in_flight, split = min(most_in_flight(schedule), data.per_minibatch), with_weight_gradients(schedule)
    contexts = [StepContext(copy.cut_model, in_flight, split) for copy in copies]
    slots = [i // data.per_minibatch % len(copies) for i in range(schedule.num_microbatches)]
    calls = [data.call(pipe, copies[slot].cut_model.model, i) for i, slot in enumerate(slots)]
    stages = UpdatedStages(contexts, calls, slots, copies, weights, data.per_minibatch)
    times = pipe._execute(schedule, pipe._training, stages, progress)
    results = [m.result for m in stages.microbatches if m.result is not None]
    m = data.per_minibatch
    losses = [
        total_loss(results[n * m : (n + 1) * m], shares).double().cpu()
        for n, shares in enumerate(data.weights)
    ]
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
    optimizers = tuple(each.optimizer for each in weights)
    return Training(torch.stack(losses), trace, SeenVersions.of(schedule, stages.seen), optimizers)


def _alive_at_once(schedule: Schedule) -> int:
    """How many copies of the model the mini-batches take turns on.

    On each stage a mini-batch's copy must be free again, by its update there, before a later one enters on it.
    """
    per_minibatch = schedule.num_microbatches // schedule.minibatches
    needed = 1
    alive: list[list[int]] = [[] for _ in range(schedule.num_stages)]
    for order in schedule.orders:
        for action in (part for cell in order for part in cell.members or (cell,)):
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
