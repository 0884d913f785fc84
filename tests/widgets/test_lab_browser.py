"""The Lab in a real JupyterLab in a real browser: what a person does, and what a person sees."""

from __future__ import annotations

import re

import pytest

from tests.widgets.conftest import shoot

pytestmark = pytest.mark.browser

MODEL = """
import time, torch, pipelab as pp

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32)
    def forward(self, x):
        time.sleep(0.004)  # long enough to be stopped
        return torch.relu(self.linear(x))

torch.manual_seed(0)
model = torch.nn.Sequential(*[Block() for _ in range(8)], torch.nn.Linear(32, 1))
x, y = torch.randn(32, 32), torch.randn(32, 1)
loss_fn = torch.nn.functional.mse_loss
profile = pp.profile(model, x[:4], y[:4], loss_fn=loss_fn, repeats=1, progress=False)
lab = pp.Lab(model, x, y, loss_fn=loss_fn, profile=profile, schedule="1f1b", num_ranks=4, devices=pp.virtual(4))
"""

SMALL = """
import pipelab as pp
from pipelab.core.profile import Affine

names = [f"blocks.{number}" for number in range(12)]
cost = [Affine(1e-4, 2e-4 * (1 + number % 3)) for number in range(12)]
held = [Affine(0.0, 4e5)] * 12
profile = pp.Profile(names, cost, cost, cost, [4_000_000] * 12, held, held, 8, (4, 8, 16), "cpu")
lab = pp.Lab(profile, batch_size=48, schedule="1f1b", num_ranks=4, num_microbatches=8)
lab
"""

CANVAS = ".pl-timeline .pl-canvas"
ALERT = ".jupyter-widgets .widget-html [role=alert]"
PAINTED = """([selector, old]) => { const c = document.querySelector(selector);
  return c && Number(c.dataset.paints || 0) > 0 && c.getAttribute('aria-label') !== old }"""


def painted(notebook, old: str | None = None, selector: str = CANVAS) -> str:
    """The words of the first timeline once it is drawn and says something else than `old`."""
    notebook.page.wait_for_function(PAINTED, arg=[selector, old])
    return str(notebook.page.locator(selector).first.get_attribute("aria-label"))


def slider(page, label: str):
    return page.locator(f".pl-choices input[type=range][aria-label='{label}']")


def button(page, label: str):
    return page.locator("button.jupyter-button", has_text=label)


def border(page, number: int):
    """The handle of the border before stage `number`."""
    return page.locator(".pl-split [role=slider]").nth(number - 1)


def point(page, locator, right: float, down: float) -> tuple[float, float]:
    """A place in a picture, as shares of its width and height."""
    box = locator.bounding_box()
    return box["x"] + right * box["width"], box["y"] + down * box["height"]


@pytest.fixture
def notebook(open_notebook):
    """A Lab of a profile: no model, so it is there soon."""
    return open_notebook([SMALL])


@pytest.fixture
def running(open_notebook):
    """A Lab of a model, as `notebook`."""
    return open_notebook([MODEL, "lab"])


def test_choices_by_keys_and_by_typing_move_the_picture(notebook, tmp_path):
    page, old = notebook.page, painted(notebook)
    assert "Timeline of 1f1b: 4 ranks, 8 micro-batches, simulated clock" in old
    shoot(notebook, "lab-predicted", tmp_path)
    slider(page, "ranks").focus()
    page.keyboard.press("ArrowLeft")
    old = painted(notebook, old)
    assert "3 ranks" in old
    assert notebook.run("print(lab.num_ranks, lab.predicted.num_ranks, lab.split.num_stages)") == "3 3 3"
    typed = page.locator("input[aria-label='micro-batches, as a number']")
    typed.fill("16")
    typed.press("Enter")
    old = painted(notebook, old)
    for text in ("1.5", ""):
        typed.fill(text)
        typed.press("Enter")
        page.locator(ALERT, has_text="give a whole number").wait_for()
        assert typed.input_value() == "16"
        typed.fill("17")
        typed.press("Enter")
        page.locator(ALERT).wait_for(state="detached")
        typed.fill("16")
        typed.press("Enter")
        page.wait_for_timeout(300)
    page.get_by_label("show", exact=True).focus()
    page.keyboard.press("ArrowDown")
    assert notebook.run("print(lab.view)") == "both"
    assert "16 micro-batches" in old and slider(page, "micro-batches").input_value() == "16"
    assert not slider(page, "stages per rank").is_visible()
    page.get_by_label("schedule", exact=True).select_option("interleaved-1f1b")
    painted(notebook, old)
    slider(page, "stages per rank").wait_for()
    assert notebook.run("print(lab.schedule.name, lab.split.num_stages)") == "interleaved-1f1b 6"
    shoot(notebook, "lab-interleaved", tmp_path)


def test_after_copying_the_code_the_keys_are_jupyterlabs_again(notebook):
    page = notebook.page
    painted(notebook)
    button(page, "Code").click()
    page.locator(".pl-code-box button").click()
    page.get_by_text(re.compile("copied|press Ctrl")).wait_for()
    assert not page.evaluate("() => !!document.activeElement.closest('.pl-code-box')")
    cells = page.locator(".jp-CodeCell")
    before = cells.count()
    page.keyboard.press("b")
    cells.nth(before).wait_for()
    page.locator(".pl-code-box button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("b")
    cells.nth(before + 1).wait_for()


def test_a_border_moves_by_mouse_and_by_keys(notebook, tmp_path):
    page, old = notebook.page, painted(notebook)
    before = notebook.run("print(lab.split)")
    x, y = point(page, border(page, 2), 0.5, 0.5)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y, steps=8)
    page.mouse.up()
    old = painted(notebook, old)
    dragged = notebook.run("print(lab.split)")
    assert dragged != before
    shoot(notebook, "lab-dragged", tmp_path)
    border(page, 1).focus()
    page.keyboard.press("ArrowRight")
    old = painted(notebook, old)
    assert notebook.run("print(lab.split)") not in (before, dragged)
    page.keyboard.press("Control+z")
    old = painted(notebook, old)
    assert notebook.run("print(lab.split)") == dragged
    page.get_by_role("button", name="Equal time").click()
    painted(notebook, old)
    assert notebook.run("print(lab.split)") == before


def test_pointing_says_what_and_why(notebook, tmp_path):
    page = notebook.page
    painted(notebook)
    canvas, tip = page.locator(CANVAS), page.locator(".pl-tip")
    page.mouse.move(*point(page, canvas, 0.1, 0.1))
    for share in range(12, 60):  # from the axis into the first row
        page.mouse.move(*point(page, canvas, share / 100, 0.1))
        if tip.is_visible() and "0F" in tip.inner_text():
            break
    assert "0F" in tip.inner_text() and "rank 0" in tip.inner_text()
    for down in range(50, 95, 3):  # down to the last rank, which waits for the first micro-batch
        page.mouse.move(*point(page, canvas, 0.09, down / 100))
        if "ank 3 " in tip.inner_text():
            break
    page.wait_for_function("() => document.querySelector('.pl-tip').innerText.includes('waits')")
    shoot(notebook, "lab-why", tmp_path)
    page.get_by_role("button", name="Memory").first.click()
    page.get_by_role("button", name="Critical path").first.click()
    page.wait_for_function("() => document.querySelector('.pl-title').innerText.includes('ritical path')")
    assert notebook.run("print(lab.memory, lab.critical_path)") == "True True"
    shoot(notebook, "lab-memory", tmp_path)


def test_run_gives_a_measured_view_and_the_code_makes_it_again(running, tmp_path):
    notebook = running
    page, old = notebook.page, painted(notebook)
    button(page, "Run").click()
    button(page, "Stop").and_(page.locator(":enabled")).wait_for()
    page.get_by_text("Measured on 4 virtual devices").wait_for()
    old = painted(notebook, old)
    assert "virtual clock" in old
    assert button(page, "Stop").is_disabled() and button(page, "Run").is_enabled()
    shoot(notebook, "lab-measured", tmp_path)
    page.get_by_label("show", exact=True).select_option("predicted above measured")
    page.wait_for_function("() => document.querySelectorAll('.pl-timeline .pl-canvas').length === 2")
    assert "simulated clock" in painted(notebook, old)
    shoot(notebook, "lab-both", tmp_path)
    button(page, "Code").click()
    lines = page.locator(".pl-code-box pre")
    lines.wait_for()
    made = notebook.run(lines.inner_text() + "\nprint(plan == lab.plan, step.trace.clock)")
    assert made == "True virtual"
    shoot(notebook, "lab-code", tmp_path)
    assert notebook.run("print(lab.measured.clock, lab.measured_is_current)") == "virtual True"


def test_a_stopped_run_leaves_all_well_and_the_kernel_answers_meanwhile(running, tmp_path):
    notebook = running
    page, old = notebook.page, painted(notebook)
    button(page, "Run").click()
    assert notebook.run("print(lab.running)") == "True"
    slider(page, "micro-batches").focus()
    page.keyboard.press("ArrowRight")
    painted(notebook, old)
    button(page, "Stop").and_(page.locator(":enabled")).click()
    page.get_by_text("Stopped: nothing was measured.").wait_for()
    shoot(notebook, "lab-stopped", tmp_path)
    state = "print(lab.num_microbatches, lab.measured, lab.running, all(p.grad is None for p in model.parameters()))"
    assert notebook.run(state) == "9 None False True"
    page.keyboard.press("ArrowLeft")
    button(page, "Run").click()
    page.get_by_text("Measured on 4 virtual devices").wait_for()
    assert notebook.run("print(lab.measured.num_ranks, repr(lab.message))") == "4 ''"


def test_what_is_impossible_and_what_breaks_is_seen(notebook, tmp_path):
    page, old = notebook.page, painted(notebook)
    notebook.run("lab.choose(schedule='interleaved-1f1b', num_ranks=6)")
    old = painted(notebook, old)
    slider(page, "ranks").focus()
    page.keyboard.press("ArrowRight")  # seven ranks with two stages each, but there are twelve layers
    alert = page.locator(ALERT)
    alert.wait_for()
    assert "needs 14 stages" in alert.inner_text()
    page.wait_for_function("() => document.querySelector('.pl-choices input[type=range]').value === '6'")
    assert notebook.run("print(lab.num_ranks)") == "6"
    shoot(notebook, "lab-explained", tmp_path)
    page.keyboard.press("ArrowLeft")
    alert.wait_for(state="detached")
    old = painted(notebook, old)
    notebook.run(
        "kept = lab._setting.__class__.report; lab._setting.__class__.report = property(lambda s: 1 / 0)"
    )
    page.keyboard.press("ArrowRight")
    alert.wait_for()
    assert "ZeroDivisionError: division by zero" in alert.inner_text()
    shoot(notebook, "lab-broken", tmp_path)
    notebook.run("lab._setting.__class__.report = kept")
    page.keyboard.press("ArrowLeft")
    alert.wait_for(state="detached")


def test_plans_are_pinned_compared_and_unpinned(notebook, tmp_path):
    page, old = notebook.page, painted(notebook)
    page.locator("button.jupyter-button", has_text=re.compile("^Pin$")).click()
    page.get_by_label("schedule", exact=True).select_option("gpipe")
    painted(notebook, old)
    page.locator("button.jupyter-button", has_text=re.compile("^Pin$")).click()
    page.get_by_role("columnheader").first.wait_for()
    table = page.locator("table", has=page.get_by_role("columnheader"))
    table.get_by_text("gpipe").first.wait_for()
    assert "1f1b" in table.inner_text()
    table.scroll_into_view_if_needed()
    shoot(notebook, "lab-pinned", tmp_path)
    assert notebook.run("print([trace.schedule.name for trace in lab.pinned])") == "['1f1b', 'gpipe']"
    table.locator("button", has_text="×").first.click()
    table.get_by_text("1f1b").first.wait_for(state="detached")
    assert notebook.run("print([trace.schedule.name for trace in lab.pinned])") == "['gpipe']"
    button(page, "Unpin").click()
    table.wait_for(state="detached")


def test_a_hand_that_is_faster_than_the_kernel_leaves_no_queue(notebook):
    page = notebook.page
    painted(notebook)
    notebook.run(
        """
import time
ticks, adopt = [], lab._adopt
def slowly(setting):
    time.sleep(0.1)
    ticks.append(setting.num_microbatches)
    adopt(setting)
lab._adopt = slowly
lab.num_microbatches = 1
ticks.clear()
"""
    )
    slider(page, "micro-batches").focus()
    page.wait_for_function(
        "() => document.querySelectorAll('.pl-choices input[type=range]')[1].value === '1'"
    )
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "() => document.querySelector('.pl-canvas').ariaLabel.includes('26 micro-batches')"
    )
    drawn = eval(notebook.run("print(ticks)"))
    assert drawn[-1] == 26 and len(drawn) < 15
