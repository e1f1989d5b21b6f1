"""The README's picture of the playground: a question answered plainly and accelerated, by a server of its own.

python scripts/playground_picture.py [FILE] [--dark]
"""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

import fastdllm
from fastdllm.serve.app import create_app
from fastdllm.serve.server import Server, listen

OUT = Path(__file__).parent.parent / "docs" / "playground.png"
WIDTH, HEIGHT, MARGIN = 1200, 800, 16


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server of the embedded model, on a free port."""
    ready, bound = threading.Event(), listen("127.0.0.1", 0)
    server = Server(create_app(fastdllm.load("tiny")), ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def picture(out: Path, scheme: str) -> None:
    with serving() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        page.goto(url)
        for _ in range(2):  # the first run of a server is slower than the others
            page.click("#run:enabled")
            page.wait_for_selector("#run:enabled")
        page.mouse.move(0, 0)
        boxes = [page.locator(part).bounding_box() for part in (".settings", "#legend")]
        end = max(box["y"] + box["height"] for box in boxes if box)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end + MARGIN}
        page.screenshot(path=out, clip=clip, full_page=True)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=OUT)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    picture(given.file, "dark" if given.dark else "light")
