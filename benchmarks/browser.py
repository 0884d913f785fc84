"""How long a person waits in a real JupyterLab: from a key to the new picture, and what the page spends on painting.

    python benchmarks/browser.py

Needs JupyterLab, Playwright and a Chromium, as the browser tests do. Software rendering, no GPU: the slowest way there
is. "painting" is the page's own work; "key to picture" runs from the key's time stamp to the start of the first frame
after the picture was painted, so that what the browser does to bring it onto the screen is in it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Page, sync_playwright

from tests.widgets.browser import ARGUMENTS, CHROMIUM, Notebook, jupyterlab

REPEATS = 30
WARM_UP = 4

SETUP = """
import pipelab as pp
from pipelab.core.profile import Affine

def trace(ranks, microbatches):
    one = pp.schedule("1f1b", num_ranks=ranks, num_microbatches=microbatches)
    uneven = tuple(1 + 0.1 * (stage % 3) for stage in range(ranks))
    return pp.simulate(one, pp.Costs(uneven, uneven, uneven, links=pp.Links(latency=0.2)))

def lab(ranks, microbatches):
    layers = 4 * ranks
    cost = [Affine(1e-4, 2e-4 * (1 + number % 3)) for number in range(layers)]
    held = [Affine(0.0, 4e5)] * layers
    names = [f"blocks.{number}" for number in range(layers)]
    profile = pp.Profile(names, cost, cost, cost, [4_000_000] * layers, held, held, 4, (2, 4, 8), "cpu")
    split = pp.Split([f"blocks.{number}" for number in range(4, 4 * ranks, 4)])
    return pp.Lab(profile, batch_size=4 * microbatches, schedule="1f1b", num_ranks=ranks,
                  num_microbatches=microbatches, split=split)
"""

# Notes, for each key, when it came and when the frame after the next new picture began.
WATCH = """() => {
  const canvas = document.querySelector('.pl-timeline .pl-canvas');
  window.waits = []; let key = 0;
  document.addEventListener('keydown', e => { key = e.timeStamp }, true);
  new MutationObserver(() => { if (!key) return; const from = key; key = 0;
    requestAnimationFrame(() => window.waits.push([performance.now() - from, Number(canvas.dataset.paintMs)])) })
    .observe(canvas, { attributes: true, attributeFilter: ['data-paints'] }) }"""


def waits(page: Page, keys: list[str]) -> tuple[list[float], list[float]]:
    """Press keys one after the other; milliseconds to each picture, and of painting."""
    page.evaluate("() => { window.waits.length = 0 }")
    for number, key in enumerate(keys):
        page.keyboard.press(key)
        page.wait_for_function("n => window.waits.length > n", arg=number)
        page.wait_for_timeout(
            60
        )  # a hand rests; what follows the picture, such as the saving of a zoom, gets done
    found = page.evaluate("() => window.waits")[WARM_UP:]
    return [wait for wait, _ in found], [paint for _, paint in found]


def row(what: str, limit: str, times: list[float]) -> None:
    low, middle, high = min(times), statistics.median(times), max(times)
    print(f"{what:<62} {limit:>8}   {low:7.1f} {middle:7.1f} {high:7.1f}")


def timeline(browser: object, server: object, ranks: int, microbatches: int, limit: str) -> None:
    notebook = Notebook(
        browser, server, f"timeline-{ranks}", [SETUP, f"pp.TimelineView(trace({ranks}, {microbatches}))"]
    )
    page = notebook.page
    page.wait_for_function("() => document.querySelector('.pl-timeline .pl-canvas')?.dataset.paints")
    page.evaluate(WATCH)
    page.locator(".pl-timeline .pl-canvas").focus()
    size = f"{2 * ranks * microbatches:,} actions"
    moves = (["ArrowRight", "ArrowLeft"] * REPEATS)[: REPEATS + WARM_UP]
    wait, paint = waits(page, ["+", "0"] * ((REPEATS + WARM_UP) // 2))
    row(f"{size}: painting, all or nearly all in view", limit, paint)
    row(f"{size}: key to picture, zooming in and back", "< 50", wait)
    wait, paint = waits(page, ["+"] * (REPEATS + WARM_UP))
    row(f"{size}: painting, zooming in step by step", "< 50", paint)
    row(f"{size}: key to picture, zooming in step by step", "< 50", wait)
    for _ in range(8):
        page.keyboard.press("-")
    page.wait_for_timeout(200)
    wait, paint = waits(page, moves)
    row(f"{size}: painting, panning among boxes with numbers", limit, paint)
    notebook.close()


def lab(browser: object, server: object, ranks: int, microbatches: int, limit: str) -> None:
    notebook = Notebook(browser, server, f"lab-{ranks}", [SETUP, f"lab({ranks}, {microbatches})"])
    page = notebook.page
    page.wait_for_function("() => document.querySelector('.pl-timeline .pl-canvas')?.dataset.paints")
    page.evaluate(WATCH)
    size = f"Lab at ({ranks}, {microbatches})"
    page.locator(".pl-choices input[aria-label='micro-batches']").focus()
    wait, paint = waits(page, ["ArrowLeft", "ArrowRight"] * ((REPEATS + WARM_UP) // 2))
    row(f"{size}: key on the micro-batch slider to picture", limit, wait)
    row("  of it: painting", "", paint)
    page.locator(".pl-split [role=slider]").nth(2).focus()
    wait, paint = waits(page, ["ArrowRight", "ArrowLeft"] * ((REPEATS + WARM_UP) // 2))
    row(f"{size}: key on a border to picture", limit, wait)
    notebook.close()


def main() -> None:
    print(
        f"{'milliseconds, 1f1b, (ranks, micro-batches)':<62} {'limit':>8}   {'min':>7} {'median':>7} {'max':>7}"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder)) as server,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        timeline(browser, server, 8, 625, "< 16")
        timeline(browser, server, 64, 1024, "< 50")
        lab(browser, server, 8, 64, "< 80")
        lab(browser, server, 16, 256, "< 150")
        browser.close()


if __name__ == "__main__":
    main()
