from __future__ import annotations

import gc

from pipelab.widgets.places import Places


class Thing:
    """Stands for a widget."""


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
