"""Finding events in a file of any length: wherever the blocks are cut, and whatever stands around them."""

from __future__ import annotations

import gzip
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core.interchange.skim import MAX_EVENT, blocks, skim
from pipelab.errors import PipelabError

WANTED = re.compile(rb'"name"\s*:\s*"[0-9]F[0-9]"')
KEYS = {"about": 10_000, "base": 0}


def found_in(raw: bytes, size: int = 2**18):
    pieces = (raw[k : k + size] for k in range(0, len(raw), size))
    return [(key, json.loads(part)) for key, part in skim(pieces, WANTED, KEYS, "x.json")]


def anything(rng: random.Random, depth: int = 0):
    kind = rng.randrange(9 if depth < 5 else 6)
    if kind < 6:
        texts = [
            '"',
            "\\",
            '{"name": "1F1"}',
            "[{",
            "}]",
            '\\"',
            "ü",
            "name",
            "",
            ",",
            '"name": "1F1"',
            "x" * 50,
        ]
        return [rng.choice(texts), rng.random(), None, True, -7, "".join(rng.choices(texts, k=3))][kind]
    if kind < 8:
        return {rng.choice("abcn") + str(k): anything(rng, depth + 1) for k in range(rng.randrange(5))}
    return [anything(rng, depth + 1) for _ in range(rng.randrange(5))]


@pytest.mark.parametrize("seed", range(60))
def test_exactly_the_wanted_entries_are_found_wherever_the_file_is_cut(seed):
    rng = random.Random(seed)
    wanted, events = [], []
    for _ in range(rng.randrange(30)):
        event = {"name": "1F1" if rng.random() < 0.4 else "other", "args": anything(rng), '"name": "2F2"': 0}
        event = dict(rng.sample(list(event.items()), 3))
        events.append(event if rng.random() < 0.9 else anything(rng))
        if events[-1] is event and event["name"] == "1F1":
            wanted.append(("event", event))
    nested = {"name": "outside", "args": {"name": "1F1"}, "base": 4}
    data: object = events
    if rng.random() < 0.7:
        entries = [
            ("traceEvents", events),
            ("base", 17),
            ("about", {"rank": 3, "base": 5, "x": [nested]}),
            ("y", [nested]),
        ]
        entries += [(f"k{k}", anything(rng)) for k in range(4)]
        rng.shuffle(entries)
        data = dict(entries)
    raw = json.dumps(data, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5).encode()
    for size in (1, 7, 64, 2**18):
        found = found_in(raw, size)
        assert [item for item in found if item[0] == "event" and item[1].get("name") == "1F1"] == wanted
        if isinstance(data, dict):
            others = [item for item in found if item[0] != "event"]
            assert sorted(others, key=str) == [("about", data["about"]), ("base", 17)]


def test_events_without_commas_or_longer_than_a_block_are_found():
    filler = [{"name": "a" * 200_000 + "\\" * 7}, {"name": "1F1"}, {"name": "\\" * 300_001}, {"name": "2F2"}]
    raw = json.dumps(filler).encode()
    for size in (1000, 2**16, 2**18):
        assert [event["name"] for _, event in found_in(raw, size)] == ["1F1", "2F2"]


@pytest.mark.parametrize("size", [MAX_EVENT + 1, MAX_EVENT + 2, 2 * MAX_EVENT + 1])
def test_no_escape_is_torn_in_two(size):
    raw = json.dumps([{"name": '"' * 150_000}, {"name": "1F1"}]).encode()
    assert [event["name"] for _, event in found_in(raw, size)] == ["1F1"]


def test_events_that_are_too_long_are_passed_over_in_one_piece_or_many():
    raw = json.dumps([{"name": "1F1", "x": "a" * MAX_EVENT}, {"name": "2F2"}]).encode()
    for size in (1000, 2**18):
        assert [event["name"] for _, event in found_in(raw, size)] == ["2F2"]


def test_the_last_bracket_of_an_array_may_be_missing_and_a_mark_may_come_first():
    assert len(found_in(b'\xef\xbb\xbf \n[{"name": "1F1"}, {"name": "1F1"}')) == 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "x.json ends in the middle"),
        (b"   \n ", "x.json ends in the middle"),
        (b"\x0a\x04perfetto", "that is no JSON"),
        (b'"traceEvents"', "that is no JSON"),
        (b"{}", "x.json has no key traceEvents"),
        (b'{"traceEvents": {"name": "1F1"}}', "x.json has no key traceEvents"),
        (b'{"other": {"traceEvents": []}}', "x.json has no key traceEvents"),
        (b'{"traceEvents": [{"name": "1F1"}', "x.json ends in the middle"),
        (b'[{"name": "1F1"', "x.json ends in the middle"),
        (b'[{"name": "1F1', "x.json ends in the middle"),
        (b"[]]]", "closes more brackets than it opens"),
        (
            b'{"about": {"x": "' + b"a" * 10_000 + b'"}, "traceEvents": []}',
            "about has more than 10,000 bytes",
        ),
        (b'{"x": [' + b"], [" * 20_000, "has more than 10,000 lists and objects"),
    ],
)
def test_what_is_no_whole_trace_is_refused(raw, message):
    with pytest.raises(PipelabError, match=message):
        found_in(raw)


def test_deep_nesting_costs_nothing():
    for raw in (b'{"traceEvents": [' + b"[" * 5_000_000, b"[" + b'{"a":' * 1_000_000):
        with pytest.raises(PipelabError, match="ends in the middle"):
            found_in(raw)
    assert found_in(b"[" + b"[" * 1_000_000 + b"]" * 1_000_000 + b', {"name": "1F1"}]')[0][1] == {
        "name": "1F1"
    }


def test_blocks_count_what_they_decompress(tmp_path):
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 5_000_000 + b"]"))
    assert sum(map(len, blocks(path, 5_000_002))) == 5_000_002
    with pytest.raises(PipelabError, match=r"x.json.gz has more than 5,000,001 bytes after decompression"):
        list(blocks(path, 5_000_001))
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:50] + b"\xff" * 40 + whole[90:], whole[:-6] + b"123456"):
        path.write_bytes(damaged)
        with pytest.raises(PipelabError, match=r"x.json.gz is damaged"):
            list(blocks(path, 10**9))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='{}[]",:\\ 1Fname"', max_size=60), st.integers(1, 20))
def test_no_text_raises_anything_else_and_cuts_never_matter(text, size):
    def outcome(size):
        pieces = (raw[k : k + size] for k in range(0, len(raw), size))
        try:
            return list(skim(pieces, WANTED, KEYS, "x"))
        except PipelabError as error:
            return str(error)

    raw = text.encode()
    in_pieces, whole = outcome(size), outcome(10**6)
    assert in_pieces == whole or (isinstance(in_pieces, str) and isinstance(whole, str))
