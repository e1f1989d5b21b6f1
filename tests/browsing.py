"""A headless browser, and pages in it that tell what went wrong and what they asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "the page is tested in Chromium through Playwright, and {} is missing"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
CONTRASTS = """all => all.map(slot => {
  const style = getComputedStyle(slot);
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  return [(high + 0.05) / (low + 0.05), style.backgroundColor];
})"""
"""Of elements, the contrast of text and background (WCAG 2.2, 1.4.3) and the background."""
SMALL = "all => all.filter(x => x.offsetWidth < 24 || x.offsetHeight < 24).map(x => x.outerHTML)"
"""Elements that are too small for a finger (WCAG 2.2, 2.5.8)."""
UNNAMED = "all => all.filter(x => !(x.innerText || x.ariaLabel || (x.labels && x.labels.length))).map(x => x.outerHTML)"
"""Controls that a screen reader has no name for."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser. Where there is none the test is skipped, but not where everything has to be tested."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "playwright" if sync_playwright is None else None if CHROMIUM else "chromium"
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING.format(missing))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, with all that went wrong in it and all that it asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.url = url
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
