from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from pipelab.plots.palette import BACKWARD, FORWARD, MEMORY, rgb
from pipelab.widgets.picture import Picture
from tests.plots.sizes import trace


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png()))).astype(int)


def share(image: np.ndarray, colour: str) -> float:
    return float((np.abs(image - rgb((colour,))[0]).max(axis=-1) < 12).mean())


def test_redrawing_in_place_gives_the_picture_that_a_new_one_would():
    kept = Picture()
    for traces, memory in [
        ([trace(2, 2)], True),
        ([trace(8, 64)], False),
        ([trace(3, 4), trace(4, 9)], True),
    ]:
        kept.draw(traces, memory=memory)
    for traces, memory in [
        ([trace(4, 8)], False),
        ([trace(4, 8)], True),
        ([trace(2, 3), trace(3, 2)], False),
    ]:
        kept.draw(traces, memory=memory)
        fresh = Picture()
        fresh.draw(traces, memory=memory)
        assert (pixels(kept) == pixels(fresh)).all()


def test_colours_reach_the_picture():
    picture = Picture()
    picture.draw([trace(4, 8)])
    image = pixels(picture)
    assert share(image, FORWARD) > 0.05 and share(image, BACKWARD) > 0.1
    assert share(image, MEMORY) == 0
    picture.draw([trace(4, 8)], memory=True)
    assert share(pixels(picture), MEMORY) > 0.05


def test_the_words_are_those_of_all_that_is_shown():
    picture = Picture()
    picture.draw([trace(2, 2).with_label("first"), trace(2, 2).with_label("second")], memory=True)
    assert "Timeline of first" in picture.text and "Timeline of second" in picture.text
    assert "Memory of first" in picture.text


@pytest.mark.parametrize("ranks", [1, 16, 300])
def test_it_has_a_sensible_size_for_any_number_of_ranks(ranks):
    picture = Picture()
    picture.draw([trace(ranks, 2)])
    height, width = pixels(picture).shape[:2]
    assert width == 900 and 150 < height <= 1000


def test_it_leaves_no_figure_behind():
    before = plt.get_fignums()
    Picture().draw([trace(2, 2)])
    assert plt.get_fignums() == before
