"""A plan made runnable: `Pipeline` takes the user's model and batch and runs the schedule for real."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.core.actions import CODES, Kind
from pipelab.core.plan import Plan, VirtualDevices
from pipelab.core.schedule import Schedule
from pipelab.core.split import Split
from pipelab.core.trace import Trace
from pipelab.errors import PipelabError, one_of
from pipelab.runtime import devices as device_choice
from pipelab.runtime import outputs as model_outputs
from pipelab.runtime.arguments import as_plan
from pipelab.runtime.batch_dims import BatchDims
from pipelab.runtime.cautions import Cautions
from pipelab.runtime.chains import Chains
from pipelab.runtime.context import StepContext
from pipelab.runtime.cut_model import CutModel
from pipelab.runtime.engine import Cell, Progress, most_in_flight, program, with_weight_gradients
from pipelab.runtime.followed import Followed
from pipelab.runtime.inputs import Args, Batch, batch_size
from pipelab.runtime.loss import Call, LossFn, Result, forward_call, loss_call, loss_modules, total_loss
from pipelab.runtime.loss_weights import REDUCTIONS, LossWeight, Weight, weigh
from pipelab.runtime.measured import Times, extra_steps, measured_trace, part_of
from pipelab.runtime.not_finite import NotFinite, Search
from pipelab.runtime.parameters import spread
from pipelab.runtime.preserve import WrittenGradients, preserved
from pipelab.runtime.rank_device import rank_devices
from pipelab.runtime.recompute import recomputed_stages
from pipelab.runtime.rehearsal import rehearse
from pipelab.runtime.requirements import Fingerprint, check_model
from pipelab.runtime.runnable import check_scale, check_schedule, check_step
from pipelab.runtime.runner import Runner
from pipelab.runtime.stages import SuspendedStages
from pipelab.runtime.step import Step
from pipelab.runtime.step_guard import StepGuard
from pipelab.runtime.threads import ThreadPool
from pipelab.runtime.traffic import Traffic

_SECONDS_TO_STOP = 10.0


class Pipeline:
    """A model cut in stages, running a schedule on the devices of this machine.

    The model stays the user's: the same Parameter objects, the same `state_dict`; between steps it carries nothing of
    pipelab's. Each stage's parameters and buffers are moved to its rank's device in place, as `Module.to` does; an
    optimizer that has state already gets it moved by `optimizer.load_state_dict(optimizer.state_dict())`.
    The first step also learns how values flow through the model; it is slower, and not the one to time.
    Modules that went through torch.compile run compiled where they lie whole in one stage; one that a cut, a value of
    another stage or a kept attribute lies in runs plain, and `pipe.warnings` says so.

    Args:
        model: any `nn.Module`, as it is.
        split: where the stages begin; or a whole `Plan`, which brings schedule and devices with it.
        schedule: what runs when. It needs as many stages as the split has.
        loss_fn: `loss_fn(output, target)`, a scalar; called with the output alone when a step gets no target. None:
            the model's output is the loss, or has it as `.loss` (as transformers' models with `labels=`).
        devices: "auto" (chosen, printed, and kept in `pipe.plan`), a list with one device a rank (repeats allowed), or
            `pp.virtual(n)`: every action really runs, one at a time, and is placed on n ideal devices. Other than
            "auto", they take the place of a plan's.
        reduction: what the loss does over the samples of a batch: "mean", "sum", or "none" where it is one number a
            sample, or more with the batch where the target has it; the loss of the batch is then their mean.
        batch_dim: the dimension of every tensor that is the batch; or (inputs, target, outputs) where they differ. For
            nn.LSTM and nn.Transformer without `batch_first` it is 1.
        recompute: the stages whose activations are dropped after a forward and computed again in the backward: "none",
            "all" or a list. It is done for whole modules that lie in one stage; `pipe.recompute_notes` says which. The
            first step then begins with a rehearsal: one micro-batch alone, which shows which modules these are.

    Raises:
        PipelabError: the parts do not fit together; nothing has been moved or run.

    Example:
        >>> import torch, pipelab as pp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
        >>> with pp.Pipeline(model, pp.Split(["2"]), schedule, loss_fn=torch.nn.functional.mse_loss,
        ...                  devices=pp.virtual(2)) as pipe:
        ...     step = pipe.step(torch.ones(8, 8), torch.zeros(8, 1))
        >>> model[0].weight.grad.shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split | Plan,
        schedule: Schedule | None = None,
        *,
        loss_fn: LossFn | None = None,
        devices: str | Sequence[str] | VirtualDevices = "auto",
        reduction: str = "mean",
        batch_dim: int | tuple[int, int, int] = 0,
        recompute: str | Sequence[int] = "none",
    ) -> None:
        plan = as_plan(split, schedule, devices)
        again = recomputed_stages(recompute, plan.split.num_stages)
        one_of("reduction", reduction, REDUCTIONS)
        dims = BatchDims.of(batch_dim)
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of output and target, not {type(loss_fn).__name__}.")
        check_model(model, plan.split)
        check_schedule(plan.schedule)
        resolved = device_choice.resolve(plan.devices, plan.schedule.num_ranks)
        if plan.devices == "auto":
            sys.stdout.write(f"pipelab chose devices: {device_choice.describe(resolved)}\n")

        self.model = model
        self.loss_fn = loss_fn
        self.reduction = reduction
        self.batch_dims = dims
        self.plan = Plan(plan.split, plan.schedule, devices=resolved, links=plan.links)
        self.clock = "virtual" if isinstance(resolved, VirtualDevices) else "wall"
        threads = device_choice.threads_per_rank(resolved)
        self._pool = ThreadPool()
        # A cell that is run again drops its pipeline without closing it.
        weakref.finalize(self, self._pool.dismiss)
        names = [resolved.device] * resolved.count if isinstance(resolved, VirtualDevices) else resolved
        # Of updated weights one version gives way to the next: on several streams another could still be reading it.
        one_stream = self.clock == "virtual" or bool((plan.schedule.table.kind == CODES[Kind.U]).any())
        cores = device_choice.cores_of_ranks(resolved)
        ranks = rank_devices(names, one_stream=one_stream, cores=cores)
        streams = [ranks[rank] for rank in plan.schedule.placement.ranks[: plan.split.num_stages]]
        stage_devices = [stream.device for stream in streams]
        spread(model, list(plan.split.cuts), stage_devices)
        self._cut = CutModel(model, plan.split.cuts, streams, self._pool, threads, again)
        self._chains = Chains(self._cut, plan.schedule, ranks, loss_fn)
        self._runner = Runner(ranks, self._pool, threads, self.clock == "virtual", self._cut.randomness)
        self._training = program(plan.schedule) if plan.schedule.has_backward else ()
        self._fingerprint = Fingerprint(model, plan.split)
        self._guard = StepGuard(model, loss_modules(loss_fn))
        self._cautions = Cautions(model, plan.split, plan.schedule.num_microbatches, self._cut.same_device)
        self._leaks: tuple[str, ...] = ()
        self._notes: tuple[str, ...] = ()  # of the stages, on the last step
        self._closed = False

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def split(self) -> Split:
        return self.plan.split

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    @property
    def devices(self) -> tuple[str, ...] | VirtualDevices:
        """The devices of the ranks, after "auto" was resolved."""
        return device_choice.resolve(self.plan.devices, self.schedule.num_ranks)

    @property
    def leaks(self) -> tuple[str, ...]:
        """Values that crossed a border unseen in the last step. They were repaired; the next step learns again."""
        return self._leaks

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about this model in a pipeline though nothing is wrong; each was a `PipelabWarning` once."""
        return self._cautions.sentences

    @property
    def recompute_notes(self) -> tuple[str, ...]:
        """For each stage in `recompute` which modules run again and which do not, and why; known after a first step."""
        return self._cut.recompute.notes

    @property
    def traffic(self) -> Traffic:
        """What crosses the borders between stages in a step, as a table.

        Raises:
            PipelabError: no step has run yet.
        """
        if self._cut.crossings is None:
            raise PipelabError(
                "What crosses the borders is known after the first step: run pipe.step(...) once."
            )
        return Traffic(self._cut.crossings, self.schedule.num_microbatches, self._cut.same_device)

    def __repr__(self) -> str:
        schedule = self.schedule
        state = ", closed" if self._closed else ""
        return (
            f"<Pipeline of {type(self.model).__name__}: {self.split.num_stages} stages, {schedule.name}, "
            f"{schedule.num_microbatches} micro-batches, {device_choice.describe(self.devices)}{state}>"
        )

    # -- what it does -------------------------------------------------------------------------------------------

    def step(
        self,
        inputs: Any,
        target: Any = None,
        *,
        scale: Callable[[Tensor], Tensor] | None = None,
        loss_weight: LossWeight = None,
        outputs: bool = True,
        memory: bool = False,
        progress: Progress | None = None,
    ) -> Step:
        """Runs forward and backward of one batch; gradients are added to `.grad`, as `loss.backward()` does.

        On virtual devices with fewer than 5 micro-batches, the whole step runs again, as often as it takes for a median
        of 5 samples of each kind and stage. Gradients, buffers and random state are put back, so the model sees one
        step; but its forward is called more often, and so are hooks on it.

        Args:
            inputs: for the model's forward: a tensor, a tuple (positional), a dict (keyword), or `pp.Args`. Every
                tensor is cut along the batch, but for scalars and what is inside `pp.replicate`.
            target: for the loss, cut in the same way.
            scale: applied to each micro-batch's loss before its backward, such as `scaler.scale` of a GradScaler.
            loss_weight: for a loss that averages over something else than samples: what each sample counts, shape
                (batch,); or more numbers a sample, such as a mask of valid tokens, with the batch where the target
                has it; or a function that gives these or their sum for a micro-batch's target (for its inputs, as
                `pp.Args`, where there is no target). With reduction "none" it is the weight of each sample, or of
                each number of the loss. A micro-batch that counts 0 has no backward.
            outputs: whether to keep the model's outputs.
            memory: whether to measure what each stage holds over time, as `step.memory`. Every tensor is followed, so
                that the step takes longer. A GPU's statistics of peak memory begin anew.
            progress: called now and then with (actions done, actions in all).

        Returns:
            Loss, outputs, trace and, if wanted, memory.

        Raises:
            PipelabError: the data does not fit; nothing has run.
            KeyboardInterrupt: on an interrupt, once everything is at rest.
            Exception: whatever the model raised, with a note that names the action. After an error or an interrupt
                the gradients that the step wrote to are None.
        """
        check_step(self.schedule)
        check_scale(scale)
        if not self.schedule.has_backward:
            raise PipelabError(
                f"The schedule {self.schedule.name!r} has no backward, so there is nothing to train with. "
                f"Use pipe.forward(inputs), or another schedule."
            )
        if not torch.is_grad_enabled():
            raise PipelabError(
                "step() needs gradients, but they are switched off here. Use pipe.forward(inputs)."
            )
        with self._step() as written:
            batch = Batch.cut(inputs, target, self.schedule.num_microbatches, self.batch_dims)
            weights = weigh(batch, self.reduction, loss_weight)
            written.watch(batch.wanting_gradients())
            cuts = self._chains.ready()
            calls = [
                loss_call(cut.model, self.loss_fn, batch, i, weight, cut.devices, scale, outputs)
                for i, (cut, weight) in enumerate(zip(cuts, weights, strict=True))
            ]
            random_state = torch.get_rng_state()
            learning = True not in self._cut.flow.learnt
            if self._cut.recompute.wants_rehearsal:
                self._rehearse(batch, calls[0])
            slowed = ("learning",) * learning + ("memory",) * memory
            followed = Followed(self.schedule, self._training, self._runner.ranks) if memory else None
            turns = 1 + extra_steps(self.schedule, self.devices, slowed)
            part = part_of(progress, 0, turns)
            results, times = self._run(self.schedule, self._training, calls, part, followed=followed)
            if learning:
                self._cautions.learn(self._cut.shared, self._cut.not_compiled())
            extra = [
                self._times_aside(batch, calls, part_of(progress, turn, turns)) for turn in range(1, turns)
            ]
            losses = torch.stack([_loss(result).double().cpu() for result in results])
            total, dims = total_loss(results, weights), batch.output_dims
            joined = model_outputs.join([r.outputs for r in results], batch.sizes, dims) if outputs else None
            not_finite = self._not_finite(losses, batch, weights, random_state)
            trace = self._trace(times, extra, slowed)
            measured = None if followed is None else followed.memory(trace)
            return Step(total, joined, trace, losses, not_finite, measured)

    def forward(self, inputs: Any) -> Any:
        """The model's outputs for a batch, without gradients: the same stages and devices, forwards only.

        Args:
            inputs: as for `step`. A batch smaller than the number of micro-batches uses fewer of them.

        Returns:
            The outputs of the whole batch, as the model gives them.
        """
        with self._step(), torch.no_grad():
            size = batch_size(Args.of(inputs), None, self.batch_dims)
            num_microbatches = min(self.schedule.num_microbatches, size)
            batch = Batch.cut(inputs, None, num_microbatches, self.batch_dims)
            schedule, cells = self._chains.forwards(num_microbatches)
            calls = [
                forward_call(self.model, batch, i, self._cut.devices[0]) for i in range(num_microbatches)
            ]
            results, _ = self._run(schedule, cells, calls, None, alone=True)
        return model_outputs.join([result.outputs for result in results], batch.sizes, batch.output_dims)

    def interrupt(self) -> None:
        """Stops a step that runs in another thread: it raises KeyboardInterrupt there. Safe from any thread."""
        self._runner.interrupt()

    def close(self) -> None:
        """Ends the threads; a step that is running elsewhere is interrupted. The weights stay where they are."""
        self._closed = True
        self.interrupt()
        if self._guard.wait(_SECONDS_TO_STOP):
            self._pool.close()
        else:
            self._pool.dismiss()  # one module call takes long; the threads end after it

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- how ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self) -> Iterator[WrittenGradients]:
        with self._guard.step(self.interrupt) as (written, interrupts):
            self._runner.interrupted = False
            if interrupts.caught:  # before the line above
                raise KeyboardInterrupt
            if self._closed:
                raise PipelabError(
                    "This pipeline is closed. Make a new one: pp.Pipeline(model, pipe.plan, ...)."
                )
            self._fingerprint.check(self.model)
            yield written
            if self._runner.interrupted:
                raise KeyboardInterrupt

    def _run(
        self,
        schedule: Schedule,
        cells: Sequence[Cell],
        calls: list[Call],
        progress: Progress | None,
        alone: bool = False,
        followed: Followed | None = None,
    ) -> tuple[list[Result], Times]:
        """Runs micro-batches in their chains, or all of them on the user's model `alone`."""
        in_flight, split = most_in_flight(schedule), with_weight_gradients(schedule)
        cut_models = [self._cut] if alone else self._chains.cut_models
        contexts = [StepContext(cut_model, in_flight, split) for cut_model in cut_models]
        stages = SuspendedStages(contexts, calls, [0] * len(calls) if alone else self._chains.of_microbatch)
        with nullcontext() if alone else self._chains.gathering():
            runner = stages if followed is None else followed.around(stages)
            try:
                times = self._runner.execute(schedule, cells, runner, progress)
            finally:
                self._fingerprint.note_devices()  # learning may have moved a parameter to the stage that uses it
        self._cut.randomness.note_whole_step()
        self._leaks = tuple(leak for context in contexts for leak in context.leaks)
        self._notes = stages.notes
        return [m.result for m in stages.microbatches if m.result is not None], times

    def _put_back(self, batch: Batch) -> AbstractContextManager[None]:
        """Around a run on a batch that leaves no trace: gradients, buffers and random state are put back."""
        return preserved(self.model, *loss_modules(self.loss_fn), inputs=batch.wanting_gradients())

    def _rehearse(self, batch: Batch, call: Call) -> None:
        """One micro-batch before the first step."""
        with self._put_back(batch):
            rehearse(self._runner, self._cut, self.schedule, call, most_in_flight(self.schedule))

    def _times_aside(self, batch: Batch, calls: list[Call], progress: Progress | None) -> Times:
        """One more step for the sake of its times."""
        seed, leaks = self._cut.randomness.seed, self._leaks
        with self._put_back(batch):
            _, times = self._run(self.schedule, self._training, calls, progress)
        self._cut.randomness.seed, self._leaks = seed, leaks
        return times

    def _not_finite(
        self, losses: Tensor, batch: Batch, weights: list[Weight], random_state: Tensor
    ) -> NotFinite | None:
        """Where the loss stopped being a number. That micro-batch runs forward once more, and nothing else changes."""
        bad = [i for i, weight in enumerate(weights) if weight.share and not losses[i].isfinite()]
        if not bad:
            return None
        call = loss_call(self.model, self.loss_fn, batch, bad[0], weights[bad[0]], self._cut.devices)
        search = Search(self._cut, self.loss_fn, call, bad[0])
        return self._runner.search(search, random_state)

    def _trace(self, times: Times, extra: Sequence[Times], slowed: Sequence[str]) -> Trace:
        return measured_trace(
            self.schedule,
            times,
            devices=self.devices,
            links=self.plan.links,
            bytes=self._cut.stage_bytes(),
            leaks=len(self._leaks),
            notes_of_stages=self._notes,
            extra=extra,
            slowed=slowed,
        )


def _loss(result: Result) -> Tensor:
    assert result.loss is not None  # a training call always sets it
    return result.loss
