"""The geometry of the split editor, run by node where node is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelab.core.quantities import as_bytes

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


def test_bytes_read_as_python_prints_them(tmp_path):
    values = [0, 1, 999, 1000, 1023, 1024, 4 * 2**20, 123456789, 999.4 * 2**20, 999.6 * 2**20, 3.2e12, 1.5e13]
    script = "import * as g from './split_geometry.under_test.mjs';"
    script += f"console.log(JSON.stringify({json.dumps(values)}.map(g.splitBytes)))"
    (tmp_path / "bytes.mjs").write_text(script)
    assert json.loads(node("bytes.mjs", folder=tmp_path)) == [as_bytes(value) for value in values]
