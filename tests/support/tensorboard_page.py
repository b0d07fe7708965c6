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

from support.programs import NO_BROWSER, browser_context, launch_browser

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
        for _ in range(600):
            try:
                if run.encode() in urllib.request.urlopen(f"{url}/data/runs", timeout=5).read():
                    break
            except OSError:
                pass
            time.sleep(0.1)
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
        yield page, _complaints(page)
        browser.close()


@contextmanager
def shared_chromium(width: int, height: int) -> Iterator[tuple[Page, list[str]]]:
    """The same in the browser of this process, in a profile of its own."""
    with browser_context(viewport={"width": width, "height": height}) as context:
        page = context.new_page()
        yield page, _complaints(page)


def _complaints(page: Page) -> list[str]:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def dismiss(dialog: Dialog) -> None:
        errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    return errors


def opened(page: Page, address: str, view: str, query: str = "") -> FrameLocator:
    """Open the tab Geometry at a view, such as ``view=map&run=a``, and wait until it is loaded.

    Where TensorBoard's page is on screen already, the tab's frame alone is loaded: the page takes five
    times as long.
    """
    tab = f"{address}/{query}#lightning_geo"
    whole = tab + _fragment(view)
    if page.url.startswith(tab) and len(page.frames) == 2:
        # emptied first: until it goes, the tab that was shown writes its own view to the address
        frame, blank = "document.querySelector('iframe').contentWindow.location", "about:blank"
        page.evaluate(f"{frame}.replace('{blank}')")
        page.wait_for_function(f"{frame}.href === '{blank}'")
        page.evaluate("address => history.replaceState(history.state, '', address)", whole)
        page.evaluate(f"{frame}.replace('{address}/data/plugin_entry.html?name=lightning_geo')")
    else:
        page.goto("about:blank")
        page.goto(whole)
    return _shown(page, view)


def _fragment(view: str) -> str:
    return f"&p.lightning_geo.view={quote(view, safe='')}"


def _shown(page: Page, view: str) -> FrameLocator:
    frame = page.frame_locator("iframe")
    expect(frame.locator(".stage")).to_be_visible(timeout=PATIENCE)
    if "view=" in view and not any(name in view for name in ("view=summary", "view=runs")):
        expect(frame.locator(".player output")).to_contain_text("step", timeout=PATIENCE)
    return frame
