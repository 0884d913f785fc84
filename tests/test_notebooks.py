"""The committed notebooks: run in full, no errors, small, no paths of a machine. (nbval runs them.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes: what still opens at once on the web
PATHS = re.compile(r"(?<![\w.])(/(home|root|Users|tmp|work)/|C:\\\\)")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_the_tour_is_the_first():
    assert NOTEBOOKS[0].name == "00_tour.ipynb"


def test_it_is_a_valid_notebook(notebook):
    nbformat.validate(notebook)


def test_every_cell_was_run_once_from_top_to_bottom_in_a_fresh_kernel(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_cell_is_empty_and_none_ended_in_an_error(notebook):
    for cell in notebook.cells:
        assert cell.source.strip()
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.get("text")


def test_prose_comes_first_and_the_goal_is_short(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)
    prose = [line for line in first.source.splitlines()[1:] if line.strip()]
    assert 1 <= len(prose) <= 2, "the goal in two lines"


def test_every_code_cell_stands_under_some_prose(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    for k in range(2, len(kinds)):
        assert kinds[k - 2 : k + 1] != ["code"] * 3, (
            f"three code cells in a row at cell {k}: {notebook.cells[k].source[:60]}"
        )


def test_it_has_exercises_and_says_not_answered_yet(notebook):
    checks = [cell for cell in code_cells(notebook) if ".check(" in cell.source]
    assert 2 <= len(checks) <= 3
    for cell in checks:
        assert "not answered yet" in json.dumps(cell.outputs)


def test_it_asks_for_a_prediction_and_comes_back_to_it(notebook):
    source = [cell.source for cell in code_cells(notebook)]
    asked = [k for k, text in enumerate(source) if re.search(r"^predict\w* = ", text, flags=re.MULTILINE)]
    assert asked
    for k in asked:
        name = re.search(r"^(predict\w*) = ", source[k], flags=re.MULTILINE)[1]
        assert any(name in text for text in source[k + 1 :]), f"{name} is never compared"


def test_every_picture_has_an_alternative_text(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 30


def test_no_output_needs_a_running_kernel_to_be_seen(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_it_is_small_and_names_no_path_of_the_machine_it_ran_on(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not PATHS.search(text), PATHS.search(text)


def test_it_can_be_run_by_any_python(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
