"""Schedules are values: equal, hashable, printed, saved."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import Action
from pipelab.core.costs import Costs
from pipelab.core.placement import Placement
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.errors import PipelabError

MINE = Schedule([["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]], name="mine")


def test_cells_and_actions_are_the_same_orders():
    actions = [[Action.parse(cell) for cell in order] for order in (["0F0", "0B0"],)]
    assert Schedule(actions) == Schedule([["0F0", "0B0"]])


def test_orders_are_tuples_of_actions_for_every_rank():
    assert [" ".join(map(str, order)) for order in MINE.orders] == ["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"]
    assert isinstance(MINE.orders, tuple) and isinstance(MINE.orders[0], tuple)


def test_a_rank_may_have_nothing_to_do():
    one = Schedule([["0F0"], []], Placement((0, 1), chains=2))
    assert one.orders == ((Action.parse("0F0"),), ()) and one.peak_in_flight == (1, 0)
    assert Schedule.from_text(one.to_text()) == one


def test_a_rank_without_actions_needs_a_placement():
    with pytest.raises(PipelabError, match="rank 1 has no actions"):
        Schedule([["0F0"], []])


def test_the_placement_is_read_from_the_orders():
    one = Schedule([["0F0", "2F0"], ["1F0", "3F0"]])
    assert one.placement == Placement.looped(2, 2) and one.stages_per_rank == 2


def test_equality_is_by_orders_placement_and_name():
    same = Schedule(MINE.orders, name="mine")
    assert same == MINE and hash(MINE) == hash(same)
    assert Schedule(MINE.orders, name="other") != MINE
    assert schedule("gpipe", num_ranks=2, num_microbatches=2) != MINE


def test_a_schedule_cannot_be_changed():
    with pytest.raises(AttributeError):
        MINE.name = "other"


def test_copies_and_pickles_are_equal():
    for other in (copy.copy(MINE), copy.deepcopy(MINE), pickle.loads(pickle.dumps(MINE))):
        assert other == MINE and other.needs(Action.parse("1B0")) == MINE.needs(Action.parse("1B0"))


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_schedule_round_trips(random_schedule, seed):
    one = random_schedule(seed)
    assert Schedule.from_text(one.to_text()) == one
    assert Schedule.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Schedule(one.orders, one.placement, name=one.name) == one


def test_a_short_repr_evaluates_and_a_long_one_says_what_it_is():
    assert eval(repr(MINE)) == MINE
    long = schedule("1f1b", num_ranks=4, num_microbatches=8)
    assert repr(long) == "<Schedule 1f1b: 4 ranks, 4 stages, 8 micro-batches, 64 actions>"


def test_the_html_escapes_names():
    html = Schedule([["0F0"]], name="<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_the_text_form_is_what_its_module_shows():
    assert MINE.to_text() == (
        '# pipelab schedule 1\nname: "mine"\nranks: 0 1\nrank 0: 0F0 0F1 0B0 0B1\nrank 1: 1F0 1B0 1F1 1B1\n'
    )


HEAD = '# pipelab schedule 1\nname: "x"\nranks: 0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with '# pipelab schedule 1'"),
        ("0F0 0B0", "begins with"),
        (HEAD + "rank 0: 0F0junk", "rank 0: '0F0junk' is not an action"),
        (HEAD + "rank 0: 0F0\nrank 1: 1F0", "'rank 1' is no field of a schedule with 1 ranks"),
        (HEAD + "rank 0: 0F0\nrank 0: 0F0", "is there twice"),
        (HEAD + "rank 0 0F0", "not of the form key: value"),
        (HEAD + "ranks: 0", "is there twice"),
        (HEAD + "colour: red", "'colour' is no field"),
        (HEAD, "there are no actions"),
        (HEAD.replace('"x"', "x"), "it must be in double quotes"),
        (HEAD.replace('"x"', "[" * 100_000), "it must be in double quotes"),
        (HEAD.replace('"x"', '"a\\nb"') + "rank 0: 0F0", "printable"),
        (HEAD.replace("ranks: 0", "ranks: a"), "ranks holds 'a'"),
        (HEAD.replace("ranks: 0", "ranks: ²"), "ranks holds '²'"),
        (HEAD.replace("ranks: 0", "ranks: " + "9" * 5000), "ranks holds '999"),
        (HEAD + "chains: 1 1", "chains must be one number, not 2"),
        (HEAD + "tied: 1", "tied holds '1'; it must be two stage ids"),
        (HEAD + "edges: 0>0", "has a cycle"),
        (HEAD + "rank 0: 0F1000000000000", r"rank 0: 0F1000000000000 is refused"),
        ("x" * 5_000_001, "the limit is 5,000,000"),
        (HEAD + "ranks2: " + "0 " * 100_000, "is no field"),
        (HEAD.replace("ranks: 0", "ranks: " + "0 " * 100_000), "100,000 entries; the limit is 65,536"),
        (HEAD + "edges: " + "0>0 " * 100_000, "100,000 pairs; the limit is 65,536"),
    ],
)
@pytest.mark.timeout(10)
def test_text_that_is_no_schedule_is_refused(text, message):
    with pytest.raises(PipelabError, match=message):
        Schedule.from_text(text)


def test_blank_lines_and_spaces_do_not_matter():
    assert Schedule.from_text("\n" + MINE.to_text().replace("\n", "  \n\n").replace(" 0B0", "   0B0")) == MINE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orders": ["0F0", "1F0", "2F0"]}, "schedule.orders has 3 orders, but the placement 2 ranks"),
        ({"orders": ["0F0 0F0x", ""]}, r"schedule.orders\[0\]: '0F0x' is not an action"),
        ({"orders": [["0F0"], []]}, r"schedule.orders\[0\] must be text, not a list"),
        ({"orders": "0F0"}, "schedule.orders must be a list"),
        ({"name": 1}, "schedule.name must be text"),
        ({"extra": 1}, "schedule has the unknown key 'extra'"),
        ({"placement": {"ranks": [0, 1], "chain": 1}}, "schedule.placement has the unknown key 'chain'"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(PipelabError, match=message):
        Schedule.from_dict({**MINE.to_dict(), **change})


def test_the_grid_is_in_the_print():
    assert str(MINE) == "\n".join(
        [
            "mine: 2 ranks, 2 stages, 2 micro-batches, 8 actions",
            "F = I = W = 1, B = 2, no latency; one column is 1: makespan 9, bubble fraction 33.3 %",
            "rank 0 | 0F0 0F1  .   .  0B0 ---  .  0B1 ---",
            "rank 1 |  .  1F0 1B0 --- 1F1 1B1 ---  .   .",
        ]
    )


def test_a_grid_under_costs_is_to_scale():
    grid = MINE.grid(Costs.uniform(2, 1, 0.5, 0.5, latency=0.5))
    assert "given costs; one column is 500 ms: makespan 7 s" in grid
    assert "rank 0 | 0F0 --- 0F1 ---  .   .   .   .  0B0 ---  . " in grid


def test_costs_without_a_common_step_are_rounded_and_say_so():
    grid = schedule("1f1b", num_ranks=3, num_microbatches=5).grid(
        Costs((0.31, 0.2, 1.7), (1, 1, 1), (0.1, 0.1, 0.1))
    )
    assert ", rounded: makespan" in grid


def test_a_wide_grid_is_elided_with_a_note_that_counts():
    one = schedule("gpipe", num_ranks=4, num_microbatches=50)
    lines = one.grid().splitlines()
    assert max(map(len, lines)) <= 110
    shown = lines[1].split("|")[1].split()
    assert lines[-1] == f"(... stands for {159 - len(shown) + 1} of 159 columns)"


def test_many_ranks_are_elided_too():
    lines = schedule("gpipe", num_ranks=50, num_microbatches=2).grid().splitlines()
    assert (
        "... 19 ranks not shown ..." in lines
        and sum(line.lstrip().startswith("rank ") for line in lines) == 31
    )


def test_free_actions_and_overlaps_are_drawn():
    assert MINE.grid(Costs.uniform(2, 0, 0, 0))
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]])
    assert "0F1&0B0 ------- -------" in one.grid()


def test_a_narrow_grid_is_refused():
    with pytest.raises(PipelabError, match="at least 40"):
        MINE.grid(width=10)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_any_schedule_prints_within_the_width(random_schedule, random_costs, seed):
    one = random_schedule(seed)
    assert max(map(len, one.grid(random_costs(seed, one)).splitlines()[1:])) <= 110


TWO_MINIBATCHES = [["0F0", "0B0", "0F1", "0B1", "0U1", "0F2", "0F3", "0B2", "0B3", "0U3"]]


def test_numbering_round_trips_and_tells_schedules_apart():
    one = Schedule(TWO_MINIBATCHES, minibatches=2)
    assert one != Schedule(TWO_MINIBATCHES) and one.minibatches == 2 and one.num_microbatches == 4
    sliced = Schedule([["0F0", "0F1", "0B1", "0B0"]], slices=2)
    for each in (one, sliced):
        assert Schedule.from_text(each.to_text()) == each
        assert Schedule.from_dict(json.loads(json.dumps(each.to_dict()))) == each
        assert pickle.loads(pickle.dumps(each)) == each and copy.deepcopy(each) == each
        assert eval(repr(each)) == each
    assert "minibatches: 2\n" in one.to_text() and "slices" not in one.to_text()


@pytest.mark.parametrize(
    ("orders", "numbering", "message"),
    [
        (TWO_MINIBATCHES, {"minibatches": 3}, "minibatches is 3, but the table has the micro-batch numbers 0 to 3"),
        (TWO_MINIBATCHES, {"slices": 0}, "slices is 0.*It must divide 4"),
        (TWO_MINIBATCHES, {"minibatches": 2, "slices": 2}, "several mini-batches with several slices"),
        ([["0F0", "0B0", "0F1", "0B1", "0U1"]], {"minibatches": 2}, "0U0 is missing"),
        ([["0F0", "0B0", "0U0", "0F1", "0B1", "0U1", "0F2", "0B2", "0F3", "0B3", "0U3"]], {"minibatches": 2},
         "0U0 is there. With mini-batches of 2 .* 0U1 ends the mini-batch"),
        ([["0F0", "0F1", "0B1", "0U1", "0B0", "0F2", "0B2", "0F3", "0B3", "0U3"]], {"minibatches": 2},
         "0B0 must come before 0U1"),
        ([["0F0", "0F1", "0B1", "0B0", "0F2", "0B2", "0U1", "0F3", "0B3", "0U3"]], {"minibatches": 2},
         "0B2 must come after 0U1"),
    ],
)  # fmt: skip
def test_a_numbering_that_does_not_fit_is_refused(orders, numbering, message):
    with pytest.raises(PipelabError, match=message):
        Schedule(orders, **numbering)


def test_a_numbering_is_an_integer():
    with pytest.raises(TypeError, match="minibatches must be an integer"):
        Schedule(TWO_MINIBATCHES, minibatches="2")


def test_several_mini_batches_run_in_one_chain():
    orders = [["0F0", "0F1", "0B0", "0B1", "0U0", "0U1"], ["1F2", "1F3", "1B2", "1B3"]]
    with pytest.raises(PipelabError, match="several mini-batches with several chains"):
        Schedule(orders, Placement.ensemble(2, 1), minibatches=2)
