"""What the tests of training loops share: pipelines with one and with two stages a rank, batches, comparisons."""

import torch

import pipelab as pp

TWO = {"1f1b": {}, "zb-h1": {}}
FOUR = {"interleaved-1f1b": {"stages_per_rank": 2}}


NAMES = [*TWO, *FOUR]


def pipeline(model, name, loss_fn, m=4, cuts=("2", "4", "6"), devices=("cpu", "cpu"), **options):
    """Two ranks, with one stage each or two."""
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=m, **(TWO | FOUR)[name])
    cuts = cuts if name in FOUR else cuts[1:2]
    return pp.Pipeline(
        model, pp.Split(list(cuts)), schedule, loss_fn=loss_fn, devices=list(devices), **options
    )


def batches(count, like, size=None):
    generator = torch.Generator().manual_seed(5)
    shape = (size or len(like), *like.shape[1:])
    return [torch.randn(shape, generator=generator, dtype=like.dtype) for _ in range(count)]


def same(model, other, rtol=1e-9, atol=1e-12):
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a.cpu(), b.cpu(), rtol=rtol, atol=atol) for (_, a), b in pairs)


def equal(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]
