"""`pipelab lab`: which notebooks it opens, what it copies, and what it hands to JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelab import cli
from pipelab.cli import lab


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """JupyterLab is not started; the command lines that it would have got are kept."""
    from jupyterlab.labapp import LabApp

    calls: list[list[str]] = []
    monkeypatch.setattr(LabApp, "launch_instance", classmethod(lambda cls, argv: calls.append(argv)))
    return calls


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As after the installation of a wheel: the notebooks lie inside the package, no clone around it."""
    inside = tmp_path / "site" / "pipelab" / "notebooks"
    inside.mkdir(parents=True)
    for source in lab.IN_CLONE.glob("*.ipynb"):
        (inside / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(lab, "IN_WHEEL", inside)
    monkeypatch.setattr(lab, "IN_CLONE", tmp_path / "no clone")
    return inside


def test_in_a_clone_its_own_notebooks_are_opened_at_the_tour(launched: list[list[str]]):
    assert cli.main(["lab"]) == 0
    [arguments] = launched
    assert f"--ServerApp.root_dir={lab.IN_CLONE.resolve()}" in arguments
    assert "--LabApp.default_url=/lab/tree/00_tour.ipynb" in arguments
    assert "--no-browser" not in arguments


def test_options_after_two_dashes_reach_jupyterlab_last(launched: list[list[str]], tmp_path: Path):
    assert cli.main(["lab", str(tmp_path / "here"), "--no-browser", "--", "--port", "8899"]) == 0
    [arguments] = launched
    assert "--no-browser" in arguments
    assert arguments[-2:] == ["--port", "8899"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there is no root here")
@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_root_may_open_it_as_in_a_container(launched, monkeypatch, tmp_path: Path, user: int, allowed: bool):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert cli.main(["lab", str(tmp_path / "here")]) == 0
    assert ("--allow-root" in launched[0]) is allowed


def test_an_option_of_jupyterlab_without_the_dashes_is_a_usage_error(launched: list[list[str]]):
    with pytest.raises(SystemExit):
        cli.main(["lab", "--port=8899"])
    assert not launched


def test_from_a_wheel_the_notebooks_are_copied_to_the_folder_named(installed: Path, launched, tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert cli.main(["lab", str(folder)]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in installed.iterdir()
    }
    assert f"--ServerApp.root_dir={folder.resolve()}" in launched[0]


def test_a_file_that_is_there_is_kept_and_named(installed: Path, launched, tmp_path: Path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "00_tour.ipynb").write_text("my own work")
    assert cli.main(["lab", str(folder)]) == 0
    assert (folder / "00_tour.ipynb").read_text() == "my own work"
    assert (folder / "02_bubble.ipynb").exists()
    assert "00_tour.ipynb" in capsys.readouterr().out


def test_from_a_wheel_without_a_folder_it_asks_for_one(installed: Path, launched, capsys):
    assert cli.main(["lab"]) == 2
    assert "pipelab lab pipelab-notebooks" in capsys.readouterr().err
    assert not launched


def test_a_folder_that_is_a_file_is_refused_with_a_sentence(
    installed: Path, launched, tmp_path: Path, capsys
):
    (tmp_path / "file").write_text("")
    assert cli.main(["lab", str(tmp_path / "file")]) == 2
    assert "cannot be copied" in capsys.readouterr().err
    assert not launched


def test_a_package_without_notebooks_says_so(monkeypatch, launched, tmp_path: Path, capsys):
    monkeypatch.setattr(lab, "IN_WHEEL", tmp_path / "none")
    monkeypatch.setattr(lab, "IN_CLONE", tmp_path / "none either")
    assert cli.main(["lab", str(tmp_path / "here")]) == 2
    assert "no notebooks" in capsys.readouterr().err
