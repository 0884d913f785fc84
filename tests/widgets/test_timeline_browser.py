"""The timeline in a real JupyterLab: what a hand does, what an eye sees, what a screen reader is told."""

from __future__ import annotations

import re

import pytest

from tests.widgets import browser as real
from tests.widgets.conftest import shoot

pytestmark = pytest.mark.browser

SETUP = """
import pipelab as pp
from pipelab.core.costs import StageBytes
from pipelab.widgets.timeline_view import TimelineView

def trace(name="1f1b", ranks=4, microbatches=8, **options):
    one = pp.schedule(name, num_ranks=ranks, num_microbatches=microbatches)
    held = StageBytes((2**30,) * ranks, (2**28,) * ranks, (0,) * ranks)
    return pp.simulate(one, pp.Costs(*([(1.0,) * ranks] * 3), bytes=held, **options))

view = TimelineView(trace())
"""
CANVAS = "canvas.pl-canvas"
FORWARD, BACKWARD = (0x8C, 0xCB, 0xEF), (0x08, 0x30, 0x6B)

AS_AT_FIRST = """() => { const c = document.querySelector('canvas.pl-canvas');
  return c.dataset.to === '33' && c.dataset.from === '0' && !document.querySelector('.pl-status').textContent }"""
PIXEL = """([number, x, y]) => {
  const c = document.querySelectorAll('canvas.pl-canvas')[number], r = c.width / c.clientWidth;
  return [...c.getContext('2d').getImageData(Math.round(x * r), Math.round(y * r), 1, 1).data].slice(0, 3) }"""
CONTRAST = """selector => { const e = document.querySelector(selector);
  const level = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  let behind = e; const paper = n => getComputedStyle(n).backgroundColor;
  while (behind.parentElement && /, 0\\)$|transparent/.test(paper(behind))) behind = behind.parentElement;
  const [a, b] = [level(getComputedStyle(e).color), level(paper(behind))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }"""


class Timeline:
    """One timeline in a page, addressed by rank and seconds."""

    def __init__(self, notebook, number=0):
        self.notebook, self.page, self.number = notebook, notebook.page, number
        self.canvas = self.page.locator(CANVAS).nth(number)
        self.root = self.page.locator(".pl-timeline").nth(number)
        self.painted(0)

    def data(self, name):
        return self.canvas.get_attribute(f"data-{name}")

    def painted(self, more_than):
        """Wait for another picture; returns how many there were."""
        script = (
            "([n, k]) => Number(document.querySelectorAll('canvas.pl-canvas')[n]?.dataset.paints || 0) > k"
        )
        self.page.wait_for_function(script, arg=[self.number, more_than])
        return int(self.data("paints"))

    def at(self, row, seconds):
        """Where that is in the canvas, in CSS pixels."""
        left, plot, top, high, begin, end = (
            float(self.data(name)) for name in ("left", "plot", "top", "row", "from", "to")
        )
        return left + (seconds - begin) / (end - begin) * plot, top + (row + 0.5) * high

    def pixel(self, row, seconds, down=0.0):
        x, y = self.at(row, seconds)
        return tuple(self.page.evaluate(PIXEL, [self.number, x, y + down * float(self.data("row"))]))

    def point(self, row, seconds):
        self.canvas.scroll_into_view_if_needed()
        box, (x, y) = self.canvas.bounding_box(), self.at(row, seconds)
        self.page.mouse.move(box["x"] + x, box["y"] + y)
        return box["x"] + x, box["y"] + y

    def click(self, row, seconds):
        self.page.mouse.click(*self.point(row, seconds))

    def tip(self, words):
        self.root.locator(".pl-tip", has_text=words).wait_for()

    def status(self, words):
        self.root.locator(".pl-status", has_text=words).wait_for()

    def kernel(self, expression, expected):
        """Wait for the kernel to know: the page sends one message at a time, and code may overtake the next."""
        found = None
        for _ in range(100):
            found = self.notebook.run(f"print({expression})")
            if found == expected:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{expression} is {found}, not {expected}")

    def shown(self):
        return round(float(self.data("from")), 6), round(float(self.data("to")), 6)


@pytest.fixture
def open_timeline(open_notebook):
    return lambda *cells: Timeline(open_notebook([SETUP, *cells]))


@pytest.fixture(scope="module")
def shared(server, chromium):
    """One notebook with one view: to open another for each test takes longer than the tests."""
    notebook = real.Notebook(chromium, server, "timeline", [SETUP, "view"])
    assert not notebook.output_errors()
    yield Timeline(notebook)
    notebook.close()
    assert not notebook.errors and not notebook.foreign


@pytest.fixture
def timeline(shared):
    """The view as it was at first."""
    shared.page.mouse.move(2, 2)
    shared.page.evaluate("() => document.activeElement?.blur()")
    shared.page.wait_for_timeout(150)  # what the last test set off has reached the kernel
    before = shared.painted(0)
    shared.notebook.run("view.selected = -1; view.span = (0, 0); view.memory = view.critical_path = False")
    shared.notebook.run("view.show(trace())")
    shared.painted(before)
    shared.page.wait_for_function(AS_AT_FIRST)
    return shared


def test_boxes_are_where_the_trace_says_and_words_say_the_same(timeline, tmp_path):
    assert timeline.pixel(0, 0.5, 0.3) == FORWARD
    assert timeline.pixel(3, 4.5, 0.3) == BACKWARD  # 3B0, from 4 s to 6 s
    assert min(timeline.pixel(0, 7.0, 0.3) + timeline.pixel(3, 1.0, 0.3)) > 180  # idle: white, or a stroke
    label = timeline.canvas.get_attribute("aria-label")
    assert label == timeline.notebook.run("print(view.text)")
    assert timeline.canvas.get_attribute("role") == "img"
    assert "1f1b (4 ranks, 8 micro-batches): 33 s, bubble_fraction 27.3 %" in (
        timeline.root.locator(".pl-title").inner_text().replace("\xa0", " ")
    )
    # The still picture is there for those without a kernel, and out of the way for those with one.
    assert not timeline.page.locator(".jp-OutputArea img").first.is_visible()
    shoot(timeline.notebook, "timeline-light", tmp_path)


def test_an_action_is_named_and_a_gap_explained(timeline, tmp_path):
    timeline.point(1, 1.5)
    timeline.tip("1F0")
    timeline.tip("forward of micro-batch 0 on stage 1 · rank 1 · starts at 1 s, takes 1 s")
    timeline.point(2, 5.0)
    timeline.tip("Rank 2 waits 2 s for 2B0, from 4 s to 6 s: it needs 3B0 of rank 3.")
    shoot(timeline.notebook, "timeline-gap", tmp_path)
    timeline.point(0, 32.9)
    timeline.tip("0B7")
    timeline.page.mouse.move(2, 2)
    timeline.page.wait_for_function("() => document.querySelector('.pl-tip').style.visibility === 'hidden'")


def test_an_error_of_an_answer_is_seen(timeline):
    timeline.notebook.run("view._answer_why = None  # what is broken is not callable")
    timeline.point(2, 5.0)
    timeline.root.get_by_role("alert").filter(has_text="TypeError").wait_for()
    assert timeline.notebook.run("print(view.message)").startswith("TypeError")
    timeline.notebook.run("del view._answer_why")
    timeline.point(1, 1.5)
    timeline.point(2, 4.5)
    timeline.tip("Rank 2 waits 2 s for 2B0")
    timeline.page.wait_for_function("() => !document.querySelector('.pl-timeline [role=alert]').textContent")


def test_a_click_follows_a_micro_batch_and_keys_walk_on(timeline, tmp_path):
    timeline.click(1, 1.5)
    timeline.status("1F0: forward of micro-batch 0 on stage 1")
    timeline.status("Rank 1 waits 1 s for 1F0, from 0 s to 1 s: it needs 0F0 of rank 0.")
    shoot(timeline.notebook, "timeline-followed", tmp_path)
    timeline.kernel("view.trace.schedule.table.texts()[view.selected]", "1F0")
    assert timeline.pixel(0, 0.5, 0.3) == FORWARD and timeline.pixel(0, 1.5, 0.3) != FORWARD
    for key, name in (("ArrowRight", "1F1"), ("ArrowDown", "2F0"), ("ArrowUp", "1F1"), ("ArrowLeft", "1F0")):
        timeline.page.keyboard.press(key)
        timeline.status(f"{name}: forward")
    timeline.page.keyboard.press("Escape")
    timeline.page.wait_for_function("() => !document.querySelector('.pl-status').textContent")
    timeline.kernel("view.selected", "-1")
    timeline.notebook.run("view.selected = view.trace.schedule.table.texts().index('3B0')")
    timeline.status("3B0: backward of micro-batch 0 on stage 3")
    timeline.click(0, 7.0)
    timeline.page.wait_for_function("() => !document.querySelector('.pl-status').textContent")


def test_wheel_and_hand_zoom_and_pan_and_the_page_still_scrolls(timeline):
    timeline.point(1, 11.0)
    timeline.page.mouse.wheel(0, -300)
    timeline.page.wait_for_timeout(200)
    assert timeline.shown() == (0, 33), "without focus or Ctrl the wheel is the page's"
    timeline.canvas.focus()
    before = timeline.painted(0)
    timeline.point(1, 11.0)
    timeline.page.mouse.wheel(0, -300)
    timeline.painted(before)
    begin, end = timeline.shown()
    assert end - begin < 32 and abs((11 - begin) / (end - begin) - 1 / 3) < 0.01
    x, y = timeline.point(1, 11.0)
    timeline.page.mouse.down()
    timeline.page.mouse.move(x - 120, y, steps=4)
    timeline.page.mouse.up()
    timeline.page.wait_for_timeout(300)
    assert timeline.shown()[0] > begin and timeline.notebook.run("print(view.selected)") == "-1"
    timeline.kernel("tuple(round(time, 6) for time in view.span)", str(timeline.shown()))
    timeline.page.mouse.dblclick(x, y)
    timeline.page.wait_for_timeout(300)
    assert timeline.shown() == (0, 33)
    timeline.kernel("view.span", "(0.0, 0.0)")
    timeline.notebook.run("view.span = (3, 9)")
    timeline.page.wait_for_function("() => document.querySelector('canvas.pl-canvas').dataset.from === '3'")


def test_keys_belong_to_the_timeline_while_it_has_the_focus(timeline, tmp_path):
    timeline.canvas.focus()
    for key, shown in (
        ("+", (3.3, 29.7)),
        ("ArrowRight", (5.94, 32.34)),
        ("-", (0, 33)),
        ("+", (3.3, 29.7)),
        ("0", (0, 33)),
    ):
        before = timeline.painted(0)
        timeline.page.keyboard.press(key)
        timeline.painted(before)
        assert timeline.shown() == shown
    timeline.page.keyboard.press("Enter")
    timeline.status("stage 0")
    timeline.page.keyboard.press("c")
    timeline.root.locator(".pl-subtitle", has_text="critical path: ").wait_for()
    timeline.page.keyboard.press("m")
    timeline.page.wait_for_function("() => document.querySelector('canvas.pl-canvas').clientHeight > 200")
    timeline.page.wait_for_timeout(200)
    shoot(timeline.notebook, "timeline-path-memory", tmp_path)
    timeline.kernel("(view.critical_path, view.memory)", "(True, True)")
    assert "Critical path: " in timeline.canvas.get_attribute("aria-label")
    assert timeline.page.locator(".jp-CodeCell").count() == 2, "m would have made a heading of the cell"
    assert timeline.page.locator(".jp-MarkdownCell").count() == 0


def test_every_button_is_reached_by_tab_and_has_a_name_and_a_visible_focus(timeline):
    timeline.page.evaluate("() => document.querySelector('.pl-timeline button').focus()")
    names = []
    for _ in range(5):
        names.append(
            timeline.page.evaluate(
                "() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.textContent }"
            )
        )
        timeline.page.keyboard.press("Tab")
        outline = timeline.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    timeline.page.locator(".pl-tools button").first.focus()
    timeline.page.keyboard.press("m")
    timeline.page.wait_for_timeout(300)
    assert timeline.page.locator(".jp-MarkdownCell").count() == 0, "JupyterLab took the key of a button"
    timeline.canvas.focus()
    assert names == ["Zoom out (-)", "Zoom in (+)", "Show all of the step (0)", "Critical path", "Memory"]
    assert timeline.page.evaluate("() => document.activeElement.matches('canvas.pl-canvas')")
    timeline.page.keyboard.press("Shift+Tab")
    timeline.page.keyboard.press("Space")
    timeline.root.locator("button[aria-pressed=true]", has_text="Memory").wait_for()
    timeline.root.get_by_role("button", name="Zoom in (+)").click()
    timeline.page.wait_for_function(
        "() => Number(document.querySelector('canvas.pl-canvas').dataset.from) > 0"
    )


def test_another_trace_from_code_moves_the_picture_and_drops_what_was_asked(timeline):
    timeline.point(2, 5.0)
    timeline.tip("Rank 2 waits")
    before = timeline.painted(0)
    timeline.notebook.run("view.show(trace('gpipe', 3, 6), remark='another plan')")
    timeline.painted(before)
    timeline.page.wait_for_function("() => document.querySelector('canvas.pl-canvas').dataset.rows === '3'")
    assert "gpipe: 3 ranks" in timeline.canvas.get_attribute("aria-label")
    assert "another plan" in timeline.root.locator(".pl-title").inner_text()
    assert not timeline.root.locator(".pl-tip").is_visible()


def test_the_first_action_over_the_limit_is_marked(open_timeline, tmp_path):
    timeline = open_timeline("TimelineView(trace(), memory=True, memory_limit=2.6 * 2**30)")
    timeline.root.locator(".pl-overrun", has_text="Rank 0 holds more than 2.6 GiB with 0F2 at").wait_for()
    red, green, blue = timeline.pixel(0, 2.0)
    assert red > 150 and green < 100 and blue < 100  # the frame around 0F2
    assert timeline.pixel(0, 2.5, 0.3) == FORWARD
    box = timeline.canvas.bounding_box()
    timeline.page.mouse.move(box["x"] + timeline.at(0, 10)[0], box["y"] + box["height"] - 50)
    timeline.tip("holds 2.25 GiB at 10")
    shoot(timeline.notebook, "timeline-limit", tmp_path)


def test_predictions_are_frames_and_what_has_not_happened_is_faint(open_timeline, tmp_path):
    timeline = open_timeline(
        "one = trace(links=pp.Links(latency=0.5)); both = TimelineView(one, predicted=trace())", "both"
    )
    timeline.root.locator(".pl-legend", has_text="outline: predicted").wait_for()
    assert timeline.pixel(1, 2.0, 0.2) == FORWARD
    assert max(timeline.pixel(1, 1.25, -0.4)) < 160  # the upper edge of the frame that begins at 1 s
    shoot(timeline.notebook, "timeline-predicted", tmp_path)
    timeline.notebook.run("both.moment = 10")
    script = """() => { const c = document.querySelector('canvas.pl-over'), x = c.width - 60;
      return c.getContext('2d').getImageData(x, 20, 1, 1).data[3] > 100 }"""
    timeline.page.wait_for_function(script)


def test_dark_paper_keeps_every_word_readable(timeline, tmp_path):
    timeline.notebook.run("view.critical_path = True")
    timeline.root.locator(".pl-subtitle", has_text="critical path").wait_for()
    timeline.point(1, 1.5)
    timeline.click(1, 1.5)
    before = timeline.painted(0)
    words = (
        ".pl-headline",
        ".pl-subtitle",
        ".pl-status",
        ".pl-hint",
        ".pl-legend-entry",
        ".pl-tip",
        ".pl-tools button",
    )
    try:
        for theme in ("JupyterLab Dark", "JupyterLab Light"):
            timeline.notebook.set_theme(theme)
            before = timeline.painted(before)
            paper = timeline.pixel(3, 1.0, 0.3)
            assert (max(paper) < 120) == (theme == "JupyterLab Dark")
            for selector in words:
                assert timeline.page.evaluate(CONTRAST, f".pl-timeline {selector}") >= 4.5, (theme, selector)
            if theme == "JupyterLab Dark":
                shoot(timeline.notebook, "timeline-dark", tmp_path)
    finally:
        timeline.notebook.set_theme("JupyterLab Light")


def test_hostile_names_are_text(open_timeline, tmp_path):
    timeline = open_timeline(
        r"""
name = '</script><img src=x onerror="window.hit=1"><b>bold</b> $x^2$ \n\r\u202e' + 'y' * 10_000
hostile = TimelineView(trace().with_label(name), critical_path=True, memory=True)
hostile.title = ""
hostile""",
    )
    title = timeline.root.locator(".pl-headline").inner_text()
    assert "<img src=x" in title and len(title) < 160
    assert timeline.page.locator(".pl-timeline b, .pl-timeline img").count() == 0
    timeline.notebook.run("hostile.title = name")
    timeline.page.wait_for_function(
        "() => document.querySelector('.pl-headline').textContent.startsWith('</script>')"
    )
    assert len(timeline.root.locator(".pl-headline").inner_text()) <= 111
    timeline.point(1, 1.5)
    timeline.tip("1F0")
    shoot(timeline.notebook, "timeline-hostile", tmp_path)
    assert timeline.page.evaluate("() => window.hit") is None


def test_linked_views_zoom_together_on_one_axis(open_notebook):
    cell = """
import ipywidgets as W
a = TimelineView(trace(), compact=True, time_stop=45)
b = TimelineView(trace('gpipe', links=pp.Links(latency=1)), compact=True, time_stop=45)
link = W.jslink((a, 'span'), (b, 'span'))
W.VBox([a, b])"""
    notebook = open_notebook([SETUP, cell])
    first, second = Timeline(notebook, 0), Timeline(notebook, 1)
    assert first.shown() == second.shown() == (0, 45)
    assert not first.root.locator("button").first.is_visible()
    before = second.painted(0)
    first.canvas.focus()
    notebook.page.keyboard.press("+")
    second.painted(before)
    assert first.shown() == second.shown() == (4.5, 40.5)


def test_a_hundred_thousand_actions_stay_usable(open_timeline, tmp_path):
    timeline = open_timeline("large = TimelineView(trace('1f1b', 64, 1024)); large")
    assert timeline.notebook.run("print(len(large.trace.start))") == "131072"
    shoot(timeline.notebook, "timeline-dense", tmp_path)
    mixed = timeline.pixel(0, 2000)
    assert all(
        min(a, b) - 2 <= level <= max(a, b) + 2 for level, a, b in zip(mixed, FORWARD, BACKWARD, strict=True)
    )
    timeline.canvas.focus()
    for _ in range(12):
        before = timeline.painted(0)
        timeline.page.keyboard.press("+")
        timeline.painted(before)
    assert timeline.shown()[1] - timeline.shown()[0] < 0.1 * float(
        timeline.notebook.run("print(large.trace.makespan)")
    )
    timeline.page.keyboard.press("Enter")
    timeline.status("micro-batch")
    assert re.search(r"\d+[FB]\d+: ", timeline.root.locator(".pl-status").inner_text())


def test_a_view_shown_again_and_closed_leaves_nothing_in_the_page(open_timeline):
    timeline = open_timeline("view")
    page = timeline.page
    for _ in range(3):
        page.evaluate("() => { document.querySelector('canvas.pl-canvas').dataset.old = '1' }")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell') }")
        page.wait_for_function(
            "() => document.querySelector('canvas.pl-canvas:not([data-old])')?.dataset.paints"
        )
        assert page.locator(CANVAS).count() == 1
    timeline.notebook.run("view.close()")
    page.wait_for_function("() => !document.querySelector('canvas.pl-canvas')")
    assert timeline.notebook.run("print(view.text[:16])") == "Timeline of 1f1b"
