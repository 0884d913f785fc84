"""Progress: counted for a function, shown by a bar, quiet when not wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelab.core.progress import Bar


def test_a_function_is_called_with_how_many_are_done_and_how_many_there_are():
    calls: list[tuple[int, int]] = []
    with Bar(3, lambda done, total: calls.append((done, total)), "work") as bar:
        for _ in range(3):
            bar.advance()
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("progress", [True, False])
def test_what_is_short_shows_nothing(progress, capsys):
    with Bar(2, progress, "work") as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_gone_after_an_error():
    with pytest.raises(KeyError), Bar(2, True, "work") as bar:
        raise KeyError
    assert bar._bar is not None and bar._bar.disable


def test_no_bar_is_loaded_where_none_is_wanted():
    code = "from pipelab.core.progress import Bar; Bar(1, False, 'x'); import sys; assert 'tqdm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
