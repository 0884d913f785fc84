"""A planted error in any builder is caught: by the check of the table, or by an oracle, and most also by the laws.

The laws are the closed forms (makespan and peaks, with latency); they know no cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipelab.core.actions import ActionTable
from pipelab.core.costs import Costs
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, interleaved, linear, schedule, v_shape, zero_bubble
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

NAMES = [info.name for module in (linear, interleaved, zero_bubble, v_shape) for info in module.FAMILY]
SIZES = {name: (3, 6, SCHEDULES[name].stages_per_rank[0]) for name in NAMES}


def built(name: str) -> Schedule:
    p, m, v = SIZES[name]
    return schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)


def swapped(one: Schedule) -> Iterator[list[list[str]]]:
    """Every table in which two cells of one rank that follow each other are swapped."""
    lines = [list(map(str, order)) for order in one.orders]
    for r, line in enumerate(lines):
        for k in range(len(line) - 1):
            changed = [*line[:k], line[k + 1], line[k], *line[k + 2 :]]
            yield [changed if rank == r else other for rank, other in enumerate(lines)]


def without_one(one: Schedule, kind: str) -> Iterator[list[list[str]]]:
    lines = [list(map(str, order)) for order in one.orders]
    for r, line in enumerate(lines):
        for k, cell in enumerate(line):
            if kind in cell and "(" not in cell:
                yield [line[:k] + line[k + 1 :] if rank == r else other for rank, other in enumerate(lines)]


def accepted(lines: list[list[str]], like: Schedule) -> Schedule | None:
    try:
        return Schedule(lines, like.placement)
    except PipelabError:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_a_swapped_pair_is_refused_or_seen_by_the_oracle(oracles, cells, name):
    one, wanted = built(name), oracles[name](*SIZES[name])
    assert cells(one) == wanted
    tables = list(swapped(one))
    refused = 0
    for lines in tables:
        changed = accepted(lines, one)
        refused += changed is None
        assert changed is None or cells(changed) != wanted
    assert len(tables) >= 15 and (refused >= 3 or name in ("forward-only", "looped-bfs", "gpipe"))


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_action_is_refused(name):
    one = built(name)
    letters = {str(cell)[1] for order in one.orders for cell in order if not cell.members}
    assert "F" in letters
    for kind in letters:
        for lines in without_one(one, kind):
            assert accepted(lines, one) is None


def lawful(one: Schedule) -> bool:
    """Whether a schedule has the makespan and the peaks that its form promises, without and with latency."""
    p, m, v = SIZES[one.name]
    form = SCHEDULES[one.name].form
    assert form is not None and not form.holds(p, m, v, c=0.0625)
    for c in (0.0, 0.0625):
        trace = simulate(one, Costs.uniform(one.num_stages, latency=c))
        if trace.makespan != form.makespan(p, m, v, c=c):
            return False
    return one.peak_in_flight == form.peak_in_flight(p, m, v)


Change = Callable[[np.ndarray], np.ndarray]
ERRORS: dict[str, Change] = {
    "one forward fewer": lambda w: w - (w == w.max()),
    "one forward more": lambda w: w + (w == w.max()),
    "one forward more everywhere": lambda w: w + 1,
    "ranks the wrong way round": lambda w: w[::-1],
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "name", ["naive", "1f1b", "eager-1f1b", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb"]
)
def test_a_wrong_warmup_breaks_the_laws_or_the_table(monkeypatch, name, error):
    assert lawful(built(name))
    for module in (linear, interleaved, zero_bubble):
        for attribute in ("alternate", "alternate_split"):
            lay_out = getattr(module, attribute, None)
            if lay_out is not None:
                monkeypatch.setattr(module, attribute, planted(lay_out, ERRORS[error]))
    if name == "naive" and error in ("one forward fewer", "ranks the wrong way round"):
        return  # no forward ahead: nothing to change
    assert not lawful_or_refused(name)


def planted(lay_out: Callable[..., ActionTable], change: Change) -> Callable[..., ActionTable]:
    return lambda warmup, *others: lay_out(np.maximum(0, change(warmup)), *others)


def lawful_or_refused(name: str) -> bool:
    try:
        return lawful(built(name))
    except PipelabError:
        return False


@pytest.mark.parametrize("change", [lambda w: np.maximum(0, w - 1), lambda w: w + 1, lambda w: w[::-1]])
@pytest.mark.parametrize("name", ["zb-h1", "zb-h2", "interleaved-zb"])
def test_W_held_back_too_little_or_too_long_breaks_the_laws(monkeypatch, name, change):
    lay_out = zero_bubble.alternate_split
    monkeypatch.setattr(
        zero_bubble, "alternate_split", lambda w, held, *others: lay_out(w, change(held), *others)
    )
    assert not lawful_or_refused(name)


@pytest.mark.parametrize(
    ("name", "phase"), [("zb-v", k) for k in range(8)] + [("dualpipev", k) for k in range(10)]
)
def test_a_phase_that_is_too_short_on_one_rank_is_refused_or_seen_by_the_oracle(
    monkeypatch, oracles, cells, name, phase
):
    lay_out = v_shape.lay_out

    def wrong(phases, *sizes):
        changed = list(phases)
        repeats = changed[phase].repeats
        fewer = np.arange(len(repeats)) == repeats.argmax()
        assert repeats.max() > 0
        changed[phase] = v_shape.Phase(changed[phase].pattern, repeats - fewer)
        return lay_out(changed, *sizes)

    monkeypatch.setattr(v_shape, "lay_out", wrong)
    try:
        found = cells(built(name))
    except PipelabError:
        return
    assert found != oracles[name](*SIZES[name])
