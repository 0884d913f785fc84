"""Hundreds of faults, each at one place: its error comes out as it is, and nothing else is different afterwards."""

import itertools
import re
import threading

import pytest

import pipelab as pp
from tests.runtime.injected import (
    ERRORS,
    Laboratory,
    Noteless,
    raising,
    runnable_schedules,
    without_collector,
)

SCHEDULES = runnable_schedules()
# (place, stage, micro-batch): None where the place belongs to no stage, or the fault takes the first to come.
FORWARD = {
    "forward, first stage": ("forward", 0, 0),
    "forward, first stage, later": ("forward", 0, 2),
    "forward, middle stage": ("forward", 1, 0),
    "forward, middle stage, later": ("forward", 1, 3),
    "forward, last stage": ("forward", -1, 0),
    "forward, last stage, later": ("forward", -1, 2),
    "pre-hook of a module": ("pre-hook", 1, 1),
    "pre-hook behind the first cut, first": ("pre-hook", 1, 0),
    "hook of a module": ("hook", 1, 1),
    "loss": ("loss", None, 1),
    "scale": ("scale", None, None),
    "input on its way": ("input", None, 1),
    "target on its way": ("target", None, 2),
}
BACKWARD = {
    "backward, first stage": ("backward", 0, 1),
    "backward, middle stage": ("backward", 1, 0),
    "backward, last stage": ("backward", -1, 0),
    "backward, last stage, later": ("backward", -1, 3),
    "custom Function's backward": ("function", 1, 2),
    "backward hook of a module": ("module backward hook", 1, None),
}
AGAIN = {"forward, computed again": ("forward", 1, 2)}  # where recomputation passes a second time
OUTSIDE = {"progress": ("progress", None, None), "loss_weight": ("loss_weight", None, 2)}
PLACES = FORWARD | BACKWARD | OUTSIDE
NOTE = re.compile(r"raised in action (\d+)([FBI])(\d+): the .* of stage (\d+), micro-batch (\d+), on rank \d")

_LABORATORIES = {}


@pytest.fixture(scope="module")
def laboratory():
    """Pipelines that are used for many faults, one after the other; all of their threads end."""
    before = threading.active_count()

    def get(name, virtual, recompute="none"):
        key = name, virtual, recompute
        if key not in _LABORATORIES:
            made = Laboratory(SCHEDULES[name], devices_for(name, virtual), recompute=recompute)
            _LABORATORIES[key] = made
            made.step()
            made.model.zero_grad()
        return _LABORATORIES[key]

    yield get
    for each in _LABORATORIES.values():
        each.pipe.close()
    _LABORATORIES.clear()
    assert threading.active_count() == before, threading.enumerate()


def devices_for(name, virtual):
    ranks = SCHEDULES[name].num_ranks
    return pp.virtual(ranks) if virtual else ["cpu"] * ranks


def assert_survived(lab, place, make, passes=0, **options):
    """The fault's own error comes out with a note, leaves nothing behind, and the next step is right."""
    where, stage, microbatch = (PLACES | AGAIN)[place]
    stage = lab.stages - 1 if stage == -1 else stage
    lab.bomb.arm(where, stage, microbatch, raising(make), passes)
    with without_collector():
        error = lab.failing_step(**options)
        assert type(error) is type(make())
        if not isinstance(error, Noteless):
            assert_told(lab, place, stage, microbatch, "\n".join(error.__notes__))
        kept = {number for what in ("needed", "sent") for _, number in lab.alive(what)}
        assert len(kept) <= 1 and (microbatch is None or kept <= {microbatch}), (
            "an error keeps only its own values"
        )
        del error
        lab.assert_at_rest()
    assert len(lab.pipe._pool) <= lab.pipe.schedule.num_ranks + lab.pipe.schedule.num_microbatches
    lab.assert_next_step_right()


def assert_told(lab, place, stage, microbatch, notes):
    if place == "progress":
        assert "in the function for the progress" in notes
    elif place == "loss_weight":
        assert f"in loss_weight for micro-batch {microbatch}" in notes
    else:
        found = NOTE.search(notes)
        assert found, notes
        of_action, kind, number, of_stage, of_microbatch = found.groups()
        assert of_action == of_stage and number == of_microbatch
        assert (kind == "F") == (place in FORWARD)
        assert stage is None or int(of_stage) % lab.stages == stage
        assert microbatch is None or int(of_microbatch) == microbatch


NAMES = itertools.cycle(SCHEDULES)
CASES = [
    pytest.param(place, kind, next(NAMES), bool(number % 2), id=f"{place}-{kind}")
    for number, (place, kind) in enumerate(itertools.product(PLACES, ERRORS))
]


@pytest.mark.parametrize(("place", "kind", "name", "virtual"), CASES)
def test_an_error_of_any_type_anywhere(laboratory, place, kind, name, virtual):
    assert_survived(laboratory(name, virtual), place, ERRORS[kind])


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("place", ["forward, middle stage, later", "backward, first stage", "loss"])
def test_an_error_under_every_schedule(laboratory, place, name, virtual):
    assert_survived(laboratory(name, virtual), place, ERRORS["odd"])


@pytest.mark.parametrize("virtual", [False, True], ids=["threads", "virtual"])
@pytest.mark.parametrize("name", ["1f1b", "zb-v", "chimera"])
@pytest.mark.parametrize("place", ["forward, middle stage", "pre-hook behind the first cut, first", "loss"])
def test_an_error_in_the_very_first_step(name, place, virtual):
    before = threading.active_count()
    lab = Laboratory(SCHEDULES[name], devices_for(name, virtual))
    assert_survived(lab, place, ERRORS["bare"])
    lab.pipe.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_while_activations_are_computed_again(laboratory, kind):
    number = list(ERRORS).index(kind)
    lab = laboratory(["1f1b", "zb-v", "chimera"][number % 3], bool(number % 2), recompute="all")
    assert_survived(lab, "forward, computed again", ERRORS[kind], passes=1)
    assert_survived(lab, "forward, middle stage, later", ERRORS[kind])


@pytest.mark.parametrize("kind", ["odd", "KeyboardInterrupt"])
@pytest.mark.parametrize("place", ["forward, middle stage, later", "backward, first stage", "loss"])
def test_an_error_while_memory_is_counted(laboratory, place, kind):
    assert_survived(laboratory("zb-v", False), place, ERRORS[kind], memory=True)


def test_there_are_more_than_two_hundred_faults():
    assert len(CASES) >= 200
    assert {
        "gpipe",
        "1f1b",
        "interleaved-1f1b",
        "hanayo",
        "zb-h1",
        "zb-v",
        "dualpipev",
        "chimera",
    } <= SCHEDULES.keys()
