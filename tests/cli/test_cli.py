"""The `pipelab` command: its help, its refusals, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelab import cli
from pipelab.errors import PipelabError


def pipelab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelab", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_names_both_commands_and_needs_no_torch():
    run = pipelab("--help")
    assert run.returncode == 0
    assert "lab" in run.stdout and "demo" in run.stdout


@pytest.mark.parametrize("command", ["lab", "demo"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_without_a_command_it_prints_the_help(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 0
    assert "open JupyterLab on the notebooks" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["lap"])
    assert end.value.code == 2
    assert "lap" in capsys.readouterr().err


def test_a_refusal_is_a_sentence_on_stderr_and_status_2(monkeypatch, capsys: pytest.CaptureFixture[str]):
    def refuse(*_: object) -> int:
        raise PipelabError("three ranks are wanted, and there are two devices.")

    monkeypatch.setattr(cli, "_run", refuse)
    assert cli.main(["demo"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "pipelab demo: three ranks are wanted, and there are two devices.\n"
    assert printed.out == ""


def test_ctrl_c_ends_with_one_line_and_status_130(monkeypatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "pipelab demo: interrupted"


def test_only_lab_passes_on_what_comes_after_two_dashes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--", "--port", "1"])
    assert end.value.code == 2
    assert "--port 1" in capsys.readouterr().err
