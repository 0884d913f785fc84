"""What the README promises: its code runs as written, and its two commands are the ones that are tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def command(name: str) -> str:
    """The single line of the block that follows the marker of that name."""
    found = re.findall(rf"^<!-- command: {name} -->\n```bash\n([^\n]+)\n```$", README, flags=re.MULTILINE)
    assert len(found) == 1, f"the README has {len(found)} commands marked {name!r}"
    return found[0]


def run_block(block: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "readme.py"
    program.write_text(block, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pipelab", program.name],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_first_block_runs_as_written(tmp_path: Path):
    run = run_block(blocks("python")[0], tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.rglob("gpt.pt"))) == 1 and len(list(tmp_path.rglob("plan.json"))) == 1
    assert "0F0" in run.stdout or "F0" in run.stdout  # the grid was printed


@pytest.mark.parametrize("block", blocks("python")[1:])
def test_every_further_block_runs_by_itself(block: str, tmp_path: Path):
    run = run_block(block, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["tour", "tests"])
def test_each_command_makes_its_own_environment_within_the_pins(name: str):
    steps = command(name).split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1].startswith(".venv/bin/pip install -c constraints.txt -e ")
    assert len(steps) == 3


def test_the_first_command_opens_the_tour_and_the_second_runs_the_tests():
    assert command("tour").endswith(".venv/bin/pipelab lab")
    assert command("tests").endswith(".venv/bin/python -m pytest")
    assert (ROOT / "notebooks" / "00_tour.ipynb").is_file()


def test_ci_runs_the_readmes_own_test_command_and_does_not_repeat_it():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- command: tests -->" in script and "README.md" in script
    assert "-m pytest" not in script
    extract = re.search(r"^command=(\$\(.*\))$", script, flags=re.MULTILINE)
    assert extract, "the line of .ci/run that takes the command from the README"
    run = subprocess.run(
        ["bash", "-c", f'printf %s "{extract[1]}"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == command("tests")


def test_every_link_and_picture_of_the_readme_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target
