"""What the tests of widgets share: a profile without a model, and a JupyterLab with a browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelab.core.profile import Profile
from tests.widgets import browser as real
from tests.widgets.profiles import profile_of


@pytest.fixture
def profile() -> Profile:
    return profile_of(12)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Server]:
    pytest.importorskip("jupyterlab")
    _need_chromium()
    with real.jupyterlab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    _need_chromium()
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=real.CHROMIUM, headless=True, args=real.ARGUMENTS)
        yield browser
        browser.close()


def _need_chromium() -> None:
    if not real.CHROMIUM:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")


@pytest.fixture
def open_notebook(
    server: real.Server, chromium: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[list[str]], real.Notebook]]:
    """open_notebook(cells): every cell is run; page errors and foreign requests fail the test at its end."""
    opened: list[real.Notebook] = []

    def go(cells: list[str]) -> real.Notebook:
        notebook = real.Notebook(chromium, server, f"{request.node.name}-{len(opened)}", cells)
        opened.append(notebook)
        assert not notebook.output_errors()
        return notebook

    yield go
    for notebook in opened:
        shoot(notebook, f"{request.node.name}-end", tmp_path)
        notebook.close()
    assert not [error for notebook in opened for error in notebook.errors]
    assert not [url for notebook in opened for url in notebook.foreign]


def shoot(notebook: real.Notebook, name: str, folder: Path) -> None:
    """Keep a screenshot, in $PIPELAB_SHOTS where it is set."""
    folder = Path(os.environ.get("PIPELAB_SHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    notebook.page.screenshot(path=str(folder / f"{name}.png"))
