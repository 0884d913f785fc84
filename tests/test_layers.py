"""The folders are layers: what each may import, and what `import pipelab` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipelab

PACKAGE = Path(pipelab.__file__).parent
FRAMEWORKS = {"torch", "pandas", "matplotlib", "ipywidgets", "anywidget", "IPython", "tqdm", "jupyterlab"}

# Each folder and the folders that it may import from. A folder may always import from itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "planning": {"errors", "core"},
    "plots": {"errors", "core"},
    "runtime": {"errors", "core"},
    "widgets": {"errors", "core", "planning", "plots", "runtime"},
    "teaching": {"errors", "core", "planning", "plots", "runtime"},
    "cli": {"errors", "core", "planning", "plots", "runtime", "widgets", "teaching"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in MAY_IMPORT)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, tree: ast.AST) -> set[str]:
    """Absolute names of the modules that the statements in `tree` import, relative imports resolved."""
    package = name_of(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from pipelab import core` names a module in its alias
            names.update(f"{module}.{alias.name}" if module == "pipelab" else module for alias in node.names)
    return names


def at_import_time(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if "TYPE_CHECKING" in ast.unparse(node.test):
                return node.orelse
            return self.generic_visit(node)

    return Prune().visit(tree)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_its_own_layer_and_those_below(path: Path):
    layer = name_of(path).split(".")[1]
    assert layer in MAY_IMPORT, f"{layer} is a new folder: say in MAY_IMPORT what it may import"
    own = {
        name.split(".")[1]
        for name in imported(path, ast.parse(path.read_text()))
        if name.startswith("pipelab.")
    }
    above = own - MAY_IMPORT[layer] - {layer}
    assert not above, f"{name_of(path)} imports from {sorted(above)}, which lie beside or above {layer}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if name_of(p).split(".")[1] in ("core", "planning", "errors")], ids=name_of
)
def test_core_and_planning_load_no_framework(path: Path):
    loaded = {name.split(".")[0] for name in imported(path, at_import_time(ast.parse(path.read_text())))}
    assert not loaded & FRAMEWORKS


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_import_pipelab_loads_no_framework_and_no_numpy():
    assert not loaded_by("import pipelab") & {*FRAMEWORKS, "numpy"}


def test_import_core_loads_no_framework():
    assert not loaded_by("import pipelab.core") & FRAMEWORKS


def test_every_public_name_is_there_and_dir_lists_it():
    assert set(pipelab.__all__) <= set(dir(pipelab))
    for name in pipelab.__all__:
        assert getattr(pipelab, name) is not None
