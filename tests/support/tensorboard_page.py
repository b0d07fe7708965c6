"""TensorBoard on a directory of runs, and a headless browser that opens it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Dialog, FrameLocator, Page, expect, sync_playwright

from support.programs import NO_BROWSER, launch_browser

#: Milliseconds that a test waits for TensorBoard.
PATIENCE = 30_000

# what `tensorboard` runs; our tab is added where the package is not installed
_PROGRAM = """
from absl import app
from tensorboard import default, program
from lightning_geo.dashboard.loader import GeometryLoader
plugins = default.get_plugins()
board = program.TensorBoard(plugins + [GeometryLoader] * (GeometryLoader not in plugins))
app.run(board.main, flags_parser=board.configure)
"""


@contextmanager
def tensorboard_on(directory: Path, *flags: str, run: str) -> Iterator[str]:
    """Serve a directory and yield the address once ``run`` is listed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _PROGRAM, "--logdir", str(directory), "--port", str(port), *flags]
    with (directory.parent / f"{directory.name}.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                if run.encode() in urllib.request.urlopen(f"{url}/data/runs", timeout=5).read():
                    break
            except OSError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


@contextmanager
def chromium() -> Iterator[tuple[Page, list[str]]]:
    """Yield a page, and what goes wrong on it: errors, messages of errors, dialogs."""
    with sync_playwright() as playwright:
        browser = launch_browser(playwright)
        if browser is None:
            raise RuntimeError(NO_BROWSER)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        errors: list[str] = []

        def dismissed(dialog: Dialog) -> None:
            errors.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", dismissed)
        yield page, errors
        browser.close()


def opened(page: Page, address: str, view: str) -> FrameLocator:
    """Open the tab Geometry at a view, such as ``view=map&run=a``, and wait until it is loaded."""
    page.goto("about:blank")
    page.goto(f"{address}/#lightning_geo&p.lightning_geo.view={quote(view, safe='')}")
    frame = page.frame_locator("iframe")
    expect(frame.locator(".stage")).to_be_visible(timeout=PATIENCE)
    if "summary" not in view:
        expect(frame.locator(".player output")).to_contain_text("step", timeout=PATIENCE)
    return frame
