"""Zero-bubble schedules on linear and looped placements: the backward is cut in I and W, and W fills the gaps.

Only I is waited for by other ranks; W can wait. ZB-H1 holds p micro-batches on every rank, as 1F1B does on the first,
and holds r of the W back on rank r; ZB-H2 holds 2p-1, and at equal F, I, W no rank idles between its first and last
action. In both, a rank that starts k (p-1-r) forwards ahead of its first I holds k r of its W back, k = 1 or 2:
together the same on every rank.

    p = 3, ZB-H1     rank 0 | F F F . . I W F I W F I W ...
                     rank 1 | . F F . I F I W F I W F I ...
                     rank 2 | . . F I F I F I W F I W F ...

The papers write B for I.
"""

from __future__ import annotations

import numpy as np

from pipelab.core.closed_form import Assumption, ClosedForm, Terms, at_most
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules.info import ScheduleInfo
from pipelab.core.schedules.interleaved import WHOLE_GROUPS, depth_first, groups_of
from pipelab.core.schedules.warmup import alternate_split, stages_of
from pipelab.core.validation import check_size

__all__ = ["FAMILY"]


def _build(name: str, num_ranks: int, num_microbatches: int, stages_per_rank: int, ahead: int) -> Schedule:
    """One schedule of this family.

    Args:
        name: of the schedule.
        num_ranks: p.
        num_microbatches: m.
        stages_per_rank: v.
        ahead: k.
    """
    check_size(name, 3 * num_ranks * num_microbatches * stages_per_rank)
    groups = groups_of(num_ranks, num_microbatches)
    chunk, microbatch = depth_first(groups, stages_per_rank)
    forward = stages_of(num_ranks, chunk, microbatch)
    backward = stages_of(num_ranks, stages_per_rank - 1 - chunk, microbatch)
    ranks = np.arange(num_ranks)
    warmup = ahead * ranks[::-1] + (stages_per_rank - 1) * int(groups[0])
    table = alternate_split(warmup, ahead * ranks, forward, backward)
    return Schedule.from_table(table, Placement.looped(num_ranks, stages_per_rank), name=name)


def _zb_h1(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("zb-h1", num_ranks, num_microbatches, 1, ahead=1)


def _zb_h2(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("zb-h2", num_ranks, num_microbatches, 1, ahead=2)


def _interleaved_zb(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Schedule:
    return _build("interleaved-zb", num_ranks, num_microbatches, stages_per_rank, ahead=1)


def _idle_h1(t: Terms) -> float:
    """ZB-H1's idle time, also over chunks.

    The published (p-1)(F+I-W) needs W <= F and W <= I. A longer W fills no more than there is: the last rank has
    nothing to do for (p-1) F before its first action, and the first rank for (p-1) I between its first p forwards
    and their first gradient.
    """
    waits = min(t.p - 1, max(0, t.m - 2))  # for a gradient that a neighbour is late with, as in 1F1B
    late = 2 * (t.p - 1 - waits) * t.c
    around = (t.v - 1) * t.p * t.c if t.p > 1 else 0.0
    paths = (
        (t.p - 1) * (t.F + 3 * t.c) - late,
        (t.p - 1) * (t.I + 2 * t.c),
        (t.p - 1) * (t.F + t.I - t.W + 4 * t.c) - late,
    )
    return max(paths) + around


def _idle_h2(t: Terms) -> float:
    return (t.p - 1) * max(t.F + t.c, t.I - t.F + 2 * t.c, t.F + t.I - 2 * t.W + 2 * t.c)


def _work(t: Terms) -> float:
    return t.m * t.v * (t.F + t.I + t.W)


_H1_CONDITIONS = (
    Assumption("m >= p", lambda t: t.m >= t.p),
    Assumption("c <= W/2", lambda t: at_most(2 * t.c, t.W)),
)

FAMILY = (
    ScheduleInfo(
        name="interleaved-zb",
        family="zero bubble",
        paper="torch.distributed.pipelining; ZB-H1 of arXiv 2401.10241 over the chunks of arXiv 2104.04473",
        constraint="",
        formulas="at m mod p = 0: idle (p-1) max(F, I, F+I-W); peak v p chunks on every rank",
        description="ZB-H1 over v chunks a rank, as torch has it; over one chunk it is ZB-H1.",
        builder=_interleaved_zb,
        stages_per_rank=(1, None),
        form=ClosedForm.where(
            *_H1_CONDITIONS,
            WHOLE_GROUPS,
            idle=_idle_h1,
            work=_work,
            peak=lambda t, r: t.v * min(t.m, t.p),
        ),
    ),
    ScheduleInfo(
        name="zb-h1",
        family="zero bubble",
        paper="Zero Bubble Pipeline Parallelism, arXiv 2401.10241",
        constraint="",
        formulas="at m >= p: idle (p-1) max(F, I, F+I-W), published as (p-1)(F+I-W); peak p on every rank; "
        "latency costs 4(p-1)c at F = I = W and m > p, up to c = W/2",
        description="1F1B with the backward in two: a third of its bubble at F = I = W and m >= p, and on every rank "
        "the p micro-batches that 1F1B holds on the first.",
        builder=_zb_h1,
        form=ClosedForm.where(
            *_H1_CONDITIONS,
            idle=_idle_h1,
            work=_work,
            peak=lambda t, r: min(t.m, t.p),
        ),
    ),
    ScheduleInfo(
        name="zb-h2",
        family="zero bubble",
        paper="Zero Bubble Pipeline Parallelism, arXiv 2401.10241",
        constraint="",
        formulas="at m >= 2p-1: idle (p-1) max(F, I-F, F+I-2W), in span published as (p-1)(F+I-2W); "
        "peak 2p-1 on every rank",
        description="At F = I = W and m >= 2p-1 no rank idles between its first and last action; nearly twice ZB-H1's "
        "memory.",
        builder=_zb_h2,
        form=ClosedForm.where(
            Assumption("m >= 2p-1", lambda t: t.m >= 2 * t.p - 1),
            Assumption("c <= (F+I)/2", lambda t: at_most(2 * t.c, t.F + t.I)),
            idle=_idle_h2,
            peak=lambda t, r: min(t.m, 2 * t.p - 1),
            work=_work,
        ),
    ),
)
