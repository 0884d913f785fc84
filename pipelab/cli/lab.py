"""`pipelab lab`: JupyterLab on the notebooks, in a clone or from an installed wheel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pipelab
from pipelab.errors import PipelabError

FIRST_NOTEBOOK = "00_tour.ipynb"
PACKAGE = Path(pipelab.__file__).parent
IN_WHEEL = PACKAGE / "notebooks"
IN_CLONE = PACKAGE.parent / "notebooks"


def open_lab(folder: str | None, *, browser: bool, passed_on: Sequence[str] = ()) -> int:
    """Opens JupyterLab at the tour and returns when the server has been stopped.

    Args:
        folder: Where to copy the notebooks; None for the notebooks of the clone.
        browser: Whether to open a browser; the address is printed either way.
        passed_on: Further arguments for JupyterLab.

    Raises:
        PipelabError: `folder` is None outside a clone, or is not a folder that can be written to.
    """
    root = _clone_notebooks() if folder is None else copy_notebooks(Path(folder).expanduser())
    from jupyterlab.labapp import LabApp

    LabApp.launch_instance(argv=lab_arguments(root, browser=browser, passed_on=passed_on))
    return 0


def lab_arguments(root: Path, *, browser: bool, passed_on: Sequence[str] = ()) -> list[str]:
    """JupyterLab's own command line; what the user passes on comes last and so wins."""
    arguments = [
        f"--ServerApp.root_dir={root.resolve()}",
        f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}",
        # a notebook about this machine needs no news from another one
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if not browser:
        arguments.append("--no-browser")
    if getattr(os, "geteuid", lambda: 1)() == 0:
        arguments.append("--allow-root")  # as in a container: without it JupyterLab refuses to start
    return [*arguments, *passed_on]


def copy_notebooks(folder: Path) -> Path:
    """Copies the notebooks into `folder`, makes it if need be, and keeps every file that is there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [
            source.name for source in _notebooks() if not _copy_unless_there(source, folder / source.name)
        ]
    except OSError as error:
        raise PipelabError(
            f"the notebooks cannot be copied to {folder}: {error.strerror}. Name another folder."
        ) from error
    if kept:
        print(f"Kept what was in {folder} already: {', '.join(kept)}")
    return folder


def _copy_unless_there(source: Path, target: Path) -> bool:
    try:
        with (
            source.open("rb") as read,
            target.open("xb") as write,
        ):  # "x" fails where a file is, also one made just now
            shutil.copyfileobj(read, write)
    except FileExistsError:
        return False
    return True


def _notebooks() -> list[Path]:
    """The notebooks that came with this pipelab, in a wheel or in a clone."""
    for home in (IN_WHEEL, IN_CLONE):
        if (home / FIRST_NOTEBOOK).is_file():
            return sorted(home.glob("*.ipynb"))
    raise PipelabError(
        f"this installation of pipelab has no notebooks: neither {IN_WHEEL} nor {IN_CLONE} has "
        f"{FIRST_NOTEBOOK}"
    )


def _clone_notebooks() -> Path:
    if (IN_CLONE / FIRST_NOTEBOOK).is_file() and not IN_WHEEL.is_dir():
        return IN_CLONE
    raise PipelabError(
        "say where the notebooks should be copied to, for example: pipelab lab pipelab-notebooks"
    )
