"""torch's table: byte for byte both ways, read strictly. That torch reads it: tests/runtime/test_torch_contract.py."""

from __future__ import annotations

import contextlib
import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pp
from pipelab.core.interchange import torch_csv
from pipelab.core.strict_json import MAX_BYTES

TWO = "0F0,0F1,0B0,0B1\r\n1F0,1B0,1F1,1B1\r\n"


def writable(schedule):
    kinds = set(schedule.table.kind.tolist())
    return pp.Kind.U not in [list(pp.Kind)[k] for k in kinds] and schedule.slices == schedule.minibatches == 1


@pytest.mark.parametrize("name", list(pp.SCHEDULES))
def test_every_schedule_that_the_table_can_hold_is_read_back_equal(name):
    one = pp.schedule(name, num_ranks=4, num_microbatches=8)
    if not writable(one):
        with pytest.raises(pp.PipelabError, match=rf"^{name}.*Carry it with to_text\(\) or save\(\)"):
            one.to_csv()
        return
    assert pp.Schedule.from_csv(one.to_csv(), one.placement, name=name) == one
    if one.placement.chains == 1:
        assert pp.Schedule.from_csv(one.to_csv(), name=name) == one


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules_come_back_equal(seed, random_schedule):
    one = random_schedule(seed)
    if writable(one):
        assert pp.Schedule.from_csv(one.to_csv(), one.placement, name=one.name) == one


def test_the_text_is_what_pythons_csv_writer_makes_of_the_cells(random_schedule):
    """torch writes its rows with it."""
    for one in map(random_schedule, range(60)):
        if writable(one):
            written = io.StringIO(newline="")
            csv.writer(written).writerows(one.orders)
            assert one.to_csv() == written.getvalue()


def test_a_table_is_written_as_it_was_read():
    overlaps = "0F0,0F1,3F0,(3F1;3B0)OVERLAP_F_B,0B0,3B1,0B1\r\n1F0,2F0,1F1,2F1,2B0,1B0,2I1,1B1,2W1\r\n"
    for text in (TWO, overlaps):
        assert pp.Schedule.from_csv(text).to_csv() == text


def test_idle_cells_and_any_line_end_are_read():
    want = pp.Schedule.from_csv(TWO)
    padded = '0F0, 0F1 ,,,"0B0",0B1\n,1F0,1B0,1F1,1B1,,\n\n'
    for text in (padded, TWO.replace("\r\n", "\n"), TWO.replace("\r\n", "\r"), TWO + "\r\n"):
        assert pp.Schedule.from_csv(text) == want


def test_an_idle_cell_is_not_written():
    assert pp.Schedule.from_csv("0F0,,0B0\r\n,1F0,1B0\r\n").to_csv() == "0F0,0B0\r\n1F0,1B0\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1F0junk", r"Line 1 \(rank 0\): '1F0junk' is not an action"),
        ("0F0,0B0\n1F0;1B0", r"Line 2 \(rank 1\): '1F0;1B0' is not an action"),
        ("0F0 0B0", r"Line 1 \(rank 0\): '0F0 0B0' is not one action. Put commas between"),
        ("00F0", "'00F0' is not an action"),
        ("0F-1", "'0F-1' is not an action"),
        ("0f0", "'0f0' is not an action"),
        ("0F0,0SEND_F0,0B0", r"'0SEND_F0' is a cell of torch's lowered table"),
        ("0UNSHARD,0F0,0B0", "'0UNSHARD' is a cell of torch's lowered table"),
        ("0F0,0B0,0U0", "'0U0' is an update, and torch's table has none"),
        ("(0F0)OVERLAP_F_B", r"'\(0F0\)OVERLAP_F_B' is not an action"),
        ("(0F0;0B0", r"'\(0F0;0B0' is not an action"),
        ('0F0,"0B0', "is no line of comma-separated cells"),
        ("\ufeff0F0,0B0", "is not an action"),
        ("\x00", "is not an action"),
        ("table.csv", "'table.csv' looks like the name of a file"),
        ("", "there are no actions"),
        ("0F0,0B0\n\n1F0,1B0", "rank 1 has no actions, so its stage cannot be read"),
        ("0F0\n2F0", "stage 1 has no action"),
        ("0F9999999", "Column microbatch must hold integers from 0 to 4,194,304"),
        ("0F0," * (MAX_BYTES // 4 + 1), "5,000,004 characters; the limit is 5,000,000"),
    ],
)
@pytest.mark.timeout(5)
def test_anything_else_is_refused_with_its_line(text, message):
    with pytest.raises(pp.PipelabError, match=message):
        pp.Schedule.from_csv(text)


def test_a_table_that_waits_for_ever_is_refused_with_the_chain():
    with pytest.raises(pp.PipelabError) as refused:
        pp.Schedule.from_csv("0F0,0B0,0F1,0B1\r\n1F0,1F1,1B0,1B1\r\n", name="mine")
    assert str(refused.value).splitlines()[:5] == [
        "mine: rank 0 wants to run 0B0 but 1B0 never comes before it: 2 ranks wait for each other.",
        "  rank 0: 0B0 waits for 1B0 of rank 1, which stands behind 1F1",
        "  rank 1: 1F1 waits for 0F1 of rank 0, which stands behind 0B0",
        "Put 0F1 earlier.",
        "  rank 0:    0F0 [0B0] 0F1  0B1 ",
    ]


def test_something_else_than_text_is_a_type_error():
    with pytest.raises(TypeError, match="text must be a str, not bytes"):
        pp.Schedule.from_csv(b"0F0")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='012F,BIWU;()OVERLAP_F_B\n\r" ', max_size=40))
def test_no_text_raises_anything_else(text):
    with contextlib.suppress(pp.PipelabError):
        torch_csv.load(text)


def test_the_name_of_a_file_is_no_table_and_torchs_table_no_json(tmp_path):
    with pytest.raises(pp.PipelabError, match="looks like the name of a file"):
        pp.Schedule.from_csv(str(tmp_path / "s.csv"))
    with pytest.raises(pp.PipelabError, match=r"is no JSON. torch's table is read by Schedule.from_csv"):
        pp.load(tmp_path / "s.csv")
