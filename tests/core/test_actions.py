"""Actions print and parse as torch's cells; tables hold them as columns."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.actions import CODES, KINDS, MAX_CELLS, Action, ActionTable, Kind
from pipelab.errors import PipelabError

PLAIN = [kind for kind in Kind if kind is not Kind.OVERLAP]
plain_actions = st.builds(Action, st.sampled_from(PLAIN), st.integers(0, 10**9), st.integers(0, 10**9))


def test_an_action_prints_as_stage_kind_microbatch():
    assert str(Action(Kind.F, 2, 0)) == "2F0"


def test_the_repr_of_an_action_evaluates_to_it():
    for action in (Action(Kind.W, 3, 14), Action.parse("(0F3;3B1)OVERLAP_F_B")):
        assert eval(repr(action)) == action


@given(plain_actions)
@settings(max_examples=50)
def test_plain_actions_round_trip(action):
    assert Action.parse(str(action)) == action


@given(st.lists(plain_actions, min_size=2, max_size=4))
@settings(max_examples=50)
def test_overlaps_round_trip(members):
    action = Action.overlap(*members)
    assert Action.parse(str(action)) == action


def test_an_overlap_prints_in_torchs_grammar_and_has_the_place_of_its_first_member():
    action = Action.overlap(Action(Kind.F, 0, 3), Action(Kind.B, 3, 1))
    assert str(action) == "(0F3;3B1)OVERLAP_F_B"
    assert (action.kind, action.stage, action.microbatch) == (Kind.OVERLAP, 0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "1F0junk",
        "junk1F0",
        " 1F0",
        "1F0 ",
        "1F0\n",
        "",
        "F0",
        "1F",
        "01F0",
        "1F00",
        "-1F0",
        "1f0",
        "1X0",
        "1.0F0",
        "٣F٤",
        "(0F1)OVERLAP_F_B",
        "(0F1;)OVERLAP_F_B",
        "()OVERLAP_F_B",
        "((0F1;0F2)OVERLAP_F_B;0F3)OVERLAP_F_B",
        "1F0;1B0",
        "1" * 50 + "F0",
        "1REDUCE_GRAD",
        None,
        7,
        b"1F0",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(
        PipelabError, match=r"is not an action. A cell is stage, kind, micro-batch, such as 2F0"
    ):
        Action.parse(text)


def test_a_long_wrong_cell_is_shortened_in_the_message():
    with pytest.raises(PipelabError) as caught:
        Action.parse("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_negative_numbers_unknown_kinds_and_lonely_members_are_refused():
    with pytest.raises(PipelabError, match="stage is -1; it counts from 0"):
        Action(Kind.F, -1, 0)
    with pytest.raises(PipelabError, match="kind is 'X'; allowed: F, I, W, B, U"):
        Action("X", 0, 0)
    with pytest.raises(PipelabError, match="F takes no members"):
        Action(Kind.F, 0, 0, (Action(Kind.B, 0, 0),))
    with pytest.raises(PipelabError, match="needs two or more members"):
        Action.overlap(Action(Kind.F, 0, 0))
    with pytest.raises(PipelabError, match="are those of its first member, 0F1"):
        Action(Kind.OVERLAP, 5, 5, (Action(Kind.F, 0, 1), Action(Kind.B, 0, 0)))
    with pytest.raises(TypeError, match=r"microbatch must be an integer, not 1.5"):
        Action(Kind.F, 0, 1.5)
    with pytest.raises(TypeError, match="must be an integer, not True"):
        Action(Kind.F, True, 0)


def test_numpy_integers_are_taken_as_integers():
    action = Action(Kind.F, np.int32(2), np.int64(0))
    assert action == Action(Kind.F, 2, 0) and type(action.stage) is int


def orders():
    return [
        [Action.parse("0F0"), Action.parse("(0F1;0B0)OVERLAP_F_B"), Action.parse("0B1")],
        [
            Action.parse("1F0"),
            Action.parse("1B0"),
            Action.parse("1F1"),
            Action.parse("1B1"),
            Action.parse("1U1"),
        ],
    ]


def test_a_table_has_one_row_a_member_and_one_cell_an_action():
    table = ActionTable.from_orders(orders())
    assert (table.num_rows, table.num_cells, table.has_overlaps) == (9, 8, True)
    assert table.cell.tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 7]
    assert table.rank.tolist() == [0] * 4 + [1] * 5
    assert [KINDS[code] for code in table.kind] == list("FFBBFBFBU")
    assert table.cell_kinds[1] == CODES[Kind.OVERLAP]
    assert table.first_rows.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert (table.cell_stages[1], table.cell_microbatches[1]) == (0, 1)


def test_a_table_gives_back_its_actions():
    table, actions = ActionTable.from_orders(orders()), [action for order in orders() for action in order]
    assert list(table.actions()) == actions
    assert [table.action(cell) for cell in range(table.num_cells)] == actions
    assert table.texts() == [str(action) for action in actions]


def test_without_overlaps_cells_are_rows():
    table = ActionTable.from_orders([[Action.parse("0F0"), Action.parse("0B0")]])
    assert table.cell is table.first_rows and not table.has_overlaps
    assert table.texts() == ["0F0", "0B0"]


def test_columns_are_read_only_copies_of_the_documented_types():
    stage = np.array([0, 0])
    table = ActionTable([0, 3], stage, [0, 0], [0, 0])
    stage[0] = 7
    assert table.stage.tolist() == [0, 0]
    assert [getattr(table, name).dtype for name in ("kind", "stage", "microbatch", "rank", "cell")] == [
        np.uint8,
        *[np.int32] * 4,
    ]
    for name in ("kind", "stage", "microbatch", "rank", "cell"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(table, name)[0] = 1


def test_equal_tables_are_equal_and_copies_stay_read_only():
    table = ActionTable.from_orders(orders())
    for other in (ActionTable.from_orders(orders()), copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert table == other and hash(table) == hash(other) and not other.stage.flags.writeable
    assert table != ActionTable.from_orders(orders()[:1])
    assert table != "table"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 0], [0], [0, 0], [0, 0]), r"stage has shape \(1,\)"),
        (([0, 0], [0, 0], [0, 0], [1, 0]), "sorted by rank"),
        (([5], [0], [0], [0]), "kind must hold integers from 0 to 4"),
        (([0], [-1], [0], [0]), "stage must hold integers from 0"),
        (([0], [0.5], [0], [0]), "stage must hold integers from 0"),
        (([0], [0], [MAX_CELLS + 1], [0]), "microbatch must hold integers from 0 to 4,194,304"),
        (([0, 0], [0, 0], [0, 0], [0, 0], [0, 2]), "without gaps"),
        (([0], [0], [0], [0], [1]), "without gaps"),
    ],
)
def test_columns_that_are_no_table_are_refused(columns, message):
    with pytest.raises(PipelabError, match=message):
        ActionTable(*columns)


def test_a_huge_micro_batch_is_refused_by_name():
    with pytest.raises(PipelabError, match=r"0F1000000000000 is refused: .* go up to 4,194,304"):
        ActionTable.from_orders([[Action(Kind.F, 0, 10**12)]])
