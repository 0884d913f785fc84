from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import pipelab as pp
from pipelab.core.profile import Affine, Profile
from pipelab.plots.palette import BACKWARD, FORWARD, WEIGHT
from pipelab.plots.stages import describe_stages


@pytest.fixture
def profile() -> Profile:
    names = ["embed", "cost $ and $ <b>", "blocks.1", "blocks.2", "head"]
    cost = [Affine(1e-3, 1e-4 * (1 + n)) for n in range(5)]
    held = [Affine(0.0, 100.0)] * 5
    return Profile(names, cost, cost, cost, [1000] * 5, held, held, 8, (4, 8), "cpu")


def test_the_bars_are_the_seconds_of_each_stage_and_kind(profile):
    split = pp.Split(["blocks.1", "head"])
    ax = pp.plot_stages(profile, split, batch_size=4)
    corners = np.array([path.vertices[:4] for path in ax.collections[0].get_paths()])
    widths = np.ptp(corners[:, :, 0], axis=1).reshape(3, 3)
    costs = profile.costs(split, batch_size=4)
    assert widths == pytest.approx(np.column_stack([costs.forward, costs.input_grad, costs.weight_grad]))


def test_the_colours_are_those_of_the_timeline(profile):
    legend = pp.plot_stages(profile, pp.Split([])).get_legend()
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    assert colours == [to_rgba(colour) for colour in (FORWARD, BACKWARD, WEIGHT)]


def test_the_title_names_the_slowest_stage_and_how_far_it_is_from_the_mean(profile):
    split = pp.Split(["head"])
    total = profile.seconds()
    slow = total[:4].sum()
    title = pp.plot_stages(profile, split).get_title()
    assert "the slowest is stage 0" in title
    assert f"{slow / (total.sum() / 2):.2f} × the mean" in title
    assert "micro-batch of 8 on cpu" in title


def test_layers_are_named_as_they_are(profile):
    ax = pp.plot_stages(profile, pp.Split(["cost $ and $ <b>", "blocks.1"]))
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.texts]
    assert texts[1].startswith(r"cost \$ and \$ <b>")
    assert "blocks.1 … head (3 layers)" in texts[2]


def test_many_stages_are_still_a_picture():
    one = [Affine(1.0)] * 300
    profile = Profile([f"layer{n}" for n in range(300)], one, one, one, [0] * 300, one, one, 1, (1,), "cpu")
    ax = pp.plot_stages(profile, pp.balance(profile, 300))
    ax.figure.canvas.draw()
    assert not ax.texts
    assert len(ax.get_yticks()) <= 20


def test_a_cut_that_is_not_there_is_refused(profile):
    with pytest.raises(pp.PipelabError, match="nope"):
        pp.plot_stages(profile, pp.Split(["nope"]))


def test_it_says_itself_in_words(profile):
    text = describe_stages(profile, pp.Split(["head"]))
    assert "Stage 0: embed … blocks.2 (4 layers)" in text
    assert "Stage 1: head" in text


def test_bars_add_up_to_the_whole_backward_where_that_was_measured():
    one, two = Affine(0.0, 1.0), Affine(0.0, 2.0)
    profile = pp.Profile(
        ("a", "b"),
        (one,) * 2,
        (two,) * 2,
        (two,) * 2,
        (8,) * 2,
        (one,) * 2,
        (one,) * 2,
        1,
        (1, 2),
        "cpu",
        backward=(one,) * 2,
    )
    ax = pp.plot_stages(profile, pp.Split(["b"]))
    assert "2 s a micro-batch" in ax.get_title()
