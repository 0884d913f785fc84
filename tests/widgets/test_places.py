from __future__ import annotations

import gc
import sys
from typing import Any

import ipywidgets as W
import pytest

from pipelab.widgets import places
from pipelab.widgets.places import Places


class Thing:
    """Stands for a widget."""


class Shell:
    """Stands for a notebook in whose one cell everything is shown."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {"In": ["cell"], "Out": {}, "torch": Thing(), "np": sys}
        self.execution_count = 0


class Ours(W.Label):
    """A widget of ours, as far as closing goes."""

    def _stills(self) -> None: ...


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(places, "_places", Places())
    return shell


def rerun(shell, show) -> None:
    shell.execution_count += 1
    places.close_replaced(show)


def page(**attributes: Any) -> Thing:
    made = Thing()
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("hold", "is_kept"),
    [
        (lambda one: one, True),
        (lambda one: [one], True),
        (lambda one: {"mine": one}, True),
        (lambda one: page(lab=one), True),
        (lambda one: page(labs=(one,)), True),
        (lambda one: [page(lab=one)], False),
        (lambda one: W.HBox([W.VBox([one])]), True),
    ],
)
def test_what_can_still_be_got_at_is_not_closed(shell, hold, is_kept):
    one = Ours()
    shell.user_ns["held"] = hold(one)
    rerun(shell, one)
    rerun(shell, Ours())
    assert (one.comm is not None) == is_kept


def test_what_ipython_keeps_by_itself_does_not_count(shell):
    one = Ours()
    shell.user_ns |= {"_": one, "Out": {1: one}}
    rerun(shell, one)
    rerun(shell, Ours())
    assert one.comm is None


def test_a_box_goes_with_what_is_in_it_but_for_what_is_held_or_shown_again(shell):
    gone, held, again = Ours(), Ours(), Ours()
    shell.user_ns["held"] = held
    before = W.VBox([gone, W.HBox([held]), again])
    rerun(shell, before)
    rerun(shell, W.VBox([again]))
    assert before.comm is None and before.layout.comm is None and gone.comm is None
    assert held.comm is not None and again.comm is not None


def test_what_a_cell_showed_is_gone_when_it_shows_another():
    places, old, new = Places(), Thing(), Thing()
    assert places.show(old, "cell", 1) == []
    assert places.show(new, "cell", 2) == [old]


def test_what_another_cell_shows_too_is_not_gone():
    places, old, new, newer = Places(), Thing(), Thing(), Thing()
    places.show(old, "a", 1)
    places.show(old, "b", 2)
    assert places.show(new, "a", 3) == []
    assert places.show(newer, "b", 4) == [old]


def test_showing_the_same_again_replaces_nothing():
    places, thing = Places(), Thing()
    places.show(thing, "cell", 1)
    assert places.show(thing, "cell", 2) == []


def test_several_in_one_run_of_a_cell_live_beside_each_other():
    places, one, two, three = Places(), Thing(), Thing(), Thing()
    places.show(one, "cell", 1)
    assert places.show(two, "cell", 1) == []
    assert places.show(three, "cell", 2) == [one, two]


def test_it_keeps_nothing_alive():
    places, thing = Places(), Thing()
    places.show(thing, "cell", 1)
    del thing
    gc.collect()
    assert places.show(Thing(), "cell", 2) == []
