"""A StepView in a real JupyterLab in a real browser: what a teacher does with it."""

from __future__ import annotations

import pytest

from tests.widgets.conftest import shoot
from tests.widgets.looks import NO_PICTURE, contrasts, dark, unnamed_controls

pytestmark = pytest.mark.browser

MODEL = """
import pipelab as pp
held = pp.StageBytes(parameters=(2**20,) * 4, activations=(2**19,) * 4, outputs=(2**10,) * 4)
costs = pp.Costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, bytes=held, links=pp.Links(0.25))
trace = pp.simulate(pp.schedule("1f1b", num_ranks=4, num_microbatches=8), costs)
trace = trace.with_label("<img src=x onerror=alert(1)> $x$")
view = pp.StepView(trace)
"""

SENTENCE = ".pl-step-sentence"
AT = "n => document.querySelector('.pl-step-slider')?.getAttribute('aria-valuetext')?.startsWith(`step ${n} of`)"


@pytest.fixture
def notebook(open_notebook):
    notebook = open_notebook([MODEL, "view"])
    notebook.page.locator(".pl-step-table").wait_for()
    return notebook


def at(notebook, step: int) -> str:
    """Wait for a step, and what is said of it."""
    notebook.page.wait_for_function(AT, arg=step)
    return notebook.page.locator(SENTENCE).inner_text()


def test_keys_buttons_and_code_step(notebook, tmp_path):
    page = notebook.page
    assert at(notebook, 0) == "At 0 s: rank 0 starts 0F0; all others wait."
    page.wait_for_function(NO_PICTURE)  # it gives way to the live view
    page.locator(".pl-step-slider").focus()
    page.keyboard.press("ArrowRight")
    assert at(notebook, 1) == "At 1 s: rank 0 ends 0F0 and starts 0F1."
    page.keyboard.press("ArrowRight")
    at(notebook, 2)
    page.keyboard.press("ArrowLeft")
    at(notebook, 1)
    page.keyboard.press("End")
    last = int(notebook.run("print(view.num_steps)"))
    assert at(notebook, last).endswith("is done.")
    page.keyboard.press("Home")
    at(notebook, 0)
    page.get_by_role("button", name="One step on").click()
    at(notebook, 1)
    assert notebook.run("print(view.step, view.time)") == "1 1.0"
    notebook.run("view.go_to(9.0)")
    page.wait_for_function(
        "() => !document.querySelector('.pl-step-slider').getAttribute('aria-valuetext').startsWith('step 1 ')"
    )
    shoot(notebook, "step-light", tmp_path)
    rows = page.locator(".pl-step-table tbody tr")
    assert rows.count() == 4
    waiting = rows.and_(page.locator("[data-does=waits]")).first
    rank = waiting.locator("th").inner_text().split()[1]
    words = waiting.locator(".pl-step-words")
    sentence = notebook.run(f"print(trace.why({rank}, 9.0).sentence)")
    assert words.get_attribute("title") == sentence
    assert words.inner_text().lower() == sentence.lower().partition(": ")[2]
    assert min(contrasts(page, ".pl-step")) >= 4.5
    with dark(notebook):
        assert min(contrasts(page, ".pl-step")) >= 4.5
        shoot(notebook, "step-dark", tmp_path)


def test_it_plays_at_its_speed_and_pauses(notebook):
    page = notebook.page
    page.locator(".pl-select").select_option("8 a second")
    page.get_by_role("button", name="Play", exact=True).click()
    assert page.locator(SENTENCE).get_attribute("aria-live") == "off"  # too fast to be read aloud
    at(notebook, 4)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    step = notebook.run("print(view.step, view.playing, view.speed)").split()
    assert int(step[0]) >= 4 and step[1:] == ["False", "8.0"]
    page.wait_for_timeout(400)
    assert notebook.run("print(view.step)") == step[0]
    assert page.locator(SENTENCE).get_attribute("aria-live") == "polite"
    notebook.run("view.speed = 60; view.step = view.num_steps - 3; view.play()")
    page.wait_for_function(AT, arg=int(notebook.run("print(view.num_steps)")))
    page.get_by_role("button", name="Play", exact=True).wait_for()  # at the end it stops by itself
    assert notebook.run("print(view.playing)") == "False"
    page.locator(".pl-step-slider").focus()
    page.keyboard.press("Space")  # and begins anew
    page.get_by_role("button", name="Pause", exact=True).wait_for()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play", exact=True).wait_for()


def test_every_control_has_a_name_and_what_is_wrong_is_explained(notebook):
    page = notebook.page
    assert unnamed_controls(page, ".pl-step") == []
    heads = page.locator(".pl-step-table thead th[scope=col]").all_inner_texts()
    assert heads == ["rank", "now", "why", "in flight", "keeps"]
    assert page.locator(".pl-step-table tbody th[scope=row]").all_inner_texts() == [
        f"rank {r}" for r in range(4)
    ]
    notebook.run("import contextlib\nwith contextlib.suppress(pp.PipelabError): view.step = 999")
    alert = page.locator(".pl-step .pl-alert")
    alert.get_by_text("has the moments 0 to").wait_for()
    assert alert.locator("img").count() == 0
    page.locator(".pl-step-slider").focus()
    page.keyboard.press("ArrowRight")
    at(notebook, 1)
    assert alert.inner_text() == ""
