"""The split editor in a real JupyterLab in a real browser: what hands and keys do, and what is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.widgets.browser import WAIT, Notebook
from tests.widgets.conftest import shoot

pytestmark = pytest.mark.browser

GPT = """
import pipelab as pp
from pipelab.core.profile import Affine

names = ["embed", *[f"blocks.{n}" for n in range(10)], "norm", "head"]
cost = [0.0004, *[0.0021] * 10, 0.0001, 0.0094]
seconds = [Affine(0.0, one / 8) for one in cost]
weights = [24_000_000, *[3_500_000] * 10, 2_000, 24_000_000]
held = [Affine(0.0, size / 8) for size in [1.5e6, *[9e6] * 10, 1.5e6, 1.2e7]]
profile = pp.Profile(names, seconds, seconds, seconds, weights, held, held, 8, (2, 4, 8), "cpu")
editor = pp.SplitEditor(profile, split=["blocks.2", "blocks.5", "blocks.8"])
seen, others = [], []

def note(change):
    seen.append(change.new)

def also(observer):
    others.append(observer)
    editor.observe(observer, "split")

editor.observe(note, "split")
"""

HOSTILE = """
import pipelab as pp
from pipelab.core.profile import Affine

names = ["<img src=x onerror=alert(1)>", "$x^2$ and $", "</script><script>alert(2)</script>", "a\\nb\\tc", "x" * 10_000,
         "`${alert(3)}`", "\\u202egnp.exe", "it's \\"quoted\\" \\\\ & all", "{{7*7}}", "e\\u0301\\u00df"]
line = [Affine(0.0, 1e-3)] * 10
profile = pp.Profile(names, line, line, line, [4_000] * 10, line, line, 8, (4, 8), "<b>gpu</b> $")
editor = pp.SplitEditor(profile, split=names[2:5])
editor
"""

MANY = """
import pipelab as pp
from pipelab.core.profile import Affine

line = [Affine(0.0, 1e-4 * (1 + n % 5) * (n % 40 != 3)) for n in range(400)]
profile = pp.Profile([f"layers.{n}" for n in range(400)], line, line, line, [10_000 + n for n in range(400)],
                     line, line, 8, (4, 8), "cpu")
editor = pp.SplitEditor(profile, num_stages=64)
editor
"""

START = """
for one in [note, *others]:
    editor.unobserve(one, "split")
others.clear()
editor.show(["blocks.2", "blocks.5", "blocks.8"], profile=pp.Profile.from_dict(profile.to_dict()), memory_limit=None)
editor.by = "time"
editor.observe(note, "split")
seen.clear()
"""

CUTS = "print(*editor.split.cuts)"

CONTRAST = """() => {
  // A canvas says what a colour looks like, however it is written; behind words lies what their parents have.
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const ctx = canvas.getContext('2d', {willReadFrequently: true});
  const over = (colour, under) => { ctx.fillStyle = `rgb(${under})`; ctx.fillRect(0, 0, 1, 1);
    ctx.fillStyle = colour; ctx.fillRect(0, 0, 1, 1); return [...ctx.getImageData(0, 0, 1, 1).data.slice(0, 3)]; };
  const behind = e => { const all = []; for (; e; e = e.parentElement) all.push(getComputedStyle(e).backgroundColor);
    return all.reduceRight((under, colour) => over(colour, under), [255, 255, 255]); };
  const light = c => c.map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, n) => sum + x * [0.2126, 0.7152, 0.0722][n], 0);
  let seen = 0; const found = [];
  for (const e of document.querySelectorAll('.pl-split *')) {
    const words = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!words || e.closest(':disabled')) continue;
    seen += 1;
    const paper = behind(e), ink = over(getComputedStyle(e).color, paper);
    const [a, b] = [light(paper), light(ink)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([e.className, e.textContent, ratio]);
  }
  return seen > 20 ? found : ['nothing was looked at']; }"""

FOCUSED = """() => { const e = document.activeElement; const s = getComputedStyle(e);
  return [e.closest('.pl-split') ? e.getAttribute('role') || e.tagName : '',
          e.getAttribute('aria-label') || e.textContent,
          s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0] }"""


def border(page, number: int):
    """The slider of the border before a stage."""
    return page.locator(".pl-split [role=slider]").nth(number - 1)


def grasp(page, number: int) -> tuple[float, float]:
    """Put the mouse on a border and press."""
    box = border(page, number).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] - 25
    page.mouse.move(x, y)
    page.mouse.down()
    return x, y


def left_of(page, layer: int) -> float:
    """Where a bar begins."""
    return page.locator(".pl-split-bar").nth(layer).bounding_box()["x"]


def button(page, name: str):
    return page.locator(".pl-split").get_by_role("button", name=name, exact=True)


def settle(notebook) -> None:
    """Until nothing that hands did is unanswered."""
    notebook.page.wait_for_function(
        "() => [...document.querySelectorAll('.pl-split')].every(e => e.dataset.waiting === 'false')"
    )


@contextmanager
def opened(server, chromium, name: str, cells: list[str]) -> Iterator[Notebook]:
    notebook = Notebook(chromium, server, name, cells)
    try:
        assert not notebook.output_errors()
        notebook.page.locator(".pl-split-band").first.wait_for()
        yield notebook
    finally:
        notebook.close()
    assert not notebook.errors
    assert not notebook.foreign


@pytest.fixture(scope="module")
def gpt(server, chromium):
    """One notebook for many tests: to open one takes longer than most of them."""
    with opened(server, chromium, "split", [GPT, "editor"]) as notebook:
        yield notebook


@pytest.fixture
def notebook(gpt):
    gpt.run(START)
    settle(gpt)
    gpt.page.wait_for_function("() => document.querySelectorAll('.pl-split [role=slider]').length === 3")
    gpt.page.mouse.move(5, 5)
    return gpt


def test_a_drag_moves_the_border_and_the_numbers_with_it_and_is_one_step(notebook, tmp_path):
    page = notebook.page
    shoot(notebook, "split-light", tmp_path)
    assert (
        "slowest is stage 3, 41.1 ms a micro-batch, 1.77 × the mean"
        in page.locator(".pl-headline").inner_text()
    )
    slowest = page.locator(".pl-split").get_by_role("listitem").nth(3)
    assert "slowest" in slowest.inner_text()
    said = "stage 3, the slowest: blocks.8 to head (4 layers), 41.1 ms a micro-batch · 89.2 MiB"
    assert slowest.get_attribute("aria-label") == said
    _, y = grasp(page, 3)
    for layer in (9, 10, 11):
        page.mouse.move(left_of(page, layer), y, steps=4)
        page.wait_for_timeout(60)
    settle(notebook)
    shoot(notebook, "split-dragging", tmp_path)
    during = notebook.run(CUTS)
    page.mouse.up()
    settle(notebook)
    assert during == notebook.run(CUTS) == "blocks.2 blocks.5 norm"  # the kernel has heard it during the drag
    assert int(notebook.run("print(len(seen))")) >= 2
    assert "31.5 ms a micro-batch, 1.36 × the mean" in page.locator(".pl-headline").inner_text()
    button(page, "Undo").click()
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.5 blocks.8"
    assert button(page, "Undo").is_disabled()
    border(page, 1).focus()
    page.keyboard.press("Control+Shift+Z")
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.5 norm"


def test_a_border_stops_at_its_neighbours_and_comes_back_to_where_it_was(notebook):
    page = notebook.page
    x, y = grasp(page, 2)
    page.mouse.move(x + 3000, y, steps=5)
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.7 blocks.8"
    page.mouse.move(0, y, steps=5)
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.3 blocks.8"
    page.mouse.move(x, y, steps=5)
    page.mouse.up()
    settle(notebook)
    assert notebook.run(f"{CUTS}; print(editor.can_undo)") == "blocks.2 blocks.5 blocks.8\nFalse"


def test_every_key_of_a_slider(notebook):
    page, said = notebook.page, []
    slider = border(page, 2)
    slider.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "PageUp", "End", "PageDown", "Home"):
        page.keyboard.press(key)
        said.append(slider.get_attribute("aria-valuenow"))
    assert said == ["8", "7", "8", "7", "9", "9", "5", "5"]
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.3 blocks.8"
    assert slider.get_attribute("aria-valuetext") == "stage 2 begins at blocks.3, layer 5 of 13"
    flags = page.locator(".pl-split-flag:visible")  # of the border at hand alone
    assert flags.all_inner_texts() == ["stage 2 begins at blocks.3"]
    assert (slider.get_attribute("aria-valuemin"), slider.get_attribute("aria-valuemax")) == ("5", "9")
    for _ in range(9):
        page.keyboard.press("Control+z")
    settle(notebook)
    assert notebook.run(f"{CUTS}; print(editor.can_undo)") == "blocks.2 blocks.5 blocks.8\nFalse"
    page.keyboard.press("b")  # to the notebook this would be a cell below
    button(page, "Equal time").focus()
    page.keyboard.press("b")
    page.wait_for_timeout(100)
    assert page.locator(".jp-Notebook .jp-Cell").count() == 2


def test_all_can_be_reached_by_tab_with_a_name_and_a_visible_focus(notebook):
    page, found = notebook.page, []
    button(page, "Equal time").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")  # now the browser knows that it is the keyboard
    while len(found) < 20:
        role, name, outlined = page.evaluate(FOCUSED)
        if not role:
            break
        assert outlined, name
        found.append(name)
        page.keyboard.press("Tab")
    buttons = ["Equal time", "Equal count", "Equal parameters", "Time", "Bytes"]
    assert found == [*buttons, *[f"stage {n} begins at" for n in (1, 2, 3)]]


def test_presets_bytes_and_a_limit(notebook, tmp_path):
    page = notebook.page
    presets = "from pipelab.planning.presets import equal_parameters, equal_count"
    for name, split in {
        "Equal time": "pp.balance(profile, 4)",
        "Equal count": "equal_count(profile, 4)",
        "Equal parameters": "equal_parameters(profile, 4)",
    }.items():
        button(page, name).click()
        settle(notebook)
        assert notebook.run(f"{presets}; print(editor.split == {split})") == "True", name
    notebook.run("editor.memory_limit = 70 * 2**20")
    button(page, "Bytes").click()
    page.wait_for_function(
        "() => document.querySelector('.pl-split-legend').innerText.includes('activations')"
    )
    assert notebook.run("print(editor.by)") == "bytes"
    page.locator(".pl-split-memory", has_text="Over the limit of 70 MiB: stage 2").wait_for()
    assert "over: " in page.locator(".pl-split-band").nth(2).inner_text()
    shoot(notebook, "split-bytes", tmp_path)


def test_setting_the_split_from_code_moves_the_borders_also_to_other_numbers(notebook):
    page = notebook.page
    notebook.run("editor.split = ['blocks.7']")
    page.wait_for_function("() => document.querySelectorAll('.pl-split [role=slider]').length === 1")
    assert border(page, 1).get_attribute("aria-valuetext") == "stage 1 begins at blocks.7, layer 9 of 13"
    notebook.run("editor.show(profile.layers[1:7])")
    page.wait_for_function("() => document.querySelectorAll('.pl-split [role=slider]').length === 6")
    assert notebook.run("print([one.num_stages for one in seen])") == "[2]"


def test_a_slow_observer_gets_no_queue_and_the_last_wish(notebook):
    page = notebook.page
    notebook.run("import time; also(lambda _: time.sleep(0.3))")
    _, y = grasp(page, 3)
    for step in range(24):
        page.mouse.move(left_of(page, 8 + step % 4), y)
    page.mouse.move(left_of(page, 8), y)
    assert border(page, 3).get_attribute("aria-valuenow") == "9"  # the page does not wait for the kernel
    page.mouse.up()
    settle(notebook)
    assert notebook.run(CUTS) == "blocks.2 blocks.5 blocks.7"
    assert int(notebook.run("print(len(seen))")) <= 8


def test_errors_of_observers_and_refusals_are_seen_in_place(notebook, tmp_path):
    page = notebook.page
    notebook.run("also(lambda _: 1 / 0)")
    border(page, 1).focus()
    page.keyboard.press("ArrowRight")
    alert = page.locator(".pl-split [role=alert]")
    alert.filter(has_text="ZeroDivisionError").wait_for()
    notebook.run("editor.unobserve(others.pop(), 'split')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => !document.querySelector('.pl-split [role=alert]').textContent")
    notebook.run("editor.split = ['nowhere']")
    alert.filter(has_text="is no layer of this profile").wait_for()
    shoot(notebook, "split-refused", tmp_path)
    assert notebook.run(CUTS) == "blocks.4 blocks.5 blocks.8"


def test_words_can_be_read_in_the_light_and_in_the_dark(notebook, tmp_path):
    page = notebook.page
    notebook.run("editor.memory_limit = 70 * 2**20")
    page.locator(".pl-split-memory", has_text="Over the limit").wait_for()
    assert page.evaluate(CONTRAST) == []
    try:
        notebook.use_theme("JupyterLab Dark")
        page.wait_for_timeout(300)
        shoot(notebook, "split-dark", tmp_path)
        assert page.evaluate(CONTRAST) == []
        notebook.run("editor.by = 'bytes'")
        page.wait_for_timeout(200)
        shoot(notebook, "split-dark-bytes", tmp_path)
        assert page.evaluate(CONTRAST) == []
    finally:
        notebook.use_theme("JupyterLab Light")


def test_the_picture_hides_while_the_editor_is_there_and_outlives_the_kernel(gpt, tmp_path):
    page = gpt.page
    still = page.locator(".jp-RenderedImage img")
    assert still.count() == 1 and not still.is_visible()
    gpt.page.evaluate("() => { window.jupyterapp.shell.currentWidget.context.save() }")
    end = time.monotonic() + WAIT / 1000
    while b"image/png" not in gpt.path.read_bytes() and time.monotonic() < end:
        page.wait_for_timeout(50)  # sleeping, nobody would let the request through
    outputs = json.loads(gpt.path.read_bytes())["cells"][1]["outputs"]
    assert "4 stages: the slowest is stage 3" in outputs[0]["metadata"]["image/png"]["alt"]
    gpt.reopen()
    still.wait_for()
    shoot(gpt, "split-reopened", tmp_path)


def test_names_are_data(server, chromium, tmp_path):
    with opened(server, chromium, "split-hostile", [HOSTILE]) as notebook:
        page, dialogs = notebook.page, []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for layer in range(10):
            page.mouse.move(left_of(page, layer) + 8, page.locator(".pl-split-bars").bounding_box()["y"] + 8)
            assert f"layer {layer + 1} of 10" in page.locator(".pl-split-status").inner_text()
        border(page, 1).focus()
        page.keyboard.press("ArrowLeft")
        settle(notebook)
        assert (
            border(page, 1).get_attribute("aria-valuetext") == "stage 1 begins at $x^2$ and $, layer 2 of 10"
        )
        assert page.locator(".pl-split img, .pl-split script, .pl-split b").count() == 0
        titles = page.locator(".pl-split-bar").evaluate_all("bars => bars.map(bar => bar.title)")
        assert "x" * 10_000 in titles[4] and "<img src=x onerror=alert(1)>" in titles[0]
        overflow = (
            "() => { const e = document.querySelector('.pl-split'); return e.scrollWidth - e.clientWidth }"
        )
        assert page.evaluate(overflow) <= 1
        shoot(notebook, "split-hostile", tmp_path)
        assert dialogs == []


def test_many_layers_in_many_stages_can_be_used(server, chromium, tmp_path):
    index = "print(profile.layers.index(editor.split.cuts[29]))"
    with opened(server, chromium, "split-many", [MANY]) as notebook:
        page, slider = notebook.page, border(notebook.page, 30)
        page.wait_for_timeout(200)
        shoot(notebook, "split-many", tmp_path)
        before = int(notebook.run(index))
        slider.focus()
        page.keyboard.press("ArrowRight")
        settle(notebook)
        assert int(notebook.run(index)) == before + 1
        _, y = grasp(page, 30)
        page.mouse.move(left_of(page, before - 1), y, steps=3)
        page.mouse.up()
        settle(notebook)
        assert int(notebook.run(index)) == before - 1
