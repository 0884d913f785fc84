"""What can be measured of how a page looks and of whether everybody can use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The contrast of every piece of text with what is painted behind it, as WCAG defines it.
_CONTRASTS = """selector => {
  const parse = c => { const n = (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
                       return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => top.slice(0, 3).map((v, k) => v * top[3] + below[k] * (1 - top[3]));
  const light = c => { const [r, g, b] = c.map(v => { v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = element => { const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]); };
  const found = [];
  for (const root of document.querySelectorAll(selector)) {
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const e = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || !e.checkVisibility() || e.closest('.pl-aloud, option')) continue;
      const below = paper(e), ink = over(parse(getComputedStyle(e).color), below);
      const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
      found.push([(a + 0.05) / (b + 0.05), texts.currentNode.data.trim()]);
    } }
  return found; }"""

_UNNAMED = """selector => [...document.querySelectorAll(`${selector} :is(button, input, select, [tabindex])`)]
  .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
  .map(e => e.outerHTML)"""

NO_PICTURE = (
    "() => ![...document.querySelectorAll('.jp-OutputArea-child img')].some(e => e.checkVisibility())"
)
"""Whether every static picture has given way to the live view above which it stood."""

_HAS_THEME = "isLight => document.body.dataset.jpThemeLight === isLight"


def contrasts(page: Any, selector: str) -> list[float]:
    """The contrast of every piece of text in some elements."""
    found = page.evaluate(_CONTRASTS, selector)
    assert found, f"no text in {selector}"
    return [ratio for ratio, _ in found]


def unnamed_controls(page: Any, selector: str) -> list[str]:
    """The controls in some elements that a screen reader has no name for."""
    unnamed: list[str] = page.evaluate(_UNNAMED, selector)
    return unnamed


@contextmanager
def dark(notebook: Any) -> Iterator[None]:
    """Within it JupyterLab has its dark theme; the next notebook finds the light one again."""
    _set_theme(notebook.page, "JupyterLab Dark", "false")
    try:
        yield
    finally:
        _set_theme(notebook.page, "JupyterLab Light", "true")


def _set_theme(page: Any, theme: str, is_light: str) -> None:
    page.evaluate(
        "theme => { window.jupyterapp.commands.execute('apputils:change-theme', {theme}) }",
        theme,
    )
    page.wait_for_function(_HAS_THEME, arg=is_light)
    page.wait_for_timeout(500)  # the style sheet follows the mark
