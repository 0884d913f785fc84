"""Whole steps out of the many events that a profiler recorded on one rank."""

from __future__ import annotations

import numpy as np

from pipelab.core.interchange.annotations import Annotations
from pipelab.core.quantities import counted
from pipelab.core.recurrence import FloatArray
from pipelab.errors import PipelabError

__all__ = ["Step", "steps_of"]

_ROUNDING = 1.0
"""Microseconds by which an event may begin before the last one ended: profilers round to a nanosecond, and worse."""

Step = tuple[list[str], FloatArray, FloatArray]
"""The actions of one step on one rank in their order, with their starts and ends in microseconds."""


def steps_of(rank: Annotations, where: str) -> list[Step]:
    """Cut what one rank did into steps: every step runs the same actions in the same number.

    Args:
        rank: its actions in the order in which they started.
        where: what they are of, for messages.

    Raises:
        PipelabError: a part of a step, or actions of one rank that overlap.
    """
    counts = np.bincount(rank.action, minlength=len(rank.names))
    present = np.flatnonzero(counts)
    least, most = (int(present[find(counts[present])]) for find in (np.argmin, np.argmax))
    if counts[least] != counts[most]:
        raise PipelabError(
            f"{where}: {rank.names[most]} is there {counted(int(counts[most]), 'time', 'times')}, but "
            f"{rank.names[least]} {counted(int(counts[least]), 'time', 'times')}. Record whole steps: start and stop "
            "the profiler between two calls of step()."
        )
    num_steps, length = int(counts[most]), len(present)
    start, end = rank.start.copy(), rank.end.copy()
    early = np.flatnonzero(start[1:] < end[:-1])
    if len(early) and (end[early] - start[early + 1]).max() > _ROUNDING:
        worst = int(early[np.argmax(end[early] - start[early + 1])])
        one, other = (rank.names[rank.action[k]] for k in (worst, worst + 1))
        raise PipelabError(
            f"{where}: {other} begins {end[worst] - start[worst + 1]:,.1f} us before {one} ends. A rank runs one "
            "action after the other; several ranks or streams seem to be mixed."
        )
    end[early] = start[early + 1]
    start = np.minimum(start, end)
    steps = []
    for number in range(num_steps):
        rows = slice(number * length, (number + 1) * length)
        found = rank.action[rows]
        if len(np.unique(found)) != length:
            twice = int(found[np.argmax(np.bincount(found)[found] > 1)])
            raise PipelabError(
                f"{where}: step {number} runs {rank.names[twice]} twice. Steps that run into each other cannot be told "
                "apart; wait for all ranks between two steps."
            )
        steps.append(([rank.names[k] for k in found.tolist()], start[rows], end[rows]))
    return steps
