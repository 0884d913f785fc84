from __future__ import annotations

import pickle

import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure

import pipelab as pp
from pipelab.core.profile import Affine
from pipelab.plots.figure import row_inches
from pipelab.plots.headline import describe_timeline
from tests.plots.sizes import trace


def shown(figure):
    """What a notebook gets of a figure: data and metadata by type."""
    formatter = DisplayFormatter()
    formatter.formatters["image/png"].for_type(Figure, lambda figure: print_figure(figure, base64=True))
    return formatter.format(figure)


def profile() -> pp.Profile:
    one = [Affine(1.0)] * 3
    return pp.Profile(["a", "b", "c"], one, one, one, [1] * 3, one, one, 1, (1,), "cpu")


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: pp.plot_timeline(trace(2, 3)), "Timeline of 1f1b: 2 ranks"),
        (lambda: pp.plot_timeline(trace(2, 3), memory=True), "Memory of 1f1b"),
        (lambda: pp.plot_timelines([trace(2, 3), trace(2, 3, "gpipe")]), "Timeline of gpipe"),
        (lambda: pp.plot_memory(trace(2, 3)), "Memory of 1f1b"),
        (lambda: pp.plot_stages(profile(), pp.Split(["b"])), "Stage 1: b, c"),
    ],
)
def test_a_notebook_gets_the_alternative_text_beside_the_picture(draw, words):
    data, metadata = shown(draw().figure)
    assert data["image/png"]
    assert words in metadata["image/png"]["alt"]


def test_a_figure_of_ours_can_still_be_pickled():
    figure = pickle.loads(pickle.dumps(pp.plot_timeline(trace(2, 2)).figure))
    assert shown(figure)[1]["image/png"]["alt"] == describe_timeline(trace(2, 2))


def test_a_figure_of_someone_else_is_left_as_it_is():
    figure = Figure()
    pp.plot_timeline(trace(2, 2), ax=figure.subplots())
    assert not hasattr(figure, "_repr_mimebundle_")


def test_many_rows_keep_room_for_their_numbers_where_that_is_asked_for():
    assert row_inches(20, 0.2) == row_inches(20)
    assert row_inches(90) == 7.5 and row_inches(90, 0.2) == 18.0
    assert row_inches(10_000, 0.2) == 22.0
