from __future__ import annotations

import pytest

import pipelab as pp
from pipelab.widgets.exhibit import VIEWS, exhibit
from tests.plots.sizes import trace

PREDICTED, MEASURED = trace(2, 2), trace(2, 3)


def of(view, *, is_current=True):
    return exhibit(PREDICTED, MEASURED, view=view, is_current=is_current)


@pytest.mark.parametrize("view", VIEWS)
def test_without_a_measurement_every_view_shows_the_prediction(view):
    shown = exhibit(PREDICTED, None, view=view, is_current=False)
    assert shown.traces == (PREDICTED,) and shown.outline is None
    assert bool(shown.hints) == (view == "measured")


def test_views_choose():
    assert of("predicted").traces == (PREDICTED,)
    assert of("measured").traces == (MEASURED,)
    assert of("both").traces == (PREDICTED, MEASURED)
    assert (of("over").traces, of("over").outline) == ((MEASURED,), PREDICTED)
    assert not any(of(view).hints for view in VIEWS)


def test_actions_that_all_took_longer_are_remarked():
    slow = pp.Trace.from_times(PREDICTED.schedule, 3 * PREDICTED.start, 3 * PREDICTED.end, clock="wall")
    for view in ("over", "measured", "both"):
        assert "about 3 × as long" in exhibit(PREDICTED, slow, view=view, is_current=True).remarks[-1]
    assert exhibit(PREDICTED, slow, view="predicted", is_current=True).remarks == ("",)


def test_two_timelines_share_an_axis_and_one_has_its_own():
    assert of("both").stop == max(PREDICTED.makespan, MEASURED.makespan)
    assert of("over").stop == 0


@pytest.mark.parametrize("view", ["measured", "both"])
def test_a_measurement_of_an_older_plan_is_marked(view):
    shown = of(view, is_current=False)
    assert shown.remarks[-1] == "of an older plan: press Run again"
    assert shown.hints == ("The plan has changed since the last run.",)


def test_a_measurement_of_an_older_plan_is_not_laid_over_a_prediction():
    shown = of("over", is_current=False)
    assert shown.traces == (PREDICTED,) and shown.outline is None and shown.remarks == ("",)
    assert "press Run to measure it" in shown.hints[0]
