"""The run beside the geometry: loss, score and learning rate above the slider, and how two runs ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import FrameLocator, Page, expect
from torch.utils.tensorboard import SummaryWriter

from dashboard.providers import write_run
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1200, 800)

HOSTILE = '<img src=x onerror="alert(1)">'
FOUND = Finding(
    "low_entropy", "critical", "entropy", "encoder", (1,), ((1, 0),), 20, 0.02, (0.6, 0.9), "It is low."
)


def records(*steps: int, found: bool = False) -> Iterator[GeometryRecord]:
    for step in steps:
        made = make_record(step, metrics=["entropy", "cone.output"], wall_time=time.time())
        yield replace(made, findings=[FOUND] if found and step == 20 else [], looked_for=["low_entropy"])


def log(directory: Path, **scalars: dict[int, float]) -> None:
    writer = SummaryWriter(str(directory))
    for tag, values in scalars.items():
        for step, value in values.items():
            writer.add_scalar(tag.replace("__", "/"), value, step)
    writer.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    write_run(directory / "good", records(0, 10, 20, 30))
    log(directory / "good", train__loss={5: 2.0, 15: 1.0, 30: 0.25}, val__accuracy={15: 0.5, 30: 0.961})
    write_run(directory / "poor", records(0, 10, 20, 30, found=True))
    log(directory / "poor", train__loss={5: 2.0, 15: float("nan")}, val__accuracy={15: 0.5, 30: 0.718},
        **{"lr-SGD": {0: 0.125}, HOSTILE: {0: 3.0, 20: 4.0}})  # fmt: skip
    write_run(directory / "silent", records(0, 10))
    with tensorboard_on(directory, "--reload_interval", "1", run="silent") as url:
        yield url


def values(frame: FrameLocator) -> list[str]:
    return frame.locator(".curve output").all_text_contents()


def test_the_strip_follows_the_slider_in_every_view(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=good&step=20")
    strip = frame.locator(".runstrip")
    expect(strip).to_be_visible(timeout=PATIENCE)
    expect(frame.locator(".curve output").first).to_have_text("1")  # as of step 15
    assert values(frame) == ["1", "0.5", ""]
    frame.locator("input[type=range]").fill("0")
    expect(frame.locator(".curve output").first).to_have_text("")  # nothing was logged yet
    frame.locator("input[type=range]").fill("3")
    expect(frame.locator(".curve output").first).to_have_text("0.25")
    for view in ("Compare", "Trace", "Evolution", "Overview", "Summary"):
        frame.get_by_role("button", name=view, exact=True).click()
        expect(strip).to_be_visible()
        assert values(frame) == ["0.25", "0.961", ""]
    canvas = strip.locator("canvas")
    frame.get_by_role("button", name="Map", exact=True).click()
    width = (canvas.bounding_box() or {})["width"]
    canvas.click(position={"x": 8 + (width - 20) / 3, "y": 40})
    expect(frame.locator(".player output")).to_have_text("step 10 of 30")
    assert values(frame)[0] == "2"  # at the pointer
    assert "train/loss 2" in (canvas.get_attribute("aria-label") or "")


def test_a_finding_is_marked_and_other_curves_can_be_chosen(page: Page, address: str) -> None:
    frame = opened(page, address, "view=trace&run=poor")
    expect(frame.locator(".curve output").first).to_have_text("not finite", timeout=PATIENCE)
    chosen = frame.locator(".curve select").first
    chosen.select_option(f"={HOSTILE}")
    expect(frame.locator(".curve output").first).to_have_text("4")
    page.wait_for_url("**loss%3D**")
    chosen.select_option("-")
    expect(frame.locator(".curve output").first).to_have_text("")
    chosen.select_option("")
    expect(frame.locator(".curve output").first).to_have_text("not finite")
    frame.locator(".event").click()
    expect(frame.locator(".marked")).to_contain_text("It is low.")
    expect(frame.locator(".player output")).to_have_text("step 20 of 30")
    assert frame.locator("img").count() == 0


def test_compare_begins_with_the_outcome_and_a_run_without_curves_has_no_strip(
    page: Page, address: str
) -> None:
    frame = opened(page, address, "view=compare&run=good&other=poor")
    expect(frame.locator(".outcome")).to_have_text(
        "Outcome, A against B: val/accuracy 0.961 against 0.718 at step 30; "
        "train/loss 0.25 at step 30 against not finite at step 15",
        timeout=PATIENCE,
    )
    expect(frame.locator(".curve output").nth(1)).to_have_text("0.961 · B 0.718")
    frame.locator("select[name=other]").select_option("silent")
    expect(frame.locator(".outcome")).to_have_text("")
    frame.locator("select[name=run]").select_option("silent")
    expect(frame.locator(".runstrip")).to_be_hidden()


def test_a_value_of_run_b_is_of_the_same_curve_or_absent(page: Page, address: str) -> None:
    frame = opened(page, address, f"view=trace&run=poor&other=good&loss={quote('=' + HOSTILE)}")
    expect(frame.locator(".curve output").first).to_have_text("4", timeout=PATIENCE)  # run B has none of it
    expect(frame.locator(".curve output").nth(1)).to_have_text("0.718 · B 0.961")


def test_in_a_low_window_a_finding_is_whole(page: Page, address: str) -> None:
    frame = opened(page, address, "view=summary&run=poor")
    card, view, strip = (frame.locator(name) for name in (".card", ".summary", ".runstrip"))
    expect(card.locator("canvas")).to_have_count(2, timeout=PATIENCE)
    for height, has_strip in ((490, False), (560, False), (600, True), (800, True)):
        page.set_viewport_size({"width": 1200, "height": height})
        expect(strip).to_be_visible(visible=has_strip)
        ends = [box.evaluate("e => e.getBoundingClientRect().bottom") for box in (card, view)]
        assert ends[0] <= ends[1]
    frame.get_by_role("button", name="Map", exact=True).click()
    page.set_viewport_size({"width": 1200, "height": 490})
    expect(strip).to_be_visible()  # its slider needs it
    page.set_viewport_size({"width": 1200, "height": 800})
