"""A person opens TensorBoard on a run and sees the charts: the real page, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_geo import GeometryMonitor
from support.lit import Classifier, loader, trainer
from support.tensorboard_page import tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1400, 1200)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard on a run of 12 steps, sampled every 4."""
    directory = tmp_path_factory.mktemp("runs")
    monitor = GeometryMonitor(every_n_steps=4, strict=True)
    runner = trainer(directory, monitor, steps=12, logger=TensorBoardLogger(directory))
    runner.fit(Classifier(), loader(), loader())
    with tensorboard_on(directory, run="version_0") as url:
        yield url


def show(page: Page, address: str, tab: str, content: str) -> None:
    """Open a tab of TensorBoard and wait until ``content`` is on screen."""
    page.goto("about:blank")  # the tab is read from the address at load only
    page.goto(f"{address}/#{tab}")
    page.locator(content).first.wait_for(timeout=90_000)


def test_key_metrics_are_one_group_of_scalars_and_layers_another(page: Page, address: str) -> None:
    show(page, address, "timeseries", "text=geometry/entropy")
    assert page.get_by_text("geometry_layers").count()
    assert page.locator("card-view").count() > 4


def test_pictures_are_on_screen(page: Page, address: str) -> None:
    show(page, address, "images", "tf-image-loader img")
    tags = page.evaluate("fetch('data/plugin/images/tags').then(r => r.json())")
    (run,) = tags.values()
    assert {"geometry_entropy/entropy", "geometry_subspace/drift.query"} <= set(run)


def test_the_range_of_the_layers_is_drawn_around_their_mean(page: Page, address: str) -> None:
    show(page, address, "custom_scalars", "tf-custom-scalar-margin-chart-card vz-line-chart2")
    layout = page.evaluate("fetch('data/plugin/custom_scalars/layout').then(r => r.json())")
    charts = {c["title"]: c["margin"]["series"] for group in layout["category"] for c in group["chart"]}
    ends = {"lower": "geometry_layers/entropy/min", "upper": "geometry_layers/entropy/max"}
    assert charts["Attention entropy (entropy)"] == [{"value": "geometry/entropy", **ends}]
