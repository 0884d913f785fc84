"""Profiles: straight lines per layer, summed to costs per stage."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pipelab.core.costs import Links, StageBytes
from pipelab.core.profile import Affine, Profile
from pipelab.core.split import Split
from pipelab.errors import PipelabError


def lines(*pairs):
    return tuple(Affine(*pair) for pair in pairs)


PROFILE = Profile(
    layers=("stem", "blocks.0.attn", "blocks.0.mlp", "head"),
    forward=lines((1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)),
    input_grad=lines(*[(1, 0)] * 4),
    weight_grad=lines(*[(0, 1)] * 4),
    parameter_bytes=(10, 20, 30, 40),
    activation_bytes=lines(*[(0, 100)] * 4),
    output_bytes=lines((0, 1), (0, 2), (0, 3), (0, 4)),
    batch_size=4,
    measured_sizes=(2, 4),
    device="cpu",
    notes=("two threads",),
)


def test_seconds_are_those_of_all_three_kinds():
    assert PROFILE.seconds().tolist() == [3 + 1 + 4, 4 + 1 + 4, 5 + 1 + 4, 6 + 1 + 4]
    assert PROFILE.seconds(2).tolist() == [2 + 1 + 2, 3 + 1 + 2, 4 + 1 + 2, 5 + 1 + 2]


def test_what_a_fit_leaves_below_a_nanosecond_is_printed_as_nothing():
    rest = replace(PROFILE, weight_grad=lines((2e-18, 0), (2e-9, 0), (0, 0), (0, 1)))
    assert "e-1" not in str(rest) and "0.002 us" in str(rest)


def test_costs_sum_the_layers_of_each_stage_which_keeps_what_it_sends():
    links = Links(0.1)
    costs = PROFILE.costs(Split(["blocks.0.mlp"]), 2, links)
    assert costs.forward == (2 + 3, 4 + 5) and costs.input_grad == (2, 2) and costs.weight_grad == (4, 4)
    assert costs.backward is None and costs.links == links and costs.microbatch_size == 2
    assert costs.bytes == StageBytes((30, 70), (400 + 4, 400), (4, 8))


def test_the_micro_batch_size_is_that_of_the_example_unless_said():
    assert PROFILE.costs(Split()) == PROFILE.costs(Split(), 4) and PROFILE.costs(Split()).links == Links()


def test_half_the_micro_batch_does_not_cost_half():
    whole, half = (PROFILE.costs(Split(), size).forward[0] for size in (4, 2))
    assert whole / 2 < half < whole


def test_a_cut_may_name_a_module_that_contains_layers():
    assert PROFILE.stages(Split(["blocks.0", "head"])) == (slice(0, 1), slice(1, 3), slice(3, 4))


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (["blocks.0.mpl"], r"The cut 'blocks.0.mpl' is no layer of this profile; near it: 'blocks.0.mlp'"),
        (["block"], "is no layer of this profile"),
        (["stem"], "The cut 'stem' is the model's first layer"),
        (["head", "blocks.0.mlp"], "The cut 'blocks.0.mlp' is at or before 'head'.*in the order"),
        (["blocks.0", "blocks.0.attn"], "at or before 'blocks.0.attn'"),
    ],
)
def test_cuts_that_leave_a_stage_empty_are_refused(cuts, message):
    with pytest.raises(PipelabError, match=message):
        PROFILE.stages(Split(cuts))


def test_a_line_never_gives_less_than_nothing():
    assert Affine(-1, 0.5).at(1) == 0 and Affine(-1, 0.5).at(4) == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1"])
def test_lines_are_finite(wrong):
    with pytest.raises(PipelabError, match=r"per_sample is .*; it must be a finite number"):
        Affine(0, wrong)


def test_profiles_are_values():
    assert replace(PROFILE) == PROFILE and hash(replace(PROFILE)) == hash(PROFILE)
    assert Profile.from_dict(json.loads(json.dumps(PROFILE.to_dict(), allow_nan=False))) == PROFILE
    assert repr(PROFILE) == "<Profile: 4 layers, 38 s for 4 samples on cpu>"


def test_the_print_and_the_frame_have_a_line_a_layer():
    text = str(PROFILE).splitlines()
    assert text[1].split() == ["stem", "3", "s", "1", "s", "4", "s", "10", "B", "400", "B", "4", "B"]
    assert text[-1] == "at 4 samples; measured at 2, 4 on cpu two threads"
    frame = PROFILE.to_frame()
    assert frame["forward [s]"].tolist() == [3, 4, 5, 6] and frame["parameters [bytes]"].tolist() == [
        10,
        20,
        30,
        40,
    ]
    assert list(frame.columns)[3:6] == ["weight grad [s]", "activation [bytes]", "output [bytes]"]


def test_names_are_escaped_in_html():
    html = replace(PROFILE, layers=("<a>", "b", "c", "d"))._repr_html_()
    assert "<a>" not in html and "&lt;a&gt;" in html


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("a", "a", "b", "c")}, "Layer 'a' is there twice"),
        ({"layers": ()}, "at least one layer"),
        ({"forward": lines((1, 1))}, "forward has 1 entries for 4 layers"),
        ({"parameter_bytes": (1, 2, 3, -4)}, "parameter_bytes holds -4"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_profiles_are_refused(change, message):
    with pytest.raises(PipelabError, match=message):
        replace(PROFILE, **change)


def test_columns_hold_lines():
    with pytest.raises(TypeError, match="forward must hold an Affine for each layer"):
        replace(PROFILE, forward=(1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": [[1, 2, 3]] * 4}, r"profile.forward\[0\] must be \[fixed, per_sample\], not 3 numbers"),
        ({"forward": [1, 2, 3, 4]}, r"profile.forward\[0\] must be a list"),
        ({"device": None}, "profile.device must be text"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(PipelabError, match=message):
        Profile.from_dict({**PROFILE.to_dict(), **change})


# -- a measured whole backward, the machine's drift, a band ------------------------------------------------------

WHOLE = replace(
    PROFILE, backward=lines((2, 0), (2, 0), (1, 1), (0, 1)), reference=(2.0, 2.1), band=(0.95, 1.1)
)
BORDERED = replace(WHOLE, border=(0.25, 0.5))


def test_a_measured_whole_backward_is_what_b_costs():
    costs = WHOLE.costs(Split(["blocks.0.mlp"]), 2)
    assert costs.backward == (4, 3 + 2) and costs.input_grad == (2, 2) and costs.weight_grad == (4, 4)
    assert WHOLE.seconds(2).tolist() == [2 + 2, 3 + 2, 4 + 3, 5 + 2]


def test_every_stage_but_the_first_pays_for_its_border_once_whatever_it_holds():
    split = Split(["blocks.0.mlp"])
    plain, costs = WHOLE.costs(split, 2), BORDERED.costs(split, 2)
    assert costs.forward == (plain.forward[0], plain.forward[1] + 0.25)
    assert costs.backward == (plain.backward[0], plain.backward[1] + 0.5)
    assert costs.input_grad == (plain.input_grad[0], plain.input_grad[1] + 0.5)
    assert costs.weight_grad == plain.weight_grad
    assert BORDERED.seconds().tolist() == WHOLE.seconds().tolist()


def test_the_drift_is_what_the_reference_took_longer_after_than_before():
    assert WHOLE.drift == pytest.approx(0.05) and PROFILE.drift is None
    assert "the machine's speed changed by +5.0% meanwhile" in str(WHOLE)


def test_the_whole_backward_has_a_column_of_its_own_where_it_was_measured():
    assert str(WHOLE).splitlines()[1].split()[:9] == ["stem", "3", "s", "2", "s", "1", "s", "4", "s"]
    assert WHOLE.to_frame()["backward [s]"].tolist() == [2, 2, 5, 4]
    assert "backward [s]" not in PROFILE.to_frame()


def test_a_prediction_carries_the_band_of_its_profile():
    import pipelab as pp

    trace = pp.simulate(pp.schedule("gpipe", num_ranks=1, num_microbatches=1), WHOLE.costs(Split(), 2))
    assert trace.band == pytest.approx((0.95 * trace.makespan, 1.1 * trace.makespan))


def test_what_was_measured_besides_survives_json_and_older_files_still_load():
    for profile in (WHOLE, BORDERED):
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False))) == profile
    older = PROFILE.to_dict()
    assert not {"backward", "border", "reference", "band"} & set(older)
    assert Profile.from_dict(older).backward is None and Profile.from_dict(older).border == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backward": lines((1, 1))}, "backward has 1 entries for 4 layers"),
        ({"reference": (1.0,)}, r"reference is \(1.0,\); it must be two positive numbers"),
        ({"reference": (0.0, 1.0)}, "two positive numbers"),
        ({"border": (1.0,)}, "border is .*; it must be seconds of F and of B"),
        ({"border": (-1.0, 0.0)}, r"border\[0\] is -1.0"),
        ({"band": (1.1, 0.9)}, "the lower one first"),
        ({"band": ("a", "b")}, "band must be numbers"),
    ],
)
def test_impossible_bands_and_backwards_are_refused(change, message):
    with pytest.raises(PipelabError, match=message):
        replace(PROFILE, **change)
