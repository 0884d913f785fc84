"""The Lab for those who come later, in the dark, by keyboard, or with strange names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.widgets.conftest import shoot
from tests.widgets.test_lab_browser import CANVAS, SMALL, painted, slider

pytestmark = pytest.mark.browser

HOSTILE = """
import pipelab as pp
from pipelab.core.profile import Affine

names = ["<img src=x onerror=alert(1)>", "$x^2$ and $", "</script><script>alert(2)</script>", "a\\nb\\tc", "x" * 10_000,
         "`${alert(3)}`", "\\u202egnp.exe", "it's \\"quoted\\" \\\\ & all", "{{7*7}}",
         "e\\u0301\\u4e2d\\U0001f600", "a b", "z"]
cost = [Affine(1e-4, 2e-4)] * 12
profile = pp.Profile(names, cost, cost, cost, [4_000] * 12, cost, cost, 8, (4, 8), "cpu")
mine = pp.schedule("1f1b", num_ranks=4, num_microbatches=8).with_name("<b onclick='alert(4)'>$mine$</b>")
lab = pp.Lab(profile, batch_size=48, schedule=mine, split=names[1:4])
lab
"""

OUTLINED = """() => { const e = document.activeElement; const s = getComputedStyle(e);
  const label = e.labels && e.labels[0] ? e.labels[0].textContent : '';
  return { tag: e.tagName, inside: !!e.closest('.pipelab'),
    name: (e.getAttribute('aria-label') || label || e.textContent || e.title || '').trim(),
    outline: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 } }"""


def test_a_saved_lab_is_small_and_its_picture_outlives_the_kernel(open_notebook, tmp_path):
    notebook = open_notebook([SMALL])
    painted(notebook)
    still = notebook.page.locator(".jp-RenderedImage img")
    assert still.count() == 2  # the split and the timeline
    notebook.page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-RenderedImage img')].every(i => !i.offsetParent)"
    )  # what is live says it already
    file = notebook.save()
    assert len(file) < 300_000
    outputs = json.loads(file)["cells"][0]["outputs"]
    assert ["image/png" in output["data"] for output in outputs] == [True, True, False]
    assert "Timeline of 1f1b: 4 ranks" in outputs[1]["metadata"]["image/png"]["alt"]
    notebook.run("lab.close()")
    still.first.wait_for()
    notebook.reopen()
    still.last.wait_for()
    assert all(still.nth(number).bounding_box()["width"] > 400 for number in range(2))
    shoot(notebook, "lab-reopened", tmp_path)


def test_of_two_equal_widgets_in_one_box_no_picture_stays(open_notebook):
    box = SMALL.replace("\nlab\n", "") + (
        "\nimport ipywidgets as W; box = W.VBox([pp.TimelineView(lab.predicted) for _ in range(2)]); box"
    )
    notebook = open_notebook([box])
    painted(notebook)
    assert notebook.page.locator(".jp-RenderedImage img").count() == 2
    hidden = "() => [...document.querySelectorAll('.jp-RenderedImage img')].every(i => !i.offsetParent)"
    notebook.page.wait_for_function(hidden)
    notebook.run("for view in box.children: view.close()")
    notebook.page.wait_for_function(hidden.replace("!i", "i"))


@pytest.mark.parametrize(
    ("template", "picture"), [("lab", "img >> nth=1"), ("classic", "img[alt^='Timeline of 1f1b']")]
)
def test_without_scripts_an_exported_page_shows_the_picture(chromium, tmp_path, template, picture):
    """The template "lab" has no place for words about a picture; those that have get them."""
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SMALL)])
    nbconvert.preprocessors.ExecutePreprocessor(kernel_name="python3", timeout=120).preprocess(notebook)
    html, _ = nbconvert.HTMLExporter(template_name=template).from_notebook_node(notebook)
    page = tmp_path / "lab.html"
    page.write_text(html, encoding="utf-8")
    context = chromium.new_context(java_script_enabled=False, offline=True)
    try:
        view = context.new_page()
        view.goto(page.as_uri(), wait_until="commit")
        box = view.locator(picture).bounding_box()
        assert box["width"] > 400 and box["height"] > 150
        shots = Path(os.environ.get("PIPELAB_SHOTS") or tmp_path)
        view.screenshot(path=str(shots / f"lab-exported-{template}.png"))
    finally:
        context.close()


def test_in_the_dark_words_can_be_read(open_notebook, tmp_path):
    notebook = open_notebook([SMALL])
    painted(notebook)
    notebook.use_theme("JupyterLab Dark")
    notebook.page.wait_for_timeout(300)
    shoot(notebook, "lab-dark", tmp_path)
    ratios = notebook.page.evaluate(
        """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => {
      const a = top[3] ?? 1; return top.slice(0, 3).map((x, k) => a * x + (1 - a) * under[k]); };
  const ground = e => { for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if ((c[3] ?? 1) > 0.9) return c; } return [255, 255, 255]; };
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(x => linear(x / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const seen = [];
  for (const e of document.querySelectorAll('.pipelab *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent || e.disabled || e.closest('[disabled]') || e.closest('svg')) continue;
    const paper = ground(e), ink = over(parts(getComputedStyle(e).color), paper);
    const [a, b] = [light(paper.slice(0, 3)), light(ink)].sort((x, y) => x - y);
    seen.push([(b + 0.05) / (a + 0.05), e.textContent.slice(0, 40), e.className]);
  }
  return seen; }"""
    )
    notebook.use_theme("JupyterLab Light")  # the server remembers
    assert len(ratios) > 8
    assert not [one for one in ratios if one[0] < 4.5]


def test_names_are_data(open_notebook, tmp_path):
    notebook = open_notebook([HOSTILE])
    page = notebook.page
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    old = painted(notebook)
    shoot(notebook, "lab-hostile", tmp_path)
    notebook.run(
        "lab.split = [names[4], names[5], names[7]]; lab.memory = True; lab.pin(); lab._controls.code.click()"
    )
    painted(notebook, old)
    notebook.run("lab._say('<b>' + names[0])")
    page.locator(".pl-compare table").wait_for()
    page.locator(".pl-code-box pre").wait_for()
    page.wait_for_timeout(300)
    shoot(notebook, "lab-hostile-all", tmp_path)
    assert page.locator(".pipelab b, .pipelab img[src=x], .pipelab script").count() == 0
    assert asked == []
    assert page.evaluate("() => document.querySelector('.pipelab').scrollWidth <= innerWidth")
    exec(page.locator(".pl-code-box pre").evaluate("e => e.textContent").partition("costs =")[0], {})


def test_every_control_is_reached_by_tab_has_a_name_and_shows_the_focus(open_notebook):
    notebook = open_notebook([SMALL])
    page = notebook.page
    painted(notebook)
    notebook.run("lab.schedule = 'interleaved-1f1b'; lab.pin(); lab._controls.code.click()")
    page.locator(".pl-code-box pre").wait_for()
    page.locator(".pl-compare table").wait_for()
    wanted = page.evaluate(
        """() => [...document.querySelectorAll(
          '.pipelab :is(button, input, select, textarea, [tabindex], [role=slider])')]
      .filter(e => e.offsetParent !== null && !e.disabled && e.tabIndex >= 0).length"""
    )
    page.get_by_label("schedule", exact=True).focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")  # by key, so that the browser shows the focus
    met = []
    for _ in range(wanted + 10):
        focused = page.evaluate(OUTLINED)
        if not focused["inside"]:
            break
        met.append(focused)
        page.keyboard.press("Tab")
    assert len(met) == wanted >= 20
    assert not [one for one in met if not one["name"] or not one["outline"]]


def test_fifty_runs_of_the_cell_leave_one_lab(open_notebook):
    notebook = open_notebook([SMALL])
    page = notebook.page
    painted(notebook)
    counted = """
import gc, threading, matplotlib.pyplot as plt; from ipywidgets.widgets import widget
gc.collect(); print(len(widget._instances), len(plt.get_fignums()), threading.active_count())
"""
    notebook.run_all(1)
    before = notebook.run(counted)
    for count in range(3, 52):
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        page.wait_for_function(
            "n => document.querySelector('.jp-InputPrompt').innerText.includes(`[${n}]`)", arg=count
        )
    page.wait_for_timeout(300)
    painted(notebook)
    assert notebook.run(counted) == before
    assert page.locator(CANVAS).count() == 1
    slider(page, "ranks").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.querySelector('.pl-canvas').ariaLabel.includes('3 ranks')")
    assert re.fullmatch(r"3", notebook.run("print(lab.num_ranks)"))
