"""Hostile documents are refused by name, quickly, and in little memory; files are written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.core import strict_json
from pipelab.core.interchange.json_files import load
from pipelab.core.strict_json import parse, write
from pipelab.errors import PipelabError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
@settings(max_examples=100)
def test_good_documents_are_read_as_json_reads_them(value):
    text = json.dumps(value)
    assert parse(text) == json.loads(text) == parse(text.encode())


HOSTILE = {
    "deep lists": ("[" * 100_000 + "]" * 100_000, "nested 100,000 levels deep; the limit is 64"),
    "deep lists without end": ("[" * 100_000, "nested 100,000 levels deep"),
    "deep objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested 100,000 levels deep"),
    "deep after an escaped quote": ('["\\"", ' + "[" * 100 + "]" * 100 + "]", "nested 101 levels deep"),
    "deep after a backslash": ('["\\\\", ' + "[" * 100 + "]" * 100 + "]", "nested 101 levels deep"),
    "NaN": ('{"a": [1, NaN]}', r"a\[1\] is not finite"),
    "Infinity": ('{"a": {"b": Infinity}}', r"a\.b is not finite"),
    "-Infinity": ("[-Infinity]", r"\[0\] is not finite"),
    "1e400": ('{"a": 1e400}', "a is not finite"),
    "a huge integer": ('{"a": ' + "9" * 1_000_000 + "}", "a is not finite, or an integer beyond"),
    "an integer of 20 digits": ('{"a": 18446744073709551616}', "a is not finite, or an integer beyond"),
    "equal keys": ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
    "equal keys by escapes": ('{"a": 1, "\\u0061": 3}', "has the key 'a' twice"),
    "too long": ("[" + "1," * 3_000_000 + "1]", "6,000,003 bytes; the limit is 5,000,000"),
    "too many lists": ("[" + "[]," * 300_000 + "[]]", "300,002 lists and objects; the limit is 200,000"),
    "too many objects": ("[" + '{"a":1},' * 300_000 + "1]", "300,001 lists and objects; the limit"),
    "too many keys": (
        "{" + ",".join(f'"{k}":0' for k in range(300_000)) + "}",
        "300,000 keys; the limit is 200,000",
    ),
    "no JSON": ("{'a': 1}", "is no JSON: .* at line 1, column 2"),
    "nothing": ("", "is no JSON"),
    "two documents": ("1 2", "is no JSON: Extra data"),
    "no UTF-8": (b'["\xff"]', "is not UTF-8 text"),
    "UTF-16": ('["a"]'.encode("utf-16"), "is not UTF-8 text|is no JSON"),
    "half a character": ('["\ud800"]', "is not UTF-8 text"),
    "a byte order mark": (b"\xef\xbb\xbf[]", "is no JSON"),
    "only backslashes": ("\\" * 4_000_000, "is no JSON"),
    "only quotes": ('"' * 4_000_000, "is no JSON"),
    "a string without end": ('"' + "\\n" * 2_000_000, "is no JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(10)
def test_hostile_documents_are_refused_by_name(name):
    text, message = HOSTILE[name]
    with pytest.raises(PipelabError, match=message):
        parse(text, what="plan")


def test_brackets_in_strings_are_no_nesting():
    assert parse(json.dumps(["[" * 1000, "\\" * 7 + '"' + "{" * 1000])) == [
        "[" * 1000,
        "\\" * 7 + '"' + "{" * 1000,
    ]


def test_64_levels_are_read():
    assert parse("[" * 64 + "]" * 64)
    with pytest.raises(PipelabError, match="65 levels"):
        parse("[" * 65 + "]" * 65)


def test_large_floats_are_numbers():
    assert parse("[1e300, -1e300, 9e18]") == [1e300, -1e300, 9e18]


BIGGEST = {
    "numbers": '"[" + "1.5," * 1_249_000 + "1]"',
    "integers": '"[" + "12345678," * 555_000 + "1]"',
    "strings": '"[" + \'"ab",\' * 990_000 + "1]"',
    "lists": '"[" + "[],[0],[1.5],[" * 45_000 + "]" * 45_000 + "]"',
    "objects": '"[" + \'{"abcdefghijkl":1.5},\' * 199_000 + "1]"',
    "keys": '"{" + ",".join(f\'"k{k}":{k}.5\' for k in range(199_000)) + "}"',
    "a schedule": "json.dumps({'name': 'x', 'placement': {'ranks': [0, 1]}, 'orders': ['0F0 ' * 1_200_000, '1F0']})",
    "a deadlock": """json.dumps({'name': 'x', 'placement': {'ranks': [0, 1, 0, 1]}, 'orders': [
            ' '.join([*(f'0F{i}' for i in range(N - 1)), f'2F{N - 1}', f'0F{N - 1}',
                      *(f'2F{i}' for i in range(N - 1))]),
            ' '.join([f'1F{i}' for i in range(N)] + [f'3F{i}' for i in range(N)])]})""",
}


@pytest.mark.parametrize("name", BIGGEST)
def test_the_biggest_documents_take_less_than_2_seconds_and_200_megabytes(name):
    """Read as a schedule, in a process of its own: what it takes beyond the start of Python and numpy."""
    code = """
        import json, time
        from pathlib import Path
        from pipelab.core import strict_json
        from pipelab.core.schedule import Schedule
        from pipelab.errors import PipelabError

        def kilobytes(field):
            status = Path("/proc/self/status").read_text()
            return int(status.split(field + ":")[1].split()[0])

        N = 130_000
        text = DOCUMENT
        assert 500_000 <= len(text) <= 5_000_000, len(text)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before, began = kilobytes("VmRSS"), time.process_time()
        try:
            Schedule.from_dict(strict_json.parse(text))
            raise SystemExit("was accepted")
        except PipelabError as error:
            assert len(str(error)) < 3000
        print(time.process_time() - began, (kilobytes("VmHWM") - before) / 1024)
    """
    code = textwrap.dedent(code).replace("DOCUMENT", BIGGEST[name])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 2 and megabytes < 200, done.stdout


def back(path):
    return parse(path.read_bytes())


def test_files_round_trip(tmp_path):
    write(tmp_path / "a.json", {"name": "é", "x": [1, 2.5, None, True]})
    assert back(tmp_path / "a.json") == {"name": "é", "x": [1, 2.5, None, True]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_has_the_permissions_of_any_other_new_file(tmp_path):
    write(tmp_path / "a.json", 1)
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_file_that_is_there_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "a.json"
    write(path, 1)
    with pytest.raises(PipelabError, match=r"exists. Pass overwrite=True"):
        write(path, 2)
    assert back(path) == 1
    write(path, 2, overwrite=True)
    assert back(path) == 2 and os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    sync = os.fsync

    def appear(handle):
        path.write_text("theirs")
        sync(handle)

    monkeypatch.setattr(os, "fsync", appear)
    with pytest.raises(PipelabError, match="exists"):
        write(path, 2)
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["a.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, "new", overwrite=True)
    assert back(path) == "old" and os.listdir(tmp_path) == ["a.json"]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(PipelabError, match="cannot be written"):
        write(tmp_path / "a.json", float("nan"))
    with pytest.raises(PipelabError, match="at most 5,000,000 can be read back"):
        write(tmp_path / "a.json", "x" * 5_000_000)
    with pytest.raises(PipelabError, match=r"cannot be written"):
        write(tmp_path / "a.json", "\ud800")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(10**12)  # a sparse file
    with pytest.raises(PipelabError, match=r"big.json has more than 5,000,000 bytes"):
        load(tmp_path / "big.json")


def test_the_checkers_name_the_field():
    for check, value, message in (
        (strict_json.integer, 1.0, "x must be an integer, not 1.0"),
        (strict_json.integer, 2**70, "x must be an integer"),
        (strict_json.number, "1", "x must be a finite number, not text"),
        (strict_json.number, float("inf"), "x must be a finite number, not inf"),
        (strict_json.text, None, "x must be text, not null"),
        (strict_json.text, "a" * 2000, "x has 2,000 characters; the limit is 1,000"),
        (strict_json.text, "\ud800", "x holds half a character"),
        (strict_json.items, {}, "x must be a list, not an object"),
    ):
        with pytest.raises(PipelabError, match=message):
            check(value, "x")
