"""Modules that went through torch.compile: they run compiled, unless a step must look inside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelab as pp
from tests.zoo.law import Case

SCHEDULE = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.tanh(self.a(x)))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Skipping(Blocks):
    """Each block's code is the root's: later ones use a value of the first stage."""

    def forward(self, x):
        first = self.blocks[0](x)
        x = first
        for block in self.blocks[1:]:
            x = block(x) + first
        return x


class Setting(Block):
    def forward(self, x):
        self.given = x.mean()
        return super().forward(x) * self.given


@pytest.fixture
def runs():
    """Counts how often compiled code runs, by way of a backend that compiles nothing."""
    torch._dynamo.reset()
    counted = []

    def backend(graph, inputs):
        def run(*args):
            counted.append(len(graph.graph.nodes))
            return graph.forward(*args)

        return run

    counted.append(backend)
    yield counted
    torch._dynamo.reset()


def of(model, cuts=("blocks.2",), **options):
    torch.manual_seed(0)
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    return Case(model.double(), x, y, F.mse_loss, list(cuts), options=options)


def count(runs, case, schedule=SCHEDULE):
    """How often compiled code runs in a step that does not learn."""
    backend = runs[0]
    with pp.Pipeline(
        case.model, pp.Split(case.cuts), schedule, loss_fn=case.loss_fn, devices=["cpu"] * 2
    ) as pipe:
        pipe.step(case.inputs, case.target)
        assert runs == [backend]  # while learning, nothing does
        pipe.step(case.inputs, case.target)
        del runs[:]
        pipe.step(case.inputs, case.target)
        return len(runs), pipe.warnings


def assert_equal(case, schedule):
    """Three steps against a copy, which copy.deepcopy leaves uncompiled."""
    with pp.Pipeline(
        case.model, pp.Split(case.cuts), schedule, loss_fn=case.loss_fn, devices=["cpu"] * 2, **case.options
    ) as pipe:
        for _ in range(3):
            check = pp.check_gradients(pipe, case.inputs, case.target)
            assert check, str(check)
        return pipe.recompute_notes


def compiled_in_place(model, backend):
    for block in model.blocks:
        block.compile(backend=backend)


def wrapped(model, backend):
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend=backend)


@pytest.mark.parametrize("compile_blocks", [compiled_in_place, wrapped])
@pytest.mark.parametrize("make", [Blocks, Skipping])
def test_blocks_run_compiled_also_where_a_stage_begins(runs, make, compile_blocks):
    case = of(make())
    compile_blocks(case.model, runs[0])
    assert count(runs, case) == (4 * 4, ())


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("make", [Blocks, Skipping])
def test_compiled_blocks_compute_what_the_whole_model_computes(runs, make, schedule):
    case = of(make())
    compiled_in_place(case.model, "eager")
    assert_equal(case, pp.schedule(schedule, num_ranks=2, num_microbatches=4))


def test_a_block_inside_which_a_stage_begins_runs_plain_and_that_is_said(runs):
    case = of(Blocks(), ["blocks.2.b"])
    compiled_in_place(case.model, runs[0])
    with pytest.warns(pp.PipelabWarning, match=r"blocks\.2: torch\.compile has no effect in a step"):
        times, warned = count(runs, case)
    assert times == 3 * 4
    assert len(warned) == 1


def test_a_model_that_is_compiled_as_a_whole_runs_plain(runs):
    case = of(Blocks())
    case.model.compile(backend=runs[0])
    with pytest.warns(pp.PipelabWarning, match=r"the model: torch\.compile has no effect"):
        assert count(runs, case)[0] == 0
    assert case.model._compiled_call_impl is not None


def test_a_block_that_sets_attributes_runs_plain(runs):
    case = of(Blocks())
    case.model.blocks[1] = Setting().double()
    compiled_in_place(case.model, runs[0])
    with pytest.warns(pp.PipelabWarning, match=r"blocks\.1: torch\.compile has no effect"):
        assert count(runs, case)[0] == 3 * 4


def test_compiled_layers_inside_a_block_that_runs_again_in_the_backward(runs):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, x):
            return self.inner(x) * 2

    model = Blocks()
    model.blocks = nn.ModuleList(Outer() for _ in range(4))
    case = of(model, recompute="all")
    for block in model.blocks:
        block.inner.compile(backend="eager")
    notes = assert_equal(case, SCHEDULE)
    assert notes == tuple(
        f"Stage {s}: blocks.{2 * s}, blocks.{2 * s + 1} run again in the backward." for s in (0, 1)
    )
