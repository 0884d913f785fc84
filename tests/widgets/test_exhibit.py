from __future__ import annotations

import pytest

from pipelab.widgets.exhibit import VIEWS, exhibit
from tests.plots.sizes import trace

PREDICTED, MEASURED = trace(2, 2), trace(2, 3)


@pytest.mark.parametrize("view", VIEWS)
def test_without_a_measurement_every_view_shows_the_prediction(view):
    shown = exhibit(PREDICTED, None, view=view, is_current=False)
    assert shown.traces == (PREDICTED,)
    assert bool(shown.hints) == (view == "measured")


def test_views_choose_and_both_puts_predicted_over_measured():
    def of(view):
        return exhibit(PREDICTED, MEASURED, view=view, is_current=True).traces

    assert of("predicted") == (PREDICTED,)
    assert of("measured") == (MEASURED,)
    assert of("both") == (PREDICTED, MEASURED)


@pytest.mark.parametrize("view", ["measured", "both"])
def test_a_measurement_of_an_older_plan_is_marked(view):
    shown = exhibit(PREDICTED, MEASURED, view=view, is_current=False)
    assert shown.remarks[-1] == "of an older plan: press Run again"
    assert not shown.same_plan
    assert shown.hints == ("The plan has changed since the last run.",)
