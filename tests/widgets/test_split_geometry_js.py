"""The geometry of the split editor, run by node where node is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GEOMETRY = HERE.parents[1] / "pipelab" / "widgets" / "static" / "split_geometry.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None, reason="node is not on PATH; the browser tests use the same script"
)


def node(*arguments: str, folder: Path) -> str:
    """Run node; the script lies beside as a module, since a package that says "module" is not ours to ask for."""
    shutil.copy(GEOMETRY, folder / "split_geometry.under_test.mjs")
    done = subprocess.run(
        [str(NODE), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_geometry_holds(tmp_path):
    shutil.copy(HERE / "js" / "split_geometry.test.mjs", tmp_path)
    output = node("--test", "--test-reporter=tap", "split_geometry.test.mjs", folder=tmp_path)
    assert "# fail 0" in output and "# pass 0" not in output
