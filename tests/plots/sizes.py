"""Traces of many sizes and shapes, for laws that must hold for all."""

from __future__ import annotations

import pipelab as pp
from pipelab.core.trace import Trace

SIZES = [(1, 1), (1, 5), (4, 1), (4, 2), (4, 8), (8, 64), (3, 7)]


def trace(num_ranks: int = 4, num_microbatches: int = 8, name: str = "1f1b", latency: float = 0.0) -> Trace:
    """A simulated run with unequal stages."""
    order = pp.schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    seconds = [1.0 + 0.5 * (stage % 3) for stage in range(num_ranks)]
    return pp.simulate(order, pp.Costs(seconds, seconds, seconds, links=pp.Links(latency)))


def of_orders(orders: list[list[str]], name: str = "by hand") -> Trace:
    """A simulated run of an order given by hand, at unit costs."""
    order = pp.Schedule(orders, name=name)
    ones = (1.0,) * order.num_model_stages
    return pp.simulate(order, pp.Costs(ones, ones, ones, update=ones))


OVERLAPPED = [
    ["0F0", "0F1", "(0F2;0B0)OVERLAP_F_B", "0B1", "0B2"],
    ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2"],
]
SPLIT_BACKWARD = [
    ["0F0", "0F1", "0I0", "0W0", "0I1", "0W1", "0U1"],
    ["1F0", "1I0", "1W0", "1F1", "1I1", "1W1"],
]
