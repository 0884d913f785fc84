"""A schedule from a rule: your own idea in a few lines.

Whenever a rank is free, it takes the most urgent action that it may run; a cap says how much it may hold. That is
all, and most published schedules are such a rule:

    line = pp.Placement.linear(4)
    # GPipe: all forwards first
    pp.list_schedule(line, num_microbatches=8, priority="forward-first")
    # 1F1B: backwards first, and rank r holds at most p - r micro-batches
    pp.list_schedule(line, num_microbatches=8, priority="backward-first", max_in_flight=(4, 3, 2, 1))
    # A home-made one: weights wait, pairs of micro-batches stay together
    def mine(action):
        return action.kind == "W", action.microbatch // 2, action.kind == "F", action.microbatch
    pp.list_schedule(line, num_microbatches=8, priority=mine, split_backward=True, max_in_flight=5)

The costs decide when ranks get free, and so which actions meet; the order that comes out is a `Schedule` like any
other, to be simulated under whatever costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cmp_to_key
from numbers import Real
from types import MappingProxyType
from typing import Any

from pipelab.core.actions import Action, Kind, as_index
from pipelab.core.costs import Costs
from pipelab.core.dispatch import dispatch
from pipelab.core.jobs import Jobs
from pipelab.core.memory import resident
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.validation import check_size
from pipelab.errors import PipelabError, one_of

__all__ = ["PRIORITIES", "by_rule", "list_schedule", "plan_jobs"]

Rule = Callable[[Jobs, int, int, int], Any]


PRIORITIES: Mapping[str, Rule] = MappingProxyType(
    {
        "backward-first": lambda jobs, k, s, i: ((1, 0, 2)[k], i if k else 0, jobs.tails[k][s], i),
        "forward-first": lambda jobs, k, s, i: (k, jobs.tails[k][s], i),
        "oldest-first": lambda jobs, k, s, i: (k == 2, i, jobs.tails[k][s]),
        "longest-first": lambda jobs, k, s, i: (k == 2, -jobs.tails[k][s], i),
    }
)
"""The named rules: the sort key of an action (kind F is 0, B or I is 1, W is 2), least first. W comes last in all.

backward-first: B or I before F; among them the older micro-batch first, forwards that are further along first.
forward-first: F before B or I; what is further along first.
oldest-first: the older micro-batch first, whatever the kind.
longest-first: the longest chain of needs behind it first (Hu's level rule).
"""


def list_schedule(
    placement: Placement,
    *,
    num_microbatches: int,
    priority: str | Callable[[Action], Any] = "backward-first",
    max_in_flight: int | Iterable[int] | None = None,
    max_bytes: float | Iterable[float] | None = None,
    split_backward: bool = False,
    costs: Costs | None = None,
    patience: float = 0.0,
    name: str = "list",
) -> Schedule:
    """Build a schedule from a rule: a free rank takes the most urgent action that has all it needs.

    Caps never lead into a dead end: a forward is taken only if all micro-batches could then still be finished, so
    that every cap with room for one micro-batch works. The same arguments give the same order.

    Args:
        placement: where the stages are.
        num_microbatches: m.
        priority: "backward-first", "forward-first", "oldest-first" (the older micro-batch) or "longest-first" (the
            longest chain of needs behind it), all with W last; or a function from an `Action` to a sort key, a number
            or a tuple of them: least first. Ties go to F before I or B before W, then to the lower stage, then to the
            older micro-batch.
        max_in_flight: the most micro-batches (stage chunks, where it holds several stages) that a rank has in
            flight, from F to the end of the backward; one number, or one a rank; None for no cap.
        max_bytes: the most bytes that a rank holds, weights included; one number, or one a rank. Needs
            `costs.bytes`.
        split_backward: I and W in place of B.
        costs: decide when ranks get free; None is F = I = W = 1, B = 2 without latency.
        patience: a rank does not start what would keep a more urgent action, known to arrive within this share of
            the time that it takes, waiting; 0 never waits for anything.
        name: of the schedule.

    Returns:
        The schedule, checked.

    Example:
        >>> import pipelab as pp
        >>> line = pp.Placement.linear(4)
        >>> rule = list_schedule(line, num_microbatches=8, priority="backward-first", max_in_flight=(4, 3, 2, 1))
        >>> rule.orders == pp.schedule("1f1b", num_ranks=4, num_microbatches=8).orders
        True
        >>> def mine(action):
        ...     return action.kind == "W", action.microbatch // 2, action.kind == "F", action.microbatch
        >>> print(list_schedule(pp.Placement.linear(2), num_microbatches=3, priority=mine, split_backward=True))
        list: 2 ranks, 2 stages, 3 micro-batches, 18 actions
        F = I = W = 1, B = 2, no latency; one column is 1: makespan 10, bubble fraction 10.0 %
        rank 0 | 0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2  .
        rank 1 |  .  1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2

    Raises:
        PipelabError: a cap without room for one micro-batch (it says which cap would do), costs for another number
            of stages, an unknown rule.
        TypeError: a wrong type, or a rule whose keys cannot be compared. An error within the rule keeps its type and
            gains a note that names the action.
    """
    jobs = plan_jobs(placement, num_microbatches, costs, split_backward, max_in_flight, max_bytes)
    if not isinstance(patience, Real) or isinstance(patience, bool) or not 0 <= patience < float("inf"):
        raise PipelabError(f"patience is {patience!r}; it must be a number from 0 on.")
    urgency = by_rule(jobs, priority)
    found = dispatch(jobs, urgency, (float(patience),) * len(jobs.kinds) if patience else ())
    return Schedule.from_table(jobs.table(found.orders), placement, name=name)


def by_rule(jobs: Jobs, priority: str | Callable[[Action], Any]) -> list[int]:
    """The numbers of all actions, the most urgent first."""
    columns = [column.tolist() for column in jobs.columns]
    if callable(priority):
        return _by_users_rule(
            [Action(jobs.kinds[k], s, i) for k, s, i in zip(*columns, strict=True)], priority
        )
    one_of("priority", priority, PRIORITIES)
    rule = PRIORITIES[priority]
    keys = [rule(jobs, k, s, i) for k, s, i in zip(*columns, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _by_users_rule(actions: Sequence[Action], priority: Callable[[Action], Any]) -> list[int]:
    keys = []
    for action in actions:
        try:
            keys.append(priority(action))
        except Exception as error:
            error.add_note(f"pipelab: in the priority rule of list_schedule, for action {action}.")
            raise

    def compare(one: int, other: int) -> int:
        try:
            return -1 if keys[one] < keys[other] else 0  # all that sorting asks
        except (TypeError, ValueError) as error:  # arrays of several numbers are neither true nor false
            raise TypeError(
                f"priority returned {_short(keys[one])} for {actions[one]} and {_short(keys[other])} for "
                f"{actions[other]}, which cannot be compared. It must return a number for every action, or a tuple of "
                f"numbers."
            ) from error

    return sorted(range(len(keys)), key=cmp_to_key(compare))


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 60 else f"{text[:60]}..."


def plan_jobs(
    placement: Placement,
    num_microbatches: int,
    costs: Costs | None,
    split_backward: bool,
    max_in_flight: int | Iterable[int] | None,
    max_bytes: float | Iterable[float] | None,
) -> Jobs:
    """Check what is to be put in order; see `list_schedule` for the arguments and errors."""
    if not isinstance(placement, Placement):
        raise TypeError(
            f"placement must be a Placement, such as pp.Placement.linear(4), not {type(placement).__name__}."
        )
    if costs is not None and not isinstance(costs, Costs):
        raise TypeError(f"costs must be Costs, not {type(costs).__name__}.")
    m = as_index("num_microbatches", num_microbatches)
    if m < placement.chains:
        raise PipelabError(
            f"num_microbatches is {m}; it must be at least {placement.chains}, one for each chain of the placement."
        )
    kinds = (Kind.F, Kind.I, Kind.W) if split_backward else (Kind.F, Kind.B)
    check_size("The schedule", len(kinds) * (placement.num_stages // placement.chains) * m)
    costs = Costs.uniform(placement.num_model_stages) if costs is None else costs
    if costs.num_stages != placement.num_model_stages:
        raise PipelabError(
            f"The costs are for {costs.num_stages} stages, but the placement has {placement.num_model_stages} "
            f"model stages."
        )
    if costs.links.num_ranks not in (None, placement.num_ranks):
        raise PipelabError(
            f"The links are for {costs.links.num_ranks} ranks, but the placement has {placement.num_ranks}."
        )
    jobs = Jobs(placement, m, costs, kinds)
    if max_in_flight is not None:
        what = "in flight for one micro-batch"
        jobs = replace(jobs, caps=_limits("max_in_flight", max_in_flight, jobs.chunks_of_one, what))
    if max_bytes is not None:
        jobs = replace(jobs, room=_room(jobs, max_bytes))
    return jobs


def _room(jobs: Jobs, max_bytes: float | Iterable[float]) -> tuple[int, ...]:
    """What is left for activations on each rank, in whole bytes."""
    placement, held = jobs.placement, jobs.costs.bytes
    if held is None:
        raise PipelabError("max_bytes needs costs with bytes: Costs(..., bytes=StageBytes(...)).")
    always = resident(placement, held).sum(axis=1).tolist()
    least = [base + kept for base, kept in zip(always, jobs.of_one(jobs.kept_bytes), strict=True)]
    limits = _limits("max_bytes", max_bytes, least, "bytes for its weights and one micro-batch")
    return tuple(math.floor(limit - base) for limit, base in zip(limits, always, strict=True))


def _limits(name: str, value: Any, least: Sequence[Any], what: str) -> tuple[Any, ...]:
    """One limit a rank, each with room for one micro-batch."""
    number: Callable[[str, object], Any] = as_index if name == "max_in_flight" else _bytes
    if isinstance(value, Real):
        limits = (number(name, value),) * len(least)
    else:
        try:
            limits = tuple(number(f"{name}[{rank}]", item) for rank, item in enumerate(value))
        except TypeError as error:
            raise TypeError(f"{name} must be a number, or one a rank: {error}") from None
    if len(limits) != len(least):
        raise PipelabError(f"{name} has {len(limits)} numbers for {len(least)} ranks.")
    short = [rank for rank, limit in enumerate(limits) if limit < least[rank]]
    if short:
        rank = short[0]
        raise PipelabError(
            f"{name} is {limits[rank]:,} on rank {rank}, which needs at least {least[rank]:,} {what}. "
            f"{name}={max(least):,} would do for every rank."
        )
    return limits


def _bytes(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{name} must be a number of bytes, not {value!r}.")
    return float(value)
