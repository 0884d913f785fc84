"""A CompareView in a real JupyterLab in a real browser."""

from __future__ import annotations

import pytest

from tests.widgets.conftest import shoot
from tests.widgets.looks import NO_PICTURE, contrasts, dark, unnamed_controls

pytestmark = pytest.mark.browser

MODEL = """
import pipelab as pp
held = pp.StageBytes(parameters=(2**20,) * 4, activations=(2**19,) * 4, outputs=(2**10,) * 4)
costs = pp.Costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, bytes=held, links=pp.Links(0.25))
def run(name):
    return pp.simulate(pp.schedule(name, num_ranks=4, num_microbatches=8), costs)
runs = {"gpipe": run("gpipe"), "1f1b": run("1f1b"), "<b>hostile</b> $x$ " + "a" * 10_000: run("zb-h1")}
view = pp.CompareView(runs)
"""

SHOW_ALL = (
    "all => [...document.querySelectorAll('.pl-canvas')].every(c => (Number(c.dataset.from) === 0) === all)"
)
"""Whether every timeline shows all of the step, or none of them does."""


@pytest.fixture
def notebook(open_notebook):
    notebook = open_notebook([MODEL, "view"])
    notebook.page.locator(".pl-compare-table").wait_for()
    return notebook


def test_timelines_and_table_in_light_and_dark(notebook, tmp_path):
    page = notebook.page
    assert page.locator(".pl-compare-table tbody tr").count() == 3
    page.wait_for_function(NO_PICTURE)  # it gives way to the live view
    boxes = [canvas.bounding_box() for canvas in page.locator(".pl-timeline canvas").all()]
    assert len({round(box["width"]) for box in boxes}) == 1 and len({round(box["x"]) for box in boxes}) == 1
    assert len({round(box["height"]) for box in boxes}) == 1
    heads = page.locator(".pl-compare-table thead th[scope=col]").all_inner_texts()
    assert heads == ["run (simulated clock)", "makespan", "bubble_fraction", "peak memory", "bytes sent"]
    assert page.locator(".pl-compare-best").count() >= 2
    frame = "() => { const f = document.querySelector('.pl-compare-frame'); return f.scrollWidth <= f.clientWidth }"
    assert page.evaluate(frame)  # nothing of the table has to be scrolled to
    assert page.locator(".pl-compare-table b").count() == 0  # names are text
    assert page.locator(".pl-compare-label").last.inner_text().startswith("3. <b>hostile</b> $x$ aaa")
    assert unnamed_controls(page, ".pl-compare") == []
    assert min(contrasts(page, ".pl-compare")) >= 4.5
    page.locator(".pl-compare-table").scroll_into_view_if_needed()
    shoot(notebook, "compare-light", tmp_path)
    with dark(notebook):
        assert min(contrasts(page, ".pl-compare")) >= 4.5
        shoot(notebook, "compare-dark", tmp_path)


def test_zooming_one_timeline_moves_all_of_them(notebook, tmp_path):
    page = notebook.page
    views = "print([part.span for part in view.children[0].children], view.span)"
    assert "(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)" in notebook.run(views)
    second = page.locator(".pl-timeline canvas").last
    box = second.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -600)
    page.keyboard.up("Control")
    page.wait_for_function(SHOW_ALL, arg=False)
    shoot(notebook, "compare-zoomed", tmp_path)
    script = "v = [part.span for part in view.children[0].children]; print(len(set(v)), view.span == v[0], v[0][1] > 0)"
    for _ in range(20):  # the page sends one message at a time; the last one may still be under way
        if (found := notebook.run(script)) == "1 True True":
            break
    assert found == "1 True True"
    notebook.run("view.span = (0, 0)")
    page.wait_for_function(SHOW_ALL, arg=True)
    assert "(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)" in notebook.run(views)


def test_runs_are_removed_by_button_and_added_from_code(notebook):
    page = notebook.page
    rows = page.locator(".pl-compare-table tbody tr")
    first = page.get_by_role("button", name="Remove gpipe")
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.pl-compare-table tbody tr').length === 2")
    assert rows.first.locator("th").inner_text().startswith("1. 1f1b")
    assert page.locator(".pl-timeline").count() == 2
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Remove 1f1b"
    notebook.run("view.add(run('gpipe'), 'again')")
    page.wait_for_function("() => document.querySelectorAll('.pl-compare-table tbody tr').length === 3")
    page.locator(".pl-timeline").nth(2).wait_for()
    page.wait_for_function(NO_PICTURE)
    assert notebook.run("print([trace.label[:5] for trace in view.traces])") == "['1f1b', '<b>ho', 'again']"
