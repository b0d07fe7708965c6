"""A person opens TensorBoard on a run and sees the charts: the real page, in headless Chromium."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_geo import GeometryMonitor
from lit import Classifier, loader, trainer

pytestmark = pytest.mark.browser

# without these, Chromium looks for its maker's servers, which CI's closed network refuses
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard on a run of 12 steps, sampled every 4."""
    directory = tmp_path_factory.mktemp("runs")
    monitor = GeometryMonitor(every_n_steps=4, strict=True)
    runner = trainer(directory, monitor, steps=12, logger=TensorBoardLogger(directory))
    runner.fit(Classifier(), loader(), loader())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", str(port)]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                if b"version_0" in urllib.request.urlopen(f"{url}/data/runs", timeout=5).read():
                    break
            except OSError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    """A page that fails the test on any error that it prints."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not errors


def show(page: Page, address: str, tab: str, content: str) -> None:
    """Open a tab of TensorBoard and wait until ``content`` is on screen."""
    page.goto(f"{address}/#{tab}")
    page.reload()  # the tab is read from the address at load only
    page.locator(content).first.wait_for(timeout=90_000)


def test_scalars_are_grouped_by_monitor_and_family(page: Page, address: str) -> None:
    show(page, address, "timeseries", "text=geometry/backward_mass")
    assert page.get_by_text("geometry_entropy").count()
    assert page.locator("card-view").count() > 4


def test_pictures_are_on_screen(page: Page, address: str) -> None:
    show(page, address, "images", "tf-image-loader img")
    tags = page.evaluate("fetch('data/plugin/images/tags').then(r => r.json())")
    (run,) = tags.values()
    assert {"geometry_entropy/entropy", "geometry_subspace/drift.query"} <= set(run)


def test_all_layers_of_a_metric_share_a_chart(page: Page, address: str) -> None:
    show(page, address, "custom_scalars", "tf-custom-scalar-multi-line-chart-card vz-line-chart2")
    layout = page.evaluate("fetch('data/plugin/custom_scalars/layout').then(r => r.json())")
    charts = {c["title"]: c["multiline"]["tag"] for group in layout["category"] for c in group["chart"]}
    assert charts["entropy"] == [r"^geometry_entropy/entropy/layer_\d+$"]
