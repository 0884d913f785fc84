"""The zoo: models as people write them, each small, in double precision, with places to cut."""

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipelab as pp
from tests.runtime import models as shared
from tests.zoo.law import Case

BATCH = 7  # uneven over 4 micro-batches


def case(model, cuts, x=None, y=None, loss_fn=F.mse_loss, width=6, **options):
    torch.manual_seed(1)
    x = torch.randn(BATCH, width).double() if x is None else x
    y = torch.randn(BATCH, width).double() if y is None else y
    return Case(model.double(), x, y, loss_fn, cuts, **options)


def of(shared_model, cuts, **options):
    model, x, y, loss_fn = shared_model
    return Case(model, x, y, loss_fn, cuts, **options)


def eval_mode(made):
    made.model.eval()
    made.whole = True
    return made


class SkipToSeveral(nn.Module):
    """A value of the first stage is read by all later ones, and by the loss through the output."""

    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        first = torch.tanh(self.first(x))
        x = first
        for layer in self.layers:
            x = torch.tanh(layer(x)) + first * layer.bias
        return x * first


class Branches(nn.Module):
    """Data decides which layers run, how often, and whether a stage has anything to do."""

    def __init__(self, width=6):
        super().__init__()
        self.start, self.left, self.right, self.end = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        first = self.start(x)
        if x.sum() > 0:
            for _ in range(int(x[0, 0] > 0) + 1):
                x = torch.relu(self.left(x))
        else:
            x = self.right(first) + x
        return self.end(x) + first


class Experts(nn.Module):
    """A mixture of experts; the last expert never gets a token."""

    def __init__(self, width=6, experts=3):
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.router = nn.Linear(width, experts)
        self.router.bias.data[-1] = -1e3
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(experts)
        )
        self.head = nn.Linear(width, width)

    def forward(self, x):
        x = self.embed(x)
        weights = self.router(x).softmax(-1)
        chosen = weights.argmax(-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            if len(rows):
                mixed.index_add_(0, rows, expert(x[rows]) * weights[rows, index, None])
        return self.head(mixed + x)


class Attending(nn.Module):
    """nn.MultiheadAttention with its own dropout, and dropout between."""

    def __init__(self, width=6):
        super().__init__()
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, 2, dropout=0.3, batch_first=True) for _ in range(4)
        )
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        for attention in self.attention:
            mixed, weights = attention(x, x, x)
            x = x + self.drop(mixed) + weights.sum() * 1e-3
        return x


@dataclasses.dataclass
class State:
    x: torch.Tensor
    skip: torch.Tensor
    mask: torch.Tensor | None = None
    depth: int = 0


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Passing(nn.Module):
    """Dict, tuple, named tuple, dataclass, None and integers across cuts; keyword arguments; several inputs."""

    class Dicts(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, state, *, scale, nothing=None):
            assert nothing is None
            state["x"] = self.linear(state["x"]) * scale  # the caller's own dict
            return {**state, "n": state["n"] + 1}

    class Classes(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, state, pair):
            x = self.linear(state.x) + pair.left * pair.right
            return dataclasses.replace(state, x=x * state.mask, depth=state.depth + 1), Pair(x, pair.left)

    class Tuples(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, both, index):
            state, pair = both
            return self.linear(state.x + state.skip)[:, index], (pair, [pair.left, None])

    def __init__(self, width=6):
        super().__init__()
        self.a, self.b, self.c = self.Dicts(width), self.Classes(width), self.Tuples(width)
        self.d = nn.Linear(width, width)

    def forward(self, x, other, *, mask, scale=None):
        state = self.a({"x": x, "n": 0, "first": self.d(x)}, scale=2 if scale is None else scale)
        made = State(state["x"], skip=state["first"], mask=mask, depth=state["n"])
        both = self.b(made, Pair(other, state["x"]))
        out, (pair, rest) = self.c(both, torch.arange(out_width := x.shape[1]))
        assert rest[1] is None
        return {"out": self.d(out) + pair.right[:, :out_width], "aux": rest[0]}


def passing_loss(output, target):
    return F.mse_loss(output["out"], target) + output["aux"].square().mean()


class Often(nn.Module):
    """Modules called several times: one before and behind the cuts, and one that is itself a cut, in a loop."""

    def __init__(self, width=6):
        super().__init__()
        self.shared, self.looped, self.end = (nn.Linear(width, width) for _ in range(3))
        self.act = nn.Tanh()

    def forward(self, x):
        x = self.act(self.shared(x))
        for _ in range(3):
            x = self.act(self.looped(x)) + x
        return self.shared(self.act(self.end(self.act(self.shared(x)))))


class Recurrent(nn.Module):
    """LSTMs whose states cross a cut, and a GRU cell in a loop."""

    def __init__(self, width=6):
        super().__init__()
        self.one, self.two = (nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, width)

    def forward(self, x):
        x, state = self.one(x)
        x, (hidden, _) = self.two(x, state)
        hidden = hidden[-1]
        for position in range(x.shape[1]):
            hidden = self.cell(x[:, position], hidden)
        return self.head(hidden)


class Rooted(nn.Module):
    """Parameters of the root used everywhere; buffers not saved or written to; frozen and unused parameters."""

    def __init__(self, width=6):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))
        self.frozen = nn.Parameter(torch.rand(width), requires_grad=False)
        self.unused = nn.Parameter(torch.rand(width))
        self.register_buffer("table", torch.rand(width), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.layers[1].weight.requires_grad_(False)
        self.mean = nn.BatchNorm1d(width, affine=False, momentum=None)
        self.never = nn.Linear(width, width)

    def forward(self, x):
        self.count += 1
        for layer in self.layers:
            x = torch.tanh(layer(x) * self.scale + self.frozen) + self.table
        return x * self.scale


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, other):
        ctx.save_for_backward(x, other)
        return x**3 + other, x * 2

    @staticmethod
    def backward(ctx, gradient, doubled):
        x, _ = ctx.saved_tensors
        return 3 * x**2 * gradient + 2 * doubled, gradient


class CustomFunction(nn.Module):
    """A custom autograd Function with two outputs, over a value of an earlier stage, in a module and in the root."""

    def __init__(self, width=6):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        first = self.a(x)
        cube, double = Cube.apply(first, x)
        second, _ = Cube.apply(self.b(double), first)
        return self.c(second) + cube


class Checkpointing(nn.Module):
    """torch.utils.checkpoint inside the forward, with dropout, around single layers and around several."""

    def __init__(self, width=6, **options):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4)
        )
        self.marks = nn.ModuleList(nn.Identity() for _ in range(4))
        self.options = {"use_reentrant": False} | options

    def forward(self, x):
        first = x
        for mark, layer in zip(self.marks, self.layers, strict=True):
            x = checkpoint(lambda value, layer=layer: layer(value) + first, mark(x), **self.options)
        return x


class LaterBranch(nn.Module):
    """A branch that reads a value and a weight of the first stage in the last; nobody takes it in the first steps."""

    def __init__(self, width=6):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        self.branch = False

    def forward(self, x):
        first = self.a(x)
        x = self.c(torch.relu(self.b(first)))
        return x * first + self.a.weight.sum() if self.branch else x


class Functional(nn.Module):
    """In-place activations behind cuts, views, stacked and split values, parts without a graph, indexing in place."""

    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.layers[0](x)
        x = self.relu(x)
        left, right = self.layers[1](x).chunk(2, dim=1)
        with torch.no_grad():
            centre = right.mean()
        x = torch.cat([left * 2, right - centre], dim=1)
        x = self.layers[2](x).clone()
        x[:, 0] = x[:, 1].detach().clone() * left[:, 0]
        return self.layers[3](torch.stack([x, x.flip(0)]).sum(0))


class OnSelf(nn.Module):
    """Values kept on modules across cuts: hidden ones, an auxiliary loss, one that a module sets and the root reads."""

    class Part(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.seen = self.linear(x)
            return torch.tanh(self.seen)

    def __init__(self, width=6):
        super().__init__()
        self.parts = nn.ModuleList(self.Part(width) for _ in range(4))
        self.aux_loss = 0.0

    def forward(self, x):
        self.first = self.parts[0](x)
        x = self.parts[1](self.first)
        self.aux_loss = x.square().mean() + self.parts[0].seen.mean()
        x = self.parts[3](self.parts[2](x)) + self.first + self.parts[0].seen
        self.aux_loss = self.aux_loss + x.abs().mean()
        return x


def on_self():
    torch.manual_seed(0)
    made = case(OnSelf(), ["parts.1", "parts.2", "parts.3"])
    made.loss_fn = AuxiliaryLoss(made.model)
    return made


class AuxiliaryLoss:
    """A loss that also reads what the forward left on the model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, output, target):
        return F.mse_loss(output, target) + 0.1 * self.model.aux_loss


def transformer():
    torch.manual_seed(0)
    model = nn.Transformer(6, 2, 2, 2, 12, dropout=0.1, batch_first=True)
    x, y = torch.randn(BATCH, 4, 6).double(), torch.randn(BATCH, 3, 6).double()
    mask = pp.replicate(nn.Transformer.generate_square_subsequent_mask(3).double())
    return case(
        model,
        ["encoder.layers.1", "decoder.layers.0", "decoder.layers.1"],
        pp.Args(x, y, tgt_mask=mask),
        torch.randn(BATCH, 3, 6).double(),
        whole=False,
    )


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    x = torch.randn(BATCH, 3, 6).double()
    mask = torch.zeros(BATCH, 3, dtype=torch.bool)
    mask[::2, 2] = True
    inputs = pp.Args(x, src_key_padding_mask=mask)
    return case(model, ["layers.1", "layers.2", "layers.3"], inputs, torch.randn_like(x), whole=False)


def passing():
    x, other = torch.randn(BATCH, 6).double(), torch.randn(BATCH, 6).double()
    inputs = pp.Args(x, other, mask=torch.rand(BATCH, 6) > 0.3, scale=3)
    return case(Passing(), ["a", "b", "c"], inputs, loss_fn=passing_loss)


def sequence(width=6):
    return torch.randn(BATCH, 3, width).double()


def reentrant():
    made = case(Checkpointing(use_reentrant=True), ["marks.1", "marks.2", "marks.3"], whole=False)
    made.inputs.requires_grad_()
    return made


def take_branch(model):
    model.branch = True


ZOO = {
    "sequential": lambda: of(shared.mlp(), ["2", "4", "6"]),
    "gpt, tied": lambda: of(shared.gpt(tied=True), ["blocks.1", "blocks.2", "head"]),
    "gpt with dropout": lambda: of(shared.gpt(dropout=0.2), ["blocks.1", "blocks.2", "norm"], whole=False),
    "resnet, cut inside a residual block": lambda: of(
        shared.resnet(), ["blocks.1.conv2", "blocks.2", "blocks.3.norm2"], whole=False
    ),
    "resnet in evaluation": lambda: eval_mode(of(shared.resnet(), ["blocks.1.conv2", "blocks.2", "head"])),
    "u-net": lambda: of(shared.unet(), ["down.1", "bottom", "up.1"]),
    "awkward": lambda: of(shared.awkward(), ["parts.1", "parts.2", "parts.3"]),
    "a value read by several stages": lambda: case(SkipToSeveral(), ["layers.1", "layers.2", "layers.3"]),
    "data-dependent branches": lambda: case(Branches(), ["left", "right", "end"], whole=False),
    "mixture of experts": lambda: case(Experts(), ["router", "experts.1", "head"]),
    "attention with dropout": lambda: case(
        Attending(), ["attention.1", "attention.2", "attention.3"], sequence(), sequence(), whole=False
    ),
    "dict, tuple, dataclass and None across cuts": passing,
    "a module called several times": lambda: case(Often(), ["act", "looped", "end"]),
    "recurrent": lambda: case(Recurrent(), ["two", "cell", "head"], sequence()),
    "root parameters and buffers": lambda: case(Rooted(), ["layers.1", "layers.2", "layers.3"]),
    "custom autograd function": lambda: case(CustomFunction(), ["a", "b", "c"]),
    "checkpoint in the forward": lambda: case(
        Checkpointing(), ["marks.1", "marks.2", "marks.3"], whole=False
    ),
    "reentrant checkpoint in the forward": reentrant,
    "a branch first taken later": lambda: case(LaterBranch(), ["a", "b", "c"], later=take_branch),
    "functional code": lambda: case(Functional(), ["relu", "layers.2", "layers.3"], whole=False),
    "values kept on self": on_self,
    "transformer encoder": encoder,
    "transformer": transformer,
}
