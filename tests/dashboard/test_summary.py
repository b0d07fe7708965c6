"""A person opens the tab and sees which run is sick, where, and since when: the real page, in Chromium."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from dashboard.providers import write_run
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1200, 800)

HOSTILE = '<img src=x onerror="alert(1)">'
COLLAPSE = Finding(
    HOSTILE, "critical", "cone.output", "encoder", (0, 1), (), 20, 0.99, (0.4, 0.4),
    f"All tokens of layers 0 and 1 point one way {HOSTILE}.", (HOSTILE,), ("Lower the rate.",),
)  # fmt: skip
LOW = Finding(
    "low_entropy", "warning", "entropy", "encoder", (1,), ((1, 0), (1, 2)), 10, 0.02, (0.6, 0.9),
    "2 of 3 heads in layer 1 see one token.", (), ("Wait.",),
)  # fmt: skip


def record(step: int, *findings: Finding, looked: bool = True) -> GeometryRecord:
    made = make_record(step, metrics=["entropy", "cone.output"], wall_time=time.time())
    return replace(made, findings=list(findings), looked_for=["low_entropy", HOSTILE] if looked else [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    sick = [record(0), record(10, LOW), record(20, COLLAPSE), record(30, LOW.closed(30)), record(40)]
    write_run(directory / "sick", sick)
    write_run(directory / HOSTILE, [record(step) for step in (0, 10, 20)])
    write_run(directory / "silent", [record(step, looked=False) for step in (0, 10)])
    return directory


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard_on(runs, "--reload_interval", "1", run="silent") as url:
        yield url


def shown(page: Page, address: str, view: str = "") -> FrameLocator:
    frame = opened(page, address, view)
    expect(frame.locator(".summary .verdict").first).to_be_visible(timeout=PATIENCE)
    return frame


def test_the_first_screen_says_which_run_is_sick_where_and_since_when(page: Page, address: str) -> None:
    frame = shown(page, address)  # on the first run, which is well
    chips = frame.locator(".verdicts button")
    expect(chips).to_have_text([
        "✖sickcritical since step 20, layers 0 and 1", "?silentnot looked for", f"✔{HOSTILE}nothing unusual",
    ], timeout=PATIENCE)  # fmt: skip
    expect(frame.locator("h2")).to_have_text("Nothing unusual.")
    expect(frame.locator(".moved li").first).to_contain_text(
        re.compile(r"^(entropy|cone\.output) (rose|fell)")
    )
    expect(frame.get_by_text("Looked for 2 things: low entropy")).to_be_visible()
    chips.nth(1).click()
    expect(frame.locator("h2")).to_contain_text("did not look for findings; lightning-geo diagnose RUN does")
    chips.first.click()
    expect(frame.locator("h2")).to_have_text(f"Something is wrong: {COLLAPSE.message}")
    cards = frame.locator(".card")
    expect(cards).to_have_count(2)  # open before ended
    expect(cards.first).to_contain_text("since step 20")
    expect(cards.first).to_contain_text("Evidencecone.output 0.99, usual 0.4")
    expect(cards.last).to_contain_text("from step 10 to 30, ended")
    expect(cards.first.locator("canvas")).to_have_count(2)
    assert frame.locator("img").count() == 0


def test_a_click_leads_to_the_map_at_that_step_with_the_cells_framed(page: Page, address: str) -> None:
    frame = shown(page, address, "run=sick")
    bar = frame.locator(".bar").first  # the earliest
    bar.focus()
    page.keyboard.press("Enter")
    expect(frame.locator("h2 .id")).to_have_text("entropy")
    expect(frame.locator(".player output")).to_have_text("step 10 of 40")
    expect(frame.locator(".marked")).to_contain_text(LOW.message)
    page.wait_for_url("**finding%3D10**")
    page.reload()  # the address leads back to it
    expect(frame.locator(".marked")).to_contain_text(LOW.message, timeout=PATIENCE)
    framed, plain = frame.locator(".map canvas").first, "canvas => canvas.toDataURL()"
    before = framed.evaluate(plain)
    frame.get_by_role("button", name="Unmark").click()
    expect(frame.locator(".marked")).to_be_hidden()
    assert framed.evaluate(plain) != before
    frame.get_by_role("button", name="Summary", exact=True).click()
    frame.get_by_role("button", name="Show me").first.click()
    expect(frame.locator("h2 .id")).to_have_text("cone.output")
    expect(frame.locator(".marked")).to_contain_text(COLLAPSE.message)
    assert frame.locator("img").count() == 0


def test_two_verdicts_are_side_by_side_and_follow_their_runs(
    page: Page, address: str, runs: Path, tmp_path: Path
) -> None:
    frame = shown(page, address, f"run=sick&other={quote(HOSTILE)}")
    verdicts = frame.locator(".verdict")
    expect(verdicts.nth(1)).to_contain_text(f"B: {HOSTILE}")
    expect(verdicts.nth(1)).to_contain_text("Nothing unusual.")
    left, right = (verdicts.nth(i).bounding_box() for i in (0, 1))
    assert left
    assert right
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    with page.expect_download() as saving:
        frame.get_by_role("button", name="CSV").click()
    saving.value.save_as(tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["since step"]) for row in rows] == [
        ("sick", "20"),
        ("sick", "10"),
        (HOSTILE, ""),
    ]
    with page.expect_download():
        frame.get_by_role("button", name="PNG").click()
    frame.locator(".verdicts button").first.focus()
    write_run(runs / HOSTILE, [record(30, replace(LOW, since_step=30))])
    expect(verdicts.nth(1)).to_contain_text("1 thing to look at: ", timeout=PATIENCE)  # it goes on
    expect(frame.locator(".verdicts button").first).to_be_focused()  # by then another one
    for width in (1280, 900):
        page.set_viewport_size({"width": width, "height": 720})
        assert frame.locator(".summary").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    frame.locator(".summary-run").nth(1).get_by_role("button", name="Show me").click()
    expect(frame.locator("select[name=run]")).to_have_value(HOSTILE)  # the map is of the run that was clicked
    expect(frame.locator(".marked")).to_contain_text(LOW.message)
