"""Closed forms from the papers, with what they assume.

p ranks, m micro-batches, v stages per rank, r rank; F, I, W and B are seconds of one stage for one micro-batch
(B is I and W in one), c of one hop between ranks. The forms stand beside the schedules that they are about, in
`SCHEDULES`. All assume that every stage costs the same; what else they assume is in `ClosedForm.assumptions`, and
`ClosedForm.holds` tests it. Where an assumption is broken they still give their number: the simulator needs none
of them, and the tests hold it to the forms where they apply and show the gap where they do not.

Example:
    >>> form = closed_form("1f1b")
    >>> form.makespan(4, 8), form.bubble_fraction(4, 8) == (4 - 1) / (8 + 4 - 1)
    (33.0, True)
    >>> form.peak_in_flight(4, 8)
    (4, 3, 2, 1)
    >>> zero_bubble = closed_form("zb-h1")
    >>> zero_bubble.makespan(4, 8), zero_bubble.holds(4, 2)
    (27.0, 'The formula assumes m >= p; here p=4, m=2. Simulate it.')
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipelab.core.closed_form import Assumption, ClosedForm, Terms
from pipelab.core.schedules import SCHEDULES
from pipelab.errors import one_of

__all__ = ["FORMS", "Assumption", "ClosedForm", "Terms", "closed_form"]

FORMS: Mapping[str, ClosedForm] = MappingProxyType(
    {name: info.form for name, info in SCHEDULES.items() if info.form is not None}
)
"""The closed form of every schedule that has one."""


def closed_form(name: str) -> ClosedForm:
    """The closed form of a schedule.

    Args:
        name: of the schedule, as in `SCHEDULES`.

    Raises:
        PipelabError: there is none for this name.
    """
    one_of("closed form", name, FORMS)
    return FORMS[name]
