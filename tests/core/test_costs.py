"""Costs, links and bytes: refused when wrong, saved and read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipelab.core.actions import Kind
from pipelab.core.costs import Costs, Links, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

FULL = Costs(
    (1, 2),
    (3, 4),
    (5, 6),
    backward=(7, 8),
    update=(9, 10),
    overlap=(11, 12),
    bytes=StageBytes((1, 2), (3, 4), (5, 6)),
    links=Links(((0, 1), (2, 0)), ((math.inf, 5), (6, math.inf))),
    microbatch_size=4,
)


def test_each_kind_has_its_seconds():
    assert [FULL.seconds(kind, 1) for kind in (Kind.F, Kind.I, Kind.W, Kind.B, Kind.U)] == [2, 4, 6, 8, 10]
    assert FULL.seconds_of(((Kind.F, 1), (Kind.B, 0))) == 12
    assert FULL.seconds_of(((Kind.F, 1),)) == 2 and FULL.seconds_of(()) == 0


def test_what_is_not_said_follows():
    costs = Costs((1,), (2,), (3,))
    assert costs.seconds(Kind.B, 0) == 5 and costs.seconds(Kind.U, 0) == 0
    assert costs.seconds_of(((Kind.F, 0), (Kind.B, 0))) == 6


def test_uniform_costs():
    assert Costs.uniform(3, latency=0.5) == Costs((1,) * 3, (1,) * 3, (1,) * 3, links=Links(0.5))


@pytest.mark.parametrize("costs", [FULL, Costs.uniform(2), Costs((0.1,), (0,), (1e-9,), links=Links(1e-5))])
def test_costs_round_trip(costs):
    text = json.dumps(costs.to_dict(), allow_nan=False)
    assert Costs.from_dict(json.loads(text)) == costs
    assert eval(repr(costs)) == costs and hash(costs) == hash(Costs.from_dict(json.loads(text)))


def test_numpy_arrays_and_integers_become_floats():
    costs = Costs(np.array([1, 2]), [3, 4], (5, np.float32(6)))
    assert costs == Costs((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)) and type(costs.forward[0]) is float


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, -math.inf])
def test_numbers_that_are_no_durations_are_named(wrong):
    with pytest.raises(PipelabError, match=r"input_grad\[1\] is .*; it must be finite and not negative"):
        Costs((1, 1), (1, wrong), (1, 1))


@pytest.mark.parametrize("wrong", ["12", 3, ("a", 1), (None,), ((1,),)])
def test_things_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(PipelabError, match="forward must be numbers of seconds, one a stage"):
        Costs(wrong, (1, 1), (1, 1))


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(PipelabError, match="forward has 2, input_grad has 1, weight_grad has 2"):
        Costs((1, 1), (1,), (1, 1))
    with pytest.raises(PipelabError, match="bytes are for 1 stages, seconds for 2"):
        Costs((1, 1), (1, 1), (1, 1), bytes=StageBytes((1,), (1,), (1,)))
    with pytest.raises(PipelabError, match="parameters has 1, activations has 2"):
        StageBytes((1,), (1, 2), (1,))


def test_bytes_of_the_optimizer_are_optional_and_checked():
    held = StageBytes((1, 2), (3, 4), (5, 6), optimizer=(7, 8))
    assert StageBytes.from_dict(held.to_dict()) == held != StageBytes((1, 2), (3, 4), (5, 6))
    assert "optimizer" not in StageBytes((1,), (1,), (1,)).to_dict()
    with pytest.raises(
        PipelabError, match="parameters has 1, activations has 1, outputs has 1, optimizer has 2"
    ):
        StageBytes((1,), (1,), (1,), (1, 2))
    with pytest.raises(PipelabError, match="parameters must be numbers of bytes"):
        StageBytes(None, (1,), (1,))


def test_no_stage_no_forward_and_wrong_types_are_refused():
    with pytest.raises(PipelabError, match="at least one stage"):
        Costs.uniform(0)
    with pytest.raises(PipelabError, match="forward is None"):
        Costs(None, (1,), (1,))
    with pytest.raises(TypeError, match="bytes must be StageBytes, not int"):
        Costs((1,), (1,), (1,), bytes=7)
    with pytest.raises(TypeError, match="links must be Links, not float"):
        Costs((1,), (1,), (1,), links=0.5)
    with pytest.raises(PipelabError, match="microbatch_size is 0"):
        Costs((1,), (1,), (1,), microbatch_size=0)


def test_a_transfer_on_one_rank_is_free():
    assert Links(5, 1).seconds(2, 2, 100) == 0
    assert Links(5, 2).seconds(0, 1, 100) == 55


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "latency is -1; it must be finite and not negative"),
        ((math.nan,), "latency is nan"),
        ((math.inf,), "latency is inf"),
        ((0, 0), "bandwidth is 0; it must be positive"),
        ((0, math.nan), "bandwidth is nan"),
        ((((0, 1),),), "latency must be a square table"),
        (("x",), r"latency\[0\]\[0\] is 'x'; it must be a number"),
        ((True,), "latency is True; it must be a number"),
        ((None,), "latency must be a number or a p x p table, not None"),
        ((((0, 1), (1, 0)), ((1,),)), r"different numbers of ranks: \[1, 2\]"),
        ((((0, -1), (0, 0)),), r"latency\[0\]\[1\] is -1"),
    ],
)
def test_impossible_links_are_refused(arguments, message):
    with pytest.raises(PipelabError, match=message):
        Links(*arguments)


def test_a_rank_reaches_itself_for_free_whatever_a_table_says():
    links = Links(((9, 1), (1, math.nan)), ((0, 1), (1, 0)))
    assert links.latency == ((0, 1), (1, 0)) and links.bandwidth == ((math.inf, 1), (1, math.inf))
    assert links.num_ranks == 2


def test_the_repr_of_links_says_what_is_not_the_default():
    assert repr(Links()) == "Links()"
    assert repr(Links(1e-5, 1e9)) == "Links(latency=1e-05, bandwidth=1000000000.0)"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"forward": [1], "input_grad": [1]}, "costs.weight_grad is missing"),
        (
            {"forward": [1], "input_grad": [1], "weight_grad": ["1"]},
            r"costs.weight_grad\[0\] must be a finite number",
        ),
        ({"forward": [1], "input_grad": [1], "weight_grad": [True]}, r"costs.weight_grad\[0\]"),
        ({"forward": [1], "input_grad": [1], "weight_grad": [1], "x": 1}, "costs has the unknown key 'x'"),
        (
            {"forward": [1], "input_grad": [1], "weight_grad": [1], "links": {"latency": "0"}},
            "costs.links.latency",
        ),
        (
            {"forward": [1], "input_grad": [1], "weight_grad": [1], "bytes": {}},
            "costs.bytes.parameters is missing",
        ),
        (
            {"forward": [1], "input_grad": [1], "weight_grad": [1], "microbatch_size": 1.5},
            "costs.microbatch_size",
        ),
    ],
)
def test_wrong_fields_are_named(data, message):
    with pytest.raises(PipelabError, match=message):
        Costs.from_dict(data)


def test_links_that_take_turns_survive_json_and_older_files_still_load():
    for links in (Links(), Links(0.5, 2.0, serial=True), Links(blocking=True), Links(1.0, 2.0, True, True)):
        assert Links.from_dict(json.loads(json.dumps(links.to_dict()))) == links
    assert Links(0.5).to_dict() == {"latency": 0.5, "bandwidth": None}  # as before there were switches
    assert Links.from_dict({"latency": 0.5, "bandwidth": None}) == Links(0.5)
    assert repr(Links(serial=True)) == "Links(serial=True)"


@pytest.mark.parametrize("name", ["serial", "blocking"])
def test_switches_of_links_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, not 1"):
        Links(**{name: 1})
    with pytest.raises(PipelabError, match=f"links.{name} must be true or false, not 'yes'"):
        Links.from_dict({name: "yes"})


def test_uniform_costs_may_update():
    assert Costs.uniform(2, update=3).update == (3, 3) and Costs.uniform(2).update is None


def test_a_bandwidth_without_bytes_is_refused_since_transfers_would_be_free():
    one_way = Links(bandwidth=[[1, 5], [math.inf, 1]])
    for links in (Links(bandwidth=1e9), Links(0.5, 1e9, serial=True), one_way):
        with pytest.raises(
            PipelabError, match=r"bytes is None.*Give bytes=StageBytes.*leave the bandwidth out"
        ):
            Costs((1, 1), (1, 1), (1, 1), links=links)
        assert (
            Costs((1, 1), (1, 1), (1, 1), links=links, bytes=StageBytes((0, 0), (0, 0), (1, 1))).links
            == links
        )
    unlimited = Links(0.5, [[1, math.inf], [math.inf, 1]])  # what a rank sends to itself is free
    assert Costs((1, 1), (1, 1), (1, 1), links=unlimited).bytes is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Costs.uniform(10**12), r"num_stages is 1,000,000,000,000; the limit is 65,536 \(2\*\*16\)"),
        (lambda: Costs((1, 1e307), (1, 1), (1, 1)), r"forward\[1\] is 1e\+307; the limit is 1e\+100 seconds"),
        (lambda: Costs((1e307,) * 40, (1,) * 40, (1,) * 40), r"forward.*at most 1e\+100"),
        (lambda: StageBytes((1,), (1,), (10**120,)), r"outputs\[0\] is 1e\+120; the limit is 1e\+100 bytes"),
        (lambda: Links(1e200), r"latency is 1e\+200; the limit is 1e\+100 seconds"),
        (lambda: Links(bandwidth=1e-300), r"bandwidth is 1e-300; the least is 1e-50 bytes per second"),
        (lambda: Feed(load=1e200), r"load is 1e\+200; the limit is 1e\+100 seconds"),
    ],
)
def test_what_would_overflow_is_refused_by_field(make, message):
    with pytest.raises(PipelabError, match=message):
        make()


def test_at_the_limit_every_number_of_a_step_is_finite():
    most, p = 1e100, 4
    one = schedule("1f1b", num_ranks=p, num_microbatches=8)
    held = StageBytes((most,) * p, (most,) * p, (most,) * p)
    links = Links(most, 1e-50, serial=True)
    costs = Costs((most,) * p, (most,) * p, (most,) * p, update=(most,) * p, bytes=held, links=links)
    trace = simulate(one, costs, feed=Feed(most, most))
    report = trace.report()
    for numbers in (report.busy, report.bubble_time, report.peak_bytes, report.bytes_sent, [report.period]):
        assert np.isfinite(numbers).all()
    assert math.isfinite(report.idle_by_cause.total) and math.isfinite(report.cost(1.0).per_1000_steps)
    assert 0 < report.bubble_fraction <= 1 and len(trace.critical_path()) > 8


def test_a_band_survives_json_and_is_checked():
    costs = Costs((1.0,), (1.0,), (1.0,), band=(0.9, 1.25))
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs
    assert "band" not in Costs((1.0,), (1.0,), (1.0,)).to_dict()
    with pytest.raises(
        PipelabError, match=r"band is .*; it must be two positive numbers, the lower one first"
    ):
        Costs((1.0,), (1.0,), (1.0,), band=(1.25, 0.9))


def test_notes_of_links_survive_json_and_do_not_tell_links_apart():
    links = Links(0.1, notes=["no peer access"])
    assert Links.from_dict(json.loads(json.dumps(links.to_dict()))).notes == ("no peer access",)
    assert links == Links(0.1) and "notes" not in Links(0.1).to_dict()
