"""Map, Evolution, Overview and Trace on a run in which two heads of a layer fall: the real page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import FrameLocator, Page, Route, expect

from dashboard.providers import write_run
from lightning_geo import load_history
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1300, 850)

METRICS = ["entropy", "self_mass", "cone.output", "hidden_norm"]
LAYERS, HEADS = 32, 4
FOUND = Finding(
    "low_mass", "warning", "self_mass", "encoder", (7,), ((7, 1),), 30, 0.0, (0.4, 0.6), "Heads fell."
)


def records(found: bool) -> Iterator[GeometryRecord]:
    """Nothing moves but heads 1 and 2 of layer 7, from step 30 on, and ``cone.output`` a little."""
    for step in range(0, 60, 10):
        made = make_record(step, metrics=METRICS, layers=LAYERS, heads=HEADS, wall_time=time.time())
        stack = made.stacks["encoder"]
        for values in stack.values():
            values[:] = np.linspace(0.4, 0.6, values.size).reshape(values.shape)
        stack["cone.output"] += step / 1000
        if step >= 30:
            stack["self_mass"][7, 1:3] = 0
        yield replace(made, findings=[FOUND] if found and step == 30 else [], looked_for=["low_mass"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    write_run(directory / "found", records(found=True))
    write_run(directory / "well", records(found=False))
    return directory


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard_on(runs, run="well") as url:
        yield url


def press(frame: FrameLocator, name: str) -> None:
    frame.get_by_role("button", name=name, exact=True).click()


@pytest.mark.parametrize(
    ("run", "metric", "why"),
    [("found", "self_mass", "Low mass was found in it since step 30."),
     ("well", "cone.output", "It changed most in this run.")],
)  # fmt: skip
def test_evolution_opens_with_what_is_worst_or_changed_most(
    page: Page, address: str, run: str, metric: str, why: str
) -> None:
    frame = opened(page, address, f"view=summary&run={run}")
    expect(frame.locator(".card, .moved li").first).to_be_visible(timeout=PATIENCE)
    press(frame, "Evolution")
    expect(frame.locator("h2")).to_contain_text(metric)
    expect(frame.locator(".evolution .strip")).to_contain_text(why)
    frame.locator("button.metric", has_text=re.compile("^entropy$")).click()
    expect(frame.locator(".evolution .strip")).not_to_contain_text(why)
    press(frame, "Summary")
    press(frame, "Map")
    expect(frame.locator("h2")).to_contain_text("entropy")  # what was chosen stays


def test_a_layer_can_be_its_lowest_or_highest_head_or_their_spread(
    page: Page, address: str, runs: Path
) -> None:
    frame = opened(page, address, "view=evolution&run=well&metric=self_mass")
    values = load_history(runs / "well")["self_mass"][-1][7]
    frame.locator(".evolution .paper").first.focus()
    page.keyboard.press("End")
    for _ in range(7):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    spoken = frame.locator(".spoken")
    for name, value in (
        ("min", values.min()), ("max", values.max()), ("spread", np.ptp(values)), ("mean", values.mean())
    ):  # fmt: skip
        press(frame, name)
        frame.locator(".evolution .paper").first.focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowDown")
        expect(spoken).to_have_text(f"layer 7, step 50 {value:.3g}")
    press(frame, "spread")
    page.wait_for_url("**heads%3Dspread**")
    frame.locator("button.metric", has_text=re.compile("^hidden_norm$")).click()
    expect(frame.locator(".option", has_text="Heads")).to_be_hidden()  # it has none


def test_the_map_shows_the_layers_over_all_steps_and_leads_to_one(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=well&metric=self_mass")
    steps = frame.locator(".map .layer-steps")
    for width, height in ((1300, 850), (1920, 1080), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        box = steps.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 130
        assert frame.locator("html").evaluate("e => e.scrollHeight - e.clientHeight") == 0
    steps.locator("canvas").click(position={"x": 60, "y": 60})
    expect(frame.locator(".player output")).to_have_text("step 0 of 50")
    expect(frame.locator(".readout .where")).to_contain_text(re.compile("layer [0-9]+, step 0"))


def test_overview_has_what_is_unusual_first_with_its_course(page: Page, address: str) -> None:
    frame = opened(page, address, "view=overview&run=found&other=well")
    press(frame, "All metrics")
    tiles = frame.locator(".tile")
    expect(tiles.filter(has_text="→")).to_have_count(len(METRICS), timeout=PATIENCE)
    expect(tiles.nth(0)).to_have_attribute("data-key", "self_mass")
    expect(tiles.nth(0)).to_contain_text("▲ Warning: low mass")
    expect(tiles.nth(0)).to_contain_text(re.compile(r"A 0\.5 → 0\.493 ▼B 0\.5 → 0\.493 ▼"))
    expect(tiles.nth(1)).to_have_attribute("data-key", "cone.output")
    expect(tiles.nth(1)).to_contain_text("A 0.5 → 0.55 ▲")
    expect(tiles.nth(2)).to_contain_text(re.compile(r"A [0-9.]+ → [0-9.]+B"))  # nothing moved: no arrow
    assert tiles.nth(0).locator("canvas:visible").count() == 3
    frame.locator(".chips").get_by_role("button", name="cone", exact=True).click()
    expect(tiles).to_have_count(1)
    press(frame, "All families")
    expect(tiles).to_have_count(len(METRICS))
    frame.locator("input[type=range]").fill("0")
    expect(tiles.nth(0)).to_contain_text("A 0.5 → 0.5B")
    tiles.nth(1).click()
    expect(frame.locator("h2")).to_contain_text("cone.output")


def test_the_line_that_is_pointed_at_stands_out_and_all_are_read_out(page: Page, address: str) -> None:
    frame = opened(page, address, "view=trace&run=found&metric=self_mass")
    canvas = frame.locator(".traces canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box
    middle = "canvas => canvas.toDataURL()"
    plain = canvas.evaluate(middle)
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] - 45)  # near the lowest line
    items = frame.locator(".strip .item")
    expect(items).to_have_count(LAYERS)
    pointed = frame.locator(".strip .item[aria-current]")
    expect(pointed).to_have_text(re.compile("^layer 7 "))
    assert canvas.evaluate(middle) != plain
    assert canvas.bounding_box() == box  # the axis stays where it was
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] - 40)
    expect(pointed).to_have_count(0)
    assert canvas.evaluate(middle) == plain
    frame.locator("input[type=range]").fill("2")  # without a pointer: the slider's step
    expect(frame.locator(".strip b").first).to_have_text("step 20")
    expect(items.nth(7)).to_have_text(re.compile(r"layer 7 0\.44\d"))


def test_show_me_opens_the_evolution_of_what_moved_with_its_layer_framed(page: Page, address: str) -> None:
    frame = opened(page, address, "view=summary&run=well")
    moved = frame.locator(".moved li").first
    expect(moved).to_contain_text("cone.output rose from 0.5 to 0.55, most in layer", timeout=PATIENCE)
    layer = re.search(r"layer (\d+)", moved.text_content() or "")
    assert layer
    moved.get_by_role("button", name="Show me").click()
    expect(frame.locator(".evolution")).to_be_visible()
    expect(frame.locator("h2")).to_contain_text("cone.output")
    press(frame, "Trace")
    expect(frame.locator(".legend .pick")).to_have_text(f"layer {layer[1]}×")


def test_what_cannot_be_read_is_said_and_hides_nothing_else(page: Page, address: str) -> None:
    def refuse(route: Route) -> None:
        broken = "metric=cone.output" in route.request.url or "/curves" in route.request.url
        if broken:
            route.fulfill(status=200, body=b"\xff\xff\xff\xff" if "/data" in route.request.url else b"{")
        else:
            route.continue_()

    page.route(re.compile("/(data|curves)[?]"), refuse)
    frame = opened(page, address, "view=overview&run=found")
    press(frame, "All metrics")
    tiles = frame.locator(".tile")
    expect(tiles.filter(has_text="→")).to_have_count(len(METRICS) - 1, timeout=PATIENCE)
    expect(tiles.nth(0)).to_have_attribute("data-key", "self_mass")
    expect(tiles.nth(0)).to_contain_text("▲ Warning: low mass")
    expect(tiles.last).to_have_attribute("data-key", "cone.output")
    expect(tiles.last).to_contain_text("could not be read")
    expect(frame.locator(".runstrip")).to_be_hidden()
    page.unroute_all()
    expect(tiles.filter(has_text="→")).to_have_count(len(METRICS), timeout=PATIENCE)  # it is asked for again
