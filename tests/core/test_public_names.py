"""The one list of public names: each loads when touched, and importing pipelab loads next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipelab


def test_a_name_is_what_its_module_holds():
    from pipelab.core import theory
    from pipelab.core.schedule import Schedule
    from pipelab.core.schedules import schedule

    assert (pipelab.Schedule, pipelab.schedule, pipelab.theory) == (Schedule, schedule, theory)


def test_names_are_about_forty_sorted_and_shown_by_dir():
    assert pipelab.__all__ == sorted(set(pipelab.__all__)) and 30 <= len(pipelab.__all__) <= 55
    assert set(pipelab.__all__) <= set(dir(pipelab))


def test_an_unknown_name_is_an_attribute_error_that_names_the_nearest():
    with pytest.raises(AttributeError, match=r"no attribute 'simulat'. Did you mean 'simulate'\?"):
        _ = pipelab.simulat
    assert not hasattr(pipelab, "nothing_like_it")


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(pipelab.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(alias.asname, node.module) for node in block.body for alias in node.names}
    homes = set(pipelab._HOMES.items())
    modules = {(name, home.rpartition(".")[0]) for name, home in pipelab._MODULES.items()}
    assert seen == homes | modules


def test_the_version_is_that_of_the_package():
    pyproject = Path(pipelab.__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == pipelab.__version__


def loaded_by(code: str) -> set[str]:
    run = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    return set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())


def test_importing_pipelab_loads_nothing_of_it_and_no_numpy():
    assert {name for name in loaded_by("import pipelab") if name.split(".")[0] in ("pipelab", "numpy")} == {
        "pipelab"
    }


def test_the_whole_core_loads_no_framework():
    loaded = loaded_by("import pipelab as pp; pp.Plan, pp.simulate, pp.compare, pp.theory, pp.balance")
    assert "pipelab.core.plan" in loaded
    assert not loaded & {"torch", "pandas", "matplotlib", "ipywidgets", "IPython", "difflib", "inspect"} - {
        "inspect"
    }


def test_a_submodule_never_takes_the_place_of_a_public_name():
    run = "import pipelab.core.schedule, pipelab.core.profile, pipelab.planning.balance, pipelab as pp"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{run}; assert callable(pp.schedule) and callable(pp.balance) and callable(pp.load)",
        ]
    )
    assert done.returncode == 0


def test_every_name_resolves_and_has_a_docstring():
    for name in pipelab.__all__:
        assert getattr(pipelab, name).__doc__, name
