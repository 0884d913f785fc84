"""The front end's scripts and styles: plain files in `static/`, joined into one text a widget, without a bundler."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_STATIC = Path(__file__).with_name("static")

_IMPORT = re.compile(r'^import\s+(?:\{[^{}]*\}\s+from\s+)?"([^"]+)";?[ \t]*\n', re.MULTILINE)
_EXPORT_LIST = re.compile(r"^export\s*\{[^{}]*\};?[ \t]*\n", re.MULTILINE)
_EXPORT = re.compile(r"^export\s+(?=(?:async\s+)?function|class|const|let)", re.MULTILINE)
_DEFAULT = re.compile(r"^export\s+default\b", re.MULTILINE)
_NAME = re.compile(
    r"^(?:export\s+)?(?:(?:async\s+)?function\s*\*?|class|const|let|var)\s+([A-Za-z_$][\w$]*)", re.MULTILINE
)


@cache
def esm(*names: str) -> str:
    """Modules of `static/` as the one module that an anywidget takes; what is imported comes before who imports it.

    The files are modules of their own, so that node can test them. Joined, they share one room: imports of each other
    fall away, only the last one exports, and no two may have a top-level name in common.

    Args:
        *names: files, the last one with `export default { render }`.

    Raises:
        ValueError: a file asks for what is not among the files before it, or two have a name in common.
    """
    parts, homes = [], dict[str, str]()
    for number, name in enumerate(names):
        text = _read(name)
        is_last = number == len(names) - 1
        if bool(_DEFAULT.search(text)) != is_last:
            raise ValueError(f"{name}: the last of the files joined has the default export, no other.")
        _check_imports(name, text, names[:number])
        for top in _NAME.findall(text):
            if top in homes:
                raise ValueError(f"{name} and {homes[top]} both have a top-level {top}. Rename one.")
            homes[top] = name
        text = _IMPORT.sub("", text)
        parts.append(text if is_last else _EXPORT.sub("", _EXPORT_LIST.sub("", text)))
    return "\n".join(f"// ---- {name}\n{part}" for name, part in zip(names, parts, strict=True))


@cache
def css(*names: str) -> str:
    """Style sheets of `static/`, one after the other."""
    return "\n".join(_read(name) for name in names)


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _check_imports(name: str, text: str, before: tuple[str, ...]) -> None:
    found = _IMPORT.findall(text)
    if len(found) != len(re.findall(r"^import\b", text, re.MULTILINE)) or re.search(r"\bimport\s*\(", text):
        raise ValueError(
            f'{name}: write imports as import {{ a, b }} from "./file.js"; nothing else can be joined.'
        )
    for source in found:
        if source.removeprefix("./") not in before:
            raise ValueError(f"{name} imports {source}, which is not joined before it.")
    for names in re.findall(r"^import\s+\{([^{}]*)\}", text, re.MULTILINE):
        if re.search(r"\bas\b", names):
            raise ValueError(f"{name} renames what it imports; joined, a thing has one name.")
