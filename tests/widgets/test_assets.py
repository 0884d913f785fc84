from __future__ import annotations

import pytest

from pipelab.widgets import assets
from pipelab.widgets.assets import css, esm


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_STATIC", tmp_path)
    esm.cache_clear()
    yield tmp_path
    esm.cache_clear()


def write(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.js").write_text(text, encoding="utf-8")


def test_joined_files_have_one_export_and_no_import(folder):
    write(
        folder,
        a="export function twice(x) { return 2 * x; }\nexport const ONE = 1;\nexport { twice as unused };\n",
        b='import { ONE } from "./a.js";\nimport {\n  twice,\n} from "./a.js";\n'
        "export default { render() { twice(ONE); } };\n",
    )
    text = esm("a.js", "b.js")
    assert "import" not in text
    assert text.count("export") == 1 and "export default" in text
    assert text.index("function twice") < text.index("twice(ONE)")


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        ("const x = 1;\n", "const x = 2;\nexport default {};\n", "b.js and a.js both have a top-level x"),
        ("export default {};\n", "export default {};\n", "a.js: the last of the files joined"),
        ("", "const x = 1;\n", "b.js: the last of the files joined"),
        ("", 'import { x } from "./c.js";\nexport default {};\n', "c.js, which is not joined before"),
        (
            "",
            'import { x } from "https://example.org/c.js";\nexport default {};\n',
            "example.org.* not joined",
        ),
        ("", 'import { x as y } from "./a.js";\nexport default {};\n', "renames"),
        ("", 'import * as a from "./a.js";\nexport default {};\n', "write imports as"),
        ("", 'export default {};\nconst a = await import("./a.js");\n', "write imports as"),
    ],
)
def test_what_cannot_be_joined_is_refused(folder, a, b, sentence):
    write(folder, a=a, b=b)
    with pytest.raises(ValueError, match=sentence):
        esm("a.js", "b.js")


def test_style_sheets_follow_each_other_and_ask_the_network_for_nothing():
    sheets = sorted(path.name for path in assets._STATIC.glob("*.css"))
    text = css("base.css", *(name for name in sheets if name != "base.css"))
    assert text.index("--pl-ink:") < text.index(".pl-choices")
    assert "url(" not in text and "@import" not in text


def test_no_script_asks_the_network_for_anything():
    for path in assets._STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8").replace(
            "http://www.w3.org/2000/svg", ""
        )  # a name, never asked for
        assert not [
            word for word in ("fetch(", "XMLHttpRequest", "http:", "https:", "WebSocket") if word in text
        ], path


def test_no_script_writes_markup_from_values():
    for path in assets._STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not [
            word
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write")
            if word in text
        ], path


def test_words_keep_their_contrast_where_there_is_no_theme():
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    import re

    colours = dict(re.findall(r"(--pl-[\w-]+): [^;]*(#[0-9a-f]{6})\)+;", css("base.css")))
    for ink in ("--pl-ink", "--pl-soft-ink", "--pl-warn"):
        for paper in ("--pl-paper", "--pl-raised"):
            if (ink, paper) != ("--pl-warn", "--pl-raised"):
                assert (light(colours[paper]) + 0.05) / (light(colours[ink]) + 0.05) >= 4.5, (ink, paper)


def test_every_script_and_style_sheet_is_part_of_the_package():
    from importlib.resources import files

    found = {part.name for part in (files("pipelab.widgets") / "static").iterdir() if part.is_file()}
    assert {path.name for path in assets._STATIC.iterdir() if path.is_file()} == found
    joined = "".join(path.read_text(encoding="utf-8") for path in assets._STATIC.parent.glob("*.py"))
    assert {name for name in found if f'"{name}"' not in joined} == set(), "no widget uses it"


def test_the_wheel_leaves_no_script_and_no_style_sheet_out():
    import tomllib
    from fnmatch import fnmatch

    root = assets._STATIC.parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    for path in assets._STATIC.iterdir():
        parts = path.relative_to(root).parts
        assert parts[0] in wheel["only-include"]
        assert not [one for one in wheel["exclude"] if any(fnmatch(part, one) for part in parts)], path


def test_the_scripts_of_every_widget_join():
    import pipelab as pp

    for widget in (pp.TimelineView, pp.SplitEditor, pp.CompareView, pp.StepView, pp.Lab):
        assert widget.__doc__
