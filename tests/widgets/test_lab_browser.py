"""The Lab in a real JupyterLab in a real browser: what a person does, and what a person sees."""

from __future__ import annotations

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
profile = pp.profile(model, x[:4], y[:4], loss_fn=torch.nn.functional.mse_loss, repeats=1, progress=False)
lab = pp.Lab(model, x, y, loss_fn=torch.nn.functional.mse_loss, profile=profile, schedule="1f1b", num_ranks=4,
             devices=pp.virtual(4))
"""

PICTURE = "img.pipelab-picture"
ALERT = ".jupyter-widgets [role=alert]"


def slider(page, label: str):
    """The handle of the slider with a label."""
    row = page.locator(".widget-slider", has=page.get_by_text(label, exact=True))
    return row.locator(".noUi-handle").first


def button(page, label: str):
    return page.locator("button.jupyter-button", has_text=label)


def drag(page, handle, pixels: int) -> None:
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=8)
    page.mouse.up()


@pytest.fixture
def notebook(open_notebook):
    return open_notebook([MODEL, "lab"])


def test_the_picture_says_itself_in_words(notebook):
    notebook.picture(PICTURE)
    alt = notebook.page.locator(PICTURE).get_attribute("alt")
    assert "Timeline of 1f1b: 4 ranks, 8 micro-batches, simulated clock" in alt


def test_keys_on_a_slider_move_the_picture(notebook, tmp_path):
    old = notebook.picture(PICTURE)
    shoot(notebook, "lab-predicted", tmp_path)
    slider(notebook.page, "ranks").focus()
    notebook.page.keyboard.press("ArrowLeft")
    notebook.picture(PICTURE, old)
    assert notebook.run("print(lab.num_ranks, lab.predicted.num_ranks, lab.split.num_stages)") == "3 3 3"
    assert "3 ranks" in notebook.page.locator(PICTURE).get_attribute("alt")


def test_dragging_a_cut_reaches_the_kernel(notebook, tmp_path):
    old = notebook.picture(PICTURE)
    before = notebook.run("print(lab.split)")
    drag(notebook.page, slider(notebook.page, "stage 2 begins at"), 120)
    notebook.picture(PICTURE, old)
    after = notebook.run("print(lab.split)")
    assert after != before
    name = notebook.run("print(lab.split.cuts[1])")
    notebook.page.locator(".widget-html code", has_text=name).first.wait_for()
    shoot(notebook, "lab-cut", tmp_path)
    button(notebook.page, "Balance").click()
    notebook.page.wait_for_timeout(200)
    assert notebook.run("print(lab.split)") == before


def test_the_menu_changes_the_schedule_and_shows_what_it_takes(notebook, tmp_path):
    old = notebook.picture(PICTURE)
    page = notebook.page
    assert not page.get_by_text("stages per rank", exact=True).is_visible()
    menu = page.locator(".widget-dropdown", has=page.get_by_text("schedule", exact=True)).locator("select")
    menu.select_option("interleaved-1f1b")
    notebook.picture(PICTURE, old)
    page.get_by_text("stages per rank", exact=True).wait_for()
    assert notebook.run("print(lab.schedule.name, lab.split.num_stages)") == "interleaved-1f1b 8"
    shoot(notebook, "lab-interleaved", tmp_path)


def test_run_gives_a_measured_view_under_the_prediction(notebook, tmp_path):
    old = notebook.picture(PICTURE)
    page = notebook.page
    button(page, "Run").click()
    button(page, "Stop").and_(page.locator(":enabled")).wait_for()
    notebook.picture(PICTURE, old)
    page.get_by_text("Measured on 4 virtual devices").wait_for()
    alt = page.locator(PICTURE).get_attribute("alt")
    assert "simulated clock" in alt and "virtual clock" in alt
    assert button(page, "Stop").is_disabled() and button(page, "Run").is_enabled()
    page.locator(".widget-checkbox", has_text="memory").locator("input").check()
    page.wait_for_timeout(500)
    page.locator(PICTURE).scroll_into_view_if_needed()
    shoot(notebook, "lab-measured", tmp_path)
    assert notebook.run("print(lab.measured.clock, lab.measured_is_current)") == "virtual True"


def test_a_stopped_run_leaves_all_well(notebook, tmp_path):
    notebook.picture(PICTURE)
    page = notebook.page
    button(page, "Run").click()
    button(page, "Stop").and_(page.locator(":enabled")).click()
    page.get_by_text("Stopped: nothing was measured.").wait_for()
    shoot(notebook, "lab-stopped", tmp_path)
    state = (
        "print(lab.measured, lab.running, all(p.grad is None for p in model.parameters()), lab.message == '')"
    )
    assert notebook.run(state) == "None False True True"
    button(page, "Run").click()
    page.get_by_text("Measured on 4 virtual devices").wait_for()
    assert notebook.run("print(lab.measured.num_ranks)") == "4"


def test_the_kernel_answers_while_a_run_is_under_way(notebook):
    notebook.picture(PICTURE)
    button(notebook.page, "Run").click()
    assert notebook.run("print(lab.running)") == "True"
    old = notebook.picture(PICTURE)
    slider(notebook.page, "micro-batches").focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.picture(PICTURE, old)
    assert (
        notebook.run("print(lab.num_microbatches, lab.wait(60), lab.measured_is_current)") == "9 True False"
    )


def test_what_is_impossible_is_explained_and_the_slider_goes_back(notebook, tmp_path):
    notebook.picture(PICTURE)
    notebook.run("lab.schedule = 'interleaved-1f1b'")
    handle = slider(notebook.page, "ranks")
    handle.focus()
    notebook.page.keyboard.press("ArrowRight")  # five ranks with two stages each, but there are nine layers
    alert = notebook.page.locator(ALERT)
    alert.wait_for()
    assert "needs 10 stages" in alert.inner_text()
    notebook.page.wait_for_function(
        "h => h.getAttribute('aria-valuenow') === '4.0'", arg=handle.element_handle()
    )
    assert notebook.run("print(lab.num_ranks)") == "4"
    shoot(notebook, "lab-explained", tmp_path)
    notebook.page.keyboard.press("ArrowLeft")
    alert.wait_for(state="detached")
    assert notebook.run("print(lab.num_ranks, repr(lab.message))") == "3 ''"
