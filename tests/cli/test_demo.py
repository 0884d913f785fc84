"""`pipelab demo`: what it refuses before it works, and what it prints and writes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipelab as pp
from pipelab import cli
from pipelab.cli import demo

FIGURES = {"stages.png", *(f"{name}{what}.png" for name in demo.NAMES for what in ("", "_memory"))}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same demo on a model that takes milliseconds."""
    for name, value in {"LAYERS": 4, "WIDTH": 32, "HEADS": 2, "VOCAB": 64, "CONTEXT": 16}.items():
        monkeypatch.setattr(demo, name, value)


@pytest.mark.parametrize("steps", ["0", "-3", "1000000000000"])
def test_a_number_of_steps_that_will_not_do_is_refused_at_once(steps: str, capsys):
    assert cli.main(["demo", "--steps", steps]) == 2
    assert f"--steps is {steps}" in capsys.readouterr().err


def test_it_prints_predicted_and_measured_step_times_and_equal_losses(small, capsys):
    assert cli.main(["demo", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    for name in demo.NAMES:
        assert re.search(
            rf"^{name} +\d+ +\d+ +[+-]\d+\.\d% +\d+\.\d +\d+\.\d +\d\.\d{{4}} +\d\.\d{{4}}$",
            printed,
            re.MULTILINE,
        )
    difference = float(re.search(r"at any step: (\S+)\.$", printed, re.MULTILINE)[1])
    assert difference < 1e-4
    assert re.search(r"(wall|virtual) clock", printed)


def test_the_loss_falls_and_is_the_same_under_every_schedule(small):
    devices = pp.virtual(2)
    runs = demo._train_all(demo._profile(devices), pp.Split(["blocks.2"]), devices, steps=4)
    first, *others = [run.losses for run in runs]
    assert len(first) == 5 and first[-1] < first[0]
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-4)


def test_the_figures_are_written_where_they_are_wanted(small, tmp_path: Path, capsys):
    folder = tmp_path / "new" / "figures"
    assert cli.main(["demo", "--steps", "1", "--figures", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert str(folder / "1f1b.png") in capsys.readouterr().out


def test_a_figure_that_is_there_is_refused_before_the_work_and_kept(tmp_path: Path, capsys):
    (tmp_path / "gpipe.png").write_text("mine")
    assert cli.main(["demo", "--figures", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "gpipe.png").read_text() == "mine"


def test_it_is_replaced_when_asked(small, tmp_path: Path):
    (tmp_path / "gpipe.png").write_text("mine")
    assert cli.main(["demo", "--steps", "1", "--figures", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "gpipe.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--figures", str(tmp_path / "file" / "figures")]) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_while_it_trains_ends_it_with_one_line():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipelab", "demo", "--steps", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()  # the first line comes when the work begins
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "pipelab demo: interrupted"
