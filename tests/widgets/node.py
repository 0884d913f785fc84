"""The front end's pure scripts, run by node where node is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "pipelab" / "widgets" / "static"

needs_node = pytest.mark.skipif(
    NODE is None, reason="node is not on PATH; the browser tests use the same script"
)


def run_node(script: str, *arguments: str, folder: Path) -> str:
    """Run node; the script lies beside as a module, since a package that says "module" is not ours to ask for."""
    shutil.copy(STATIC / f"{script}.js", folder / f"{script}.under_test.mjs")
    done = subprocess.run(
        [str(NODE), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_tests_pass(script: str, folder: Path) -> None:
    """Run the tests of a script that lie in js/."""
    shutil.copy(HERE / "js" / f"{script}.test.mjs", folder)
    output = run_node(script, "--test", "--test-reporter=tap", f"{script}.test.mjs", folder=folder)
    assert "# fail 0" in output and "# pass 0" not in output
