"""A person opens the tab on real runs: the real page in TensorBoard, in headless Chromium."""

from __future__ import annotations

import csv
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FrameLocator, Locator, Page, expect
from pytorch_lightning.loggers import TensorBoardLogger

from dashboard.providers import write_run
from lightning_geo import GeometryMonitor, load_history
from lightning_geo.utils.colours import sequential_colours
from support.lit import Classifier, loader, trainer
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1400, 1200)

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real runs: two that differ, and a copy under a name that would like to be markup."""
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    for name, rate in (("calm", 1e-3), ("hot", 3e-2)):
        monitor = GeometryMonitor(every_n_steps=3, strict=True)
        runner = trainer(directory, monitor, steps=12, logger=TensorBoardLogger(directory, name, version=""))
        runner.fit(Classifier(learning_rate=rate), loader(), loader())
    shutil.copytree(directory / "hot", directory / HOSTILE)
    return directory


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard_on(runs, "--reload_interval", "1", run="hot") as url:
        yield url


class Tab:
    """What a person sees and does in the tab."""

    def __init__(self, page: Page, address: str, view: str = "", query: str = "") -> None:
        view = view if "view=" in view else f"view=map&{view}"
        self.page = page
        self.frame: FrameLocator = opened(page, address, view, query)
        self.heading = self.frame.locator("h2")
        self.metric = self.heading.locator(".id")
        self.step = self.frame.locator(".player output")
        self.value = self.frame.locator(".readout .value")
        self.where = self.frame.locator(".readout .where")
        self.rows = self.frame.locator("tbody tr")
        self.picks = self.frame.locator(".view:visible .legend .pick").filter(has_text="layer")
        expect(self.heading).to_be_visible(timeout=PATIENCE)

    def press(self, label: str) -> None:
        self.frame.get_by_role("button", name=label, exact=True).click()

    def canvas(self, number: int = 0) -> Locator:
        return self.frame.locator(".view canvas").nth(number)

    def point_at(self, layer: int, head: int) -> tuple[float, float]:
        """Move over the map until the read-out is of a cell; the place on the canvas, off its middle."""
        box = self.canvas().bounding_box()
        assert box
        for y in range(30, int(box["height"]) - 40, 16):
            for x in range(50, int(box["width"]) - 90, 12):
                self.page.mouse.move(box["x"] + x, box["y"] + y)
                if self.where.text_content() == f"Layer {layer}, head {head}":
                    return x + 3, y + 3
        raise AssertionError(f"no cell {layer}, {head}")


def test_the_tab_is_in_tensorboard_and_begins_with_the_verdict(page: Page, address: str) -> None:
    page.goto(f"{address}/")
    page.get_by_role("tab", name="Geometry").click(timeout=PATIENCE)
    expect(page.frame_locator("iframe").locator("h2")).to_contain_text(
        "1 thing to look at: In layers 0 and 1", timeout=PATIENCE
    )


def test_a_metric_is_chosen_and_the_slider_moves(page: Page, address: str, runs: Path) -> None:
    tab = Tab(page, address, "run=hot")
    history = load_history(runs / "hot")
    tab.press("drift")
    tab.press("output")
    expect(tab.metric).to_have_text("drift.output")
    expect(tab.step).to_have_text("step 12 of 12, newest")
    final = f"{np.nanmean(history['drift.output'][-1]):.3g}"
    expect(tab.value).to_have_text(final)
    page.keyboard.press("Home")  # the focus is on the button that was pressed
    expect(tab.step).to_have_text("step 0 of 12")
    expect(tab.value).to_have_text("0")
    page.keyboard.press("ArrowRight")
    expect(tab.step).to_have_text("step 3 of 12")
    tab.frame.locator("input[type=range]").fill("3")
    expect(tab.step).to_have_text("step 9 of 12")
    tab.press("Play")
    expect(tab.step).to_have_text("step 12 of 12, newest")


def test_a_cell_has_the_colour_and_the_read_out_of_its_value(page: Page, address: str, runs: Path) -> None:
    tab = Tab(page, address, "run=hot&metric=entropy&step=6&range=full")
    values = load_history(runs / "hot")["entropy"]
    x, y = tab.point_at(1, 2)
    value = values[2, 1, 2]
    assert tab.value.text_content() == f"{value:.3g} nats"
    change = tab.frame.locator(".readout .muted").first.text_content() or ""
    assert float(change.split()[0].replace("−", "-")) == pytest.approx(value - values[0, 1, 2], rel=0.01)
    pixel = tab.canvas().evaluate(
        """(canvas, [x, y]) => {
          const ratio = canvas.width / canvas.clientWidth;
          return [...canvas.getContext('2d').getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3);
        }""",
        [x, y],
    )
    share = (value - values.min()) / (values.max() - values.min())
    colours = sequential_colours()
    expected = colours[round(float(share) * (len(colours) - 1))].astype(int)
    assert np.abs(np.array(pixel) - expected).max() <= 6


def test_a_head_is_pinned_from_its_drawer_and_a_click_on_its_name_drops_it(page: Page, address: str) -> None:
    tab = Tab(page, address, "run=calm&metric=entropy")
    x, y = tab.point_at(0, 3)
    tab.canvas().click(position={"x": x, "y": y})
    tab.press("Pin")
    page.keyboard.press("Escape")
    expect(tab.picks).to_have_text(["layer 0, head 3×"])
    tab.canvas().click(position={"x": 20, "y": y})  # the layer's number
    expect(tab.picks).to_have_text(["layer 0, head 3×", "layer 0×"])
    tab.press("Trace")
    expect(tab.picks).to_have_count(2)
    tab.picks.first.click()
    expect(tab.picks).to_have_text(["layer 0×"])


def test_two_runs_are_compared_and_a_row_leads_to_its_head(page: Page, address: str, runs: Path) -> None:
    tab = Tab(page, address, "run=calm&metric=drift.key")
    tab.press("Compare")
    expect(tab.frame.locator(".message")).to_contain_text("Select a run B")
    tab.frame.locator("select[name=other]").select_option("hot")
    expect(tab.rows).to_have_count(8)  # 2 layers of 4 heads
    a, b = (load_history(runs / name)["drift.key"][-1] for name in ("calm", "hot"))
    layer, head = np.unravel_index(np.abs(b - a).argmax(), a.shape)
    cells = tab.rows.first.locator("td").all_text_contents()
    assert cells[:2] == [str(layer), str(head)]
    assert [float(c.replace("−", "-")) for c in cells[2:]] == pytest.approx(
        [a[layer, head], b[layer, head], b[layer, head] - a[layer, head]], rel=0.01
    )
    tab.rows.first.click()
    expect(tab.picks).to_have_text([f"layer {layer}, head {head}×"])
    tab.press("fraction")
    expect(tab.rows).to_have_count(8)


def test_numbers_and_picture_are_saved(page: Page, address: str, runs: Path, tmp_path: Path) -> None:
    tab = Tab(page, address, "run=hot&metric=entropy&step=3")
    with page.expect_download() as saving:
        tab.press("CSV")
    saving.value.save_as(tmp_path / "map.csv")
    assert saving.value.suggested_filename == "map-entropy-hot.csv"
    with (tmp_path / "map.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = np.array([float(row["value"]) for row in rows]).reshape(2, 4)
    np.testing.assert_allclose(written, load_history(runs / "hot")["entropy"][1], rtol=1e-6)
    assert {row["step"] for row in rows} == {"3"}
    with page.expect_download() as saving:
        tab.press("PNG")
    saving.value.save_as(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


@pytest.mark.slow
def test_every_view_shows_every_kind_of_metric(page: Page, address: str, runs: Path) -> None:
    tab = Tab(page, address, "run=hot&other=calm&picked=1.2_0.")
    for metric in ("entropy", "cone", "hidden_norm", "velocity"):
        tab.frame.locator("button.metric", has_text=re.compile(f"^{metric}$")).click()
        for view in ("Map", "Compare", "Trace", "Evolution"):
            tab.press(view)
            for what in ("change", "value"):
                tab.frame.locator(".options").get_by_role("button", name=what, exact=True).click()
                expect(tab.frame.locator(".view")).to_be_visible()
                expect(tab.frame.locator(".message")).to_have_text("")
    tab.press("Overview")
    tiles = tab.frame.locator(".tile")
    expect(tiles.filter(has_text=" → ")).to_have_count(19, timeout=PATIENCE)
    tab.press("All metrics")
    expect(tiles).to_have_count(len(load_history(runs / "hot").keys()))
    tiles.filter(has_text="redundancy").click()
    expect(tab.metric).to_have_text("redundancy")


def test_the_address_leads_back_to_the_view(page: Page, address: str) -> None:
    tab = Tab(page, address, "run=hot")
    tab.press("concentration")
    tab.press("Evolution")
    page.wait_for_url("**view%3Devolution**metric%3Dconcentration**")
    page.reload()
    expect(tab.metric).to_have_text("concentration", timeout=PATIENCE)
    expect(tab.frame.locator(".evolution")).to_be_visible()


@pytest.mark.parametrize(("query", "theme"), [("?darkMode=true", "dark"), ("?darkMode=false", "light")])
def test_tensorboards_theme_is_followed(page: Page, address: str, query: str, theme: str) -> None:
    tab = Tab(page, address, query=query)
    expect(tab.frame.locator("html")).to_have_attribute("data-theme", theme)
    shade = tab.frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (int(re.findall(r"\d+", shade)[0]) < 100) is (theme == "dark")


def test_names_are_text_whatever_they_contain(page: Page, address: str) -> None:
    name = quote(HOSTILE)
    tab = Tab(page, address, f"view=compare&run={name}&other=calm&metric={name}&picked=0.0")
    expect(tab.frame.locator("select[name=run]")).to_have_value(HOSTILE)
    expect(tab.frame.locator(".view .runs")).to_contain_text(HOSTILE)
    assert tab.frame.locator("img").count() == 0


@pytest.mark.slow
def test_new_samples_are_shown_without_losing_the_view(page: Page, address: str, runs: Path) -> None:
    shutil.copytree(runs / "calm", runs / "live")
    record = load_history(runs / "live").record(-1)
    tab = Tab(page, address, "run=calm&metric=attention_distance&picked=1.1")
    run = tab.frame.locator("select[name=run]")
    expect(run.locator("option", has_text="live")).to_have_count(1, timeout=PATIENCE)
    run.select_option("live")
    expect(tab.step).to_have_text("step 12 of 12, newest")
    write_run(runs / "live", [replace(record, step=15, wall_time=time.time())])
    expect(tab.step).to_have_text("step 15 of 15, newest", timeout=PATIENCE)  # it follows
    tab.frame.locator("input[type=range]").fill("2")
    write_run(runs / "live", [replace(record, step=18, wall_time=time.time())])
    expect(tab.step).to_have_text("step 6 of 18", timeout=PATIENCE)  # it stays
    expect(tab.metric).to_have_text("attention_distance")
    expect(tab.picks).to_have_text(["layer 1, head 1×"])


def test_nothing_is_cut_off_on_a_small_screen_and_on_a_projector(page: Page, address: str) -> None:
    tab = Tab(page, address, "view=compare&run=hot&other=calm")
    for width, height in ((1280, 720), (1920, 1080), (1024, 768)):
        page.set_viewport_size({"width": width, "height": height})
        expect(tab.rows.first).to_be_visible()
        hidden = "e => [e.scrollWidth - e.clientWidth, e.scrollHeight - e.clientHeight]"
        assert tab.frame.locator("html").evaluate(hidden) == [0, 0]
    page.set_viewport_size({"width": 1400, "height": 1200})
