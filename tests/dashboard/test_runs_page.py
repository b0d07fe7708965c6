"""A person compares many runs in the view Runs: the real page, in Chromium."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, Page, expect
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dashboard.providers import write_run
from lightning_geo.storage.finding import Finding
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1400, 1200)

HOSTILE = '<img src=x onerror="alert(1)">'
METRICS = ["entropy", "max_logit", "cone.output"]
LOW = Finding(
    "low_entropy", "critical", "entropy", "encoder", (1,), ((1, 0),), 10, 0.02, (0.6, 0.9), HOSTILE, (), ()
)  # fmt: skip
#: By run: learning rate, seed, last loss.
SWEEP = {
    "slow/seed_0": (0.001, 0, 3.0), "slow/seed_1": (0.001, 1, 2.0),
    "fast/seed_0": (0.1, 0, 0.5), "fast/seed_1": (0.1, 1, None), HOSTILE: (1.0, 0, 9.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    for place, (name, (rate, seed, loss)) in enumerate(SWEEP.items()):
        records = [
            replace(
                make_record(step, metrics=METRICS, seed=place, wall_time=time.time()),
                findings=[LOW] if name == HOSTILE and step else [], looked_for=["low_entropy"],
            )
            for step in (0, 10, 20)
        ]  # fmt: skip
        write_run(directory / name, records)
        writer = SummaryWriter(str(directory / name))
        if loss is not None:
            writer.add_scalar("train/loss", loss, 20)
        _, session, _ = hparams({"lr": rate, "seed": seed, HOSTILE: HOSTILE}, {})
        writer.file_writer.add_summary(session)
        writer.close()
    return directory


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard_on(runs, "--reload_interval", "1", run="fast/seed_1") as url:
        yield url


def shown(page: Page, address: str, view: str = "") -> FrameLocator:
    frame = opened(page, address, f"view=runs&metric=entropy&{view}")
    expect(frame.locator(".runs-table tbody tr")).to_have_count(len(SWEEP), timeout=PATIENCE)
    expect(frame.locator(".runs-table tbody td", has_text="…")).to_have_count(0, timeout=PATIENCE)
    expect(frame.locator(".runs-table thead")).to_contain_text("train/loss", timeout=PATIENCE)
    return frame


def order(frame: FrameLocator) -> list[str]:
    names: list[str] = frame.locator(".runs-table tbody tr").evaluate_all(
        "rows => rows.map(r => r.dataset.run)"
    )
    return names


def test_the_table_is_sorted_by_click_and_by_key_and_a_row_becomes_run_a_or_b(
    page: Page, address: str
) -> None:
    frame = shown(page, address)
    column = frame.locator("th", has=frame.get_by_role("button", name="Sort by train/loss"))
    column.locator("button").click()
    expect(column).to_have_attribute("aria-sort", "ascending")
    assert order(frame) == ["fast/seed_0", "slow/seed_1", "slow/seed_0", HOSTILE, "fast/seed_1"]
    column.locator("button").press("Enter")
    expect(column).to_have_attribute("aria-sort", "descending")
    assert order(frame) == [
        HOSTILE,
        "slow/seed_0",
        "slow/seed_1",
        "fast/seed_0",
        "fast/seed_1",
    ]  # absent last
    expect(column.locator("button")).to_be_focused()
    sick = frame.locator("tbody tr").first
    expect(sick.locator(".verdict-cell")).to_have_text("✖ critical since step 10, layer 1")
    sick.locator("td").last.click()
    expect(frame.locator("select[name=run]")).to_have_value(HOSTILE)
    frame.get_by_role("button", name="slow/seed_1", exact=True).click(modifiers=["Shift"])
    expect(frame.locator("select[name=other]")).to_have_value("slow/seed_1")
    names = frame.locator("tbody .name")
    names.nth(1).focus()
    page.keyboard.press("Tab")  # the table is one stop
    page.keyboard.press("Shift+Tab")
    expect(names.first).to_be_focused()  # run A
    page.keyboard.press("ArrowDown")
    expect(names.nth(1)).to_be_focused()
    page.wait_for_url("**sort%3Ddown**")
    assert frame.locator("img").count() == 0


def test_runs_have_the_colours_of_tensorboards_own_list(page: Page, address: str) -> None:
    frame = shown(page, address)
    ours = dict(frame.locator("tbody tr").evaluate_all(
        "rows => rows.map(r => [r.dataset.run, getComputedStyle(r.querySelector('.swatch')).backgroundColor])"
    ))  # fmt: skip
    page.get_by_role("tab", name="Time Series").click()
    listed = page.locator("runs-data-table tb-data-table-content-row")
    expect(listed).to_have_count(len(SWEEP), timeout=PATIENCE)
    theirs = dict(listed.evaluate_all(
        """rows => rows.map(r => [r.textContent.trim(),
          [...r.querySelectorAll('*')].map(e => e.style.backgroundColor || e.style.color).find(Boolean)])"""
    ))  # fmt: skip
    assert ours == theirs
    assert len(set(ours.values())) == len(SWEEP)


@pytest.mark.slow
def test_seeds_are_a_mean_and_a_brush_keeps_the_runs_that_pass(page: Page, address: str) -> None:
    frame = shown(page, address)
    groups = frame.locator(".groups li")
    expect(groups).to_have_count(2)
    expect(groups.first).to_contain_text("2 runs")
    expect(groups.first).to_contain_text("same hyperparameters but for the seed")
    frame.get_by_role("button", name="each run").click()
    expect(groups).to_have_count(0)
    axis = frame.locator(".axes button", has_text="lr")
    axis.focus()
    page.keyboard.press("Shift+ArrowDown")  # without the highest tenth
    expect(frame.locator("tbody tr")).to_have_count(4)
    expect(frame.get_by_text("4 of 5 runs, 5 shown below")).to_be_visible()
    expect(frame.locator(".spoken")).to_have_text("lr: 4 of 5 runs")
    expect(axis).to_be_focused()
    page.wait_for_url("**brush**")
    page.reload()
    expect(frame.locator("tbody tr")).to_have_count(4, timeout=PATIENCE)
    frame.locator(".axes button", has_text="lr").press("Enter")
    expect(frame.locator("tbody tr")).to_have_count(5)
    canvas = frame.locator(".parallel canvas").bounding_box()
    assert canvas
    page.mouse.move(canvas["x"] + 64, canvas["y"] + canvas["height"] - 4)
    page.mouse.down()
    page.mouse.move(canvas["x"] + 64, canvas["y"] + canvas["height"] * 0.8, steps=3)
    page.mouse.up()
    expect(frame.locator("tbody tr")).to_have_count(2)
    assert {name.partition("/")[0] for name in order(frame)} == {"slow"}


def test_pictures_lead_to_evolution_and_what_is_shown_is_saved(
    page: Page, address: str, tmp_path: Path
) -> None:
    frame = shown(page, address, "shown=slow/seed_0&shown=fast/seed_1&columns=max_logit")
    tiles = frame.locator(".multiple")
    expect(tiles).to_have_count(2)
    frame.get_by_role("checkbox", name=f"Show {HOSTILE}").click()
    expect(tiles).to_have_count(3)
    frame.get_by_role("button", name="layers × heads").click()
    expect(tiles.first).to_contain_text("step 20")
    with page.expect_download() as saving:
        frame.get_by_role("button", name="CSV").click()
    saving.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(SWEEP)
    assert (rows["slow/seed_1"]["loss"], rows["fast/seed_1"]["loss"]) == ("2", "")
    assert rows["slow/seed_1"]["lr"] == "0.001"
    first, last = (
        float(make_record(step, metrics=METRICS, seed=1).stacks["encoder"]["max_logit"].max())
        for step in (0, 20)
    )
    assert float(rows["slow/seed_1"]["last max_logit"]) == pytest.approx(last)
    assert float(rows["slow/seed_1"]["change max_logit"]) == pytest.approx(last - first, abs=1e-5)
    with page.expect_download():
        frame.get_by_role("button", name="PNG").click()
    tiles.last.focus()
    last_run = tiles.last.get_attribute("data-key")
    page.keyboard.press("Enter")
    expect(frame.locator(".evolution")).to_be_visible()
    assert last_run
    expect(frame.locator("select[name=run]")).to_have_value(last_run)


def test_a_single_run_is_told_what_the_view_would_show(page: Page, tmp_path: Path) -> None:
    directory = tmp_path / "runs"
    write_run(directory / "alone", [make_record(0, metrics=METRICS)])
    with tensorboard_on(directory, run="alone") as url:
        frame = opened(page, url, "view=runs")
        expect(frame.get_by_text("There is one run so far.")).to_be_visible(timeout=PATIENCE)
        expect(frame.locator(".runs-table")).to_be_hidden()
        for kind in ("CSV", "PNG"):
            with page.expect_download():
                frame.get_by_role("button", name=kind, exact=True).click()
        page.goto("about:blank")  # before the server goes
