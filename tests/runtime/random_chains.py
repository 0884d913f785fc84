"""Random models with random cuts, and random schedules for them, from what hypothesis draws."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

import pipelab as pp
from pipelab.core.actions import CODES, Kind
from pipelab.core.schedules import SCHEDULES
from pipelab.errors import PipelabError
from pipelab.runtime.runnable import check_schedule, check_step
from tests.core.conftest import make_random_schedule
from tests.zoo.law import Case

CHANNELS, WIDTH = 3, 4
MOST_STAGES = 6

# -- models -----------------------------------------------------------------------------------------------------------

INNER = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "branch": lambda: nn.Linear(WIDTH, WIDTH),
    "tanh": nn.Tanh,
    "in-place": lambda: nn.ReLU(inplace=True),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(CHANNELS),
    "conv": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    "dropout": lambda: nn.Dropout(0.5),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "function": nn.Identity,
    "parameter": nn.Identity,
}
REPEATS = (
    "shared",
    "tied",
)  # the module of an earlier layer once more; another one with an earlier layer's weight
FORMS = ("tensor", "tuple", "list", "dict", "keyword", "dataclass")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x**2 * 0.75


@dataclass
class Carried:
    x: Tensor
    extra: Tensor
    label: str = "nothing to cut"


class Layer(nn.Module):
    """One layer. What it takes and gives has a form: a tensor, or two of them packed in some way."""

    def __init__(self, kind: str, form: str) -> None:
        super().__init__()
        self.kind, self.form, self.inner = kind, form, INNER[kind]()
        if kind == "parameter":
            self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, given: Any, *, extra: Tensor | None = None) -> Any:
        if self.form == "keyword":
            return self.work(given, extra)
        x, extra = opened(given, self.form)
        return packed(self.work(x, extra), extra, self.form)

    def work(self, x: Tensor, extra: Tensor | None) -> Tensor:
        if self.kind == "function":
            x = Cube.apply(x)
        elif self.kind == "parameter":
            x = x * self.scale
        elif self.kind == "branch" and float(x.detach().sum()) <= 0:
            x = x * 2
        elif self.kind == "lstm":
            x = self.inner(x)[0]
        else:
            x = self.inner(x)
        return x if extra is None else x + 0.1 * extra


def packed(x: Tensor, extra: Tensor | None, form: str) -> Any:
    match form:
        case "tuple":
            return x, extra
        case "list":
            return [x, [extra]]
        case "dict":
            return {"x": x, "more": {"extra": extra, "none": None, "number": 3}}
        case "dataclass":
            return Carried(x, extra)
    return x


def opened(given: Any, form: str) -> tuple[Tensor, Tensor | None]:
    match form:
        case "tuple":
            return given
        case "list":
            return given[0], given[1][0]
        case "dict":
            return given["x"], given["more"]["extra"]
        case "dataclass":
            return given.x, given.extra
    return given, None


class Chain(nn.Module):
    """Layers one after the other, with skips over any number of them.

    Args:
        layers: as drawn: kind, form.
        skips: for each layer the earlier layer whose output is added to its own, or None.
        repeats: for a layer of the kind "shared" or "tied" the earlier one.
    """

    def __init__(
        self, layers: list[tuple[str, str]], skips: list[int | None], repeats: list[int | None]
    ) -> None:
        super().__init__()
        made: list[Layer] = []
        for (kind, form), repeat in zip(layers, repeats, strict=True):
            if repeat is not None and kind == "shared" and made[repeat].kind != "batch norm":
                made.append(made[repeat])
            elif repeat is not None and isinstance(made[repeat].inner, nn.Linear):
                made.append(Layer("linear", form))
                made[-1].inner.weight = made[repeat].inner.weight
            else:
                made.append(Layer("linear" if kind in REPEATS else kind, form))
        self.layers = nn.ModuleList(made)
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.skips = skips

    def forward(self, x: Tensor, extra: Tensor) -> dict[str, Tensor]:
        outputs: list[Tensor] = []
        x, extra = x * self.gain, extra * 2
        for layer, skip in zip(self.layers, self.skips, strict=True):
            if layer.form == "keyword":
                x = layer(x, extra=extra)
            else:
                x, given = opened(layer(packed(x, extra, layer.form)), layer.form)
                extra = extra if given is None else given
            if skip is not None:
                x = x + outputs[skip]
            outputs.append(x)
        return {"x": x, "first": outputs[0]}


def mean_loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(output["x"], target)


def sum_loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(output["x"], target, reduction="sum") / 100 + output["first"].sum()


def forwards_in_order(schedule: pp.Schedule) -> bool:
    """Whether every stage runs its forwards from the first micro-batch to the last."""
    table = schedule.table
    forward = table.kind == CODES[Kind.F]
    for stage in range(schedule.num_stages):
        numbers = table.microbatch[forward & (table.stage == stage)].tolist()
        if numbers != sorted(numbers):
            return False
    return True


@st.composite
def cases(draw: Any, schedule: pp.Schedule, kinds: tuple[str, ...] = (*INNER, *REPEATS)) -> Case:
    """A chain with as many stages as the schedule wants, and a batch."""
    if schedule.placement.chains > 1 or not forwards_in_order(schedule):
        kinds = tuple(kind for kind in kinds if kind != "batch norm")  # its running mean knows an order
    stages, m = schedule.num_model_stages, schedule.num_microbatches
    count = draw(st.integers(stages, stages + 3))
    layers = [(draw(st.sampled_from(kinds)), draw(st.sampled_from(FORMS))) for _ in range(count)]
    earlier = [st.none() | st.integers(0, i - 1) if i else st.none() for i in range(count)]
    skips = [draw(each) for each in earlier]
    repeats = [
        draw(st.integers(0, i - 1)) if kind in REPEATS and i else None for i, (kind, _) in enumerate(layers)
    ]
    torch.manual_seed(draw(st.integers(0, 1000)))
    model = Chain(layers, skips, repeats).double()
    new = [i for i in range(1, count) if model.layers[i] not in list(model.layers[:i])]
    assume(len(new) >= stages - 1)
    places = sorted(draw(st.permutations(new))[: stages - 1])
    size = m + draw(st.integers(0, 5))
    reduction = draw(st.sampled_from(["mean", "sum"]))
    used = {layer.kind for layer in model.layers}
    return Case(
        model,
        tuple(torch.randn(size, CHANNELS, WIDTH).double() for _ in range(2)),
        torch.randn(size, CHANNELS, WIDTH).double(),
        mean_loss if reduction == "mean" else sum_loss,
        [f"layers.{i}" for i in places],
        whole=not used & {"dropout", "batch norm", "branch"},
        options={"reduction": reduction},
    )


def runs_plainly(case: Case) -> bool:
    """Whether torch itself runs the model: changing in place what a backward needs is an error."""
    with torch.random.fork_rng():
        try:
            case.loss_fn(case.model(*case.inputs), case.target).backward()
        except RuntimeError:
            return False
        finally:
            case.model.zero_grad()
    return True


# -- schedules --------------------------------------------------------------------------------------------------------


def runs(schedule: pp.Schedule) -> bool:
    """Whether `Pipeline.step` takes it."""
    try:
        check_schedule(schedule)
        check_step(schedule)
    except PipelabError:
        return False
    return schedule.has_backward


NAMES = tuple(name for name in SCHEDULES if runs(pp.schedule(name, num_ranks=2, num_microbatches=4)))


@st.composite
def schedules(draw: Any) -> pp.Schedule:
    """What `Pipeline.step` takes: a known schedule, one with some cells exchanged by hand, or any order at all."""
    if draw(st.integers(0, 4)) == 0:
        schedule = make_random_schedule(draw(st.integers(0, 10_000)))
    else:
        name, p, m = draw(st.sampled_from(NAMES)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
        least, most = SCHEDULES[name].stages_per_rank
        try:
            schedule = pp.schedule(
                name,
                num_ranks=p,
                num_microbatches=m,
                stages_per_rank=draw(st.sampled_from([least, most or 2])),
            )
        except PipelabError:  # such as two chains on three ranks
            assume(False)
    assume(runs(schedule) and schedule.num_model_stages <= MOST_STAGES)
    for _ in range(draw(st.sampled_from([0, 0, 8]))):
        schedule = edited(draw, schedule)
    return schedule


def edited(draw: Any, schedule: pp.Schedule) -> pp.Schedule:
    """Two neighbours exchanged, or one cell moved, if that can still run."""
    order = schedule.orders[draw(st.integers(0, schedule.num_ranks - 1))]
    if len(order) < 2:
        return schedule
    i = draw(st.integers(0, len(order) - 2))
    with contextlib.suppress(PipelabError):
        if draw(st.booleans()):
            return schedule.swap(order[i], order[i + 1])
        return schedule.move(order[draw(st.integers(0, len(order) - 1))], before=order[i])
    return schedule
