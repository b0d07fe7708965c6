"""Map's tooltip and the drawer of a head, on runs with patterns, without, and of a model without tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FrameLocator, Locator, Page, expect

from dashboard.providers import write_run
from lightning_geo.metrics.gates import GATES
from lightning_geo.storage.patterns import AttentionPatterns, as_bytes
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1300, 850)

LAYERS, HEADS, LENGTH = 3, 4, 64
METRICS = ["entropy", "cone.output", "redundancy", *(f"gate.{gate}" for gate in GATES)]
HOSTILE = '<img src=x onerror="alert(1)">'
KEPT = (0, 20, 50)


def attention(step: int) -> np.ndarray:
    """Head 2 of layer 1 moves from the first block of two tokens to the last; the others are uniform."""
    pooled = np.full((LAYERS, HEADS, 32, 32), 1 / 32)
    pooled[1, 2] = 0
    pooled[1, 2, :, 0], pooled[1, 2, :, 31] = 1 - step / 50, step / 50
    return pooled


def records(run: str) -> Iterator[GeometryRecord]:
    for step in range(0, 60, 10):
        made = make_record(step, metrics=METRICS, layers=LAYERS, heads=HEADS, wall_time=time.time())
        stack = made.stacks["encoder"]
        for name, values in stack.items():
            values[:] = step / 100 if name == "entropy" else -0.2
        stack["redundancy"][:] = 0.9
        stack["gate.forward" if step else "gate.open"][1, 2] = 0.3
        if step not in KEPT or run == "bare":
            yield made
            continue
        words = (HOSTILE, *(f"w{i}" for i in range(1, LENGTH))) if run == "words" else ()
        patterns = AttentionPatterns(as_bytes(attention(step)), np.array([LENGTH, LENGTH, 0]), words)
        similarity = np.full((LAYERS, HEADS, HEADS), 0.1, np.float32)
        similarity[1, 2, 3] = 0.9
        matrices = {"encoder": {"head_similarity": similarity}} if step in (0, 50) else {}
        yield replace(made, patterns={"encoder": patterns}, matrices=matrices)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    for run in ("words", "images", "bare"):
        write_run(directory / run, records(run))
    with tensorboard_on(directory, run="words") as url:
        yield url


def cell(frame: FrameLocator, layer: int, head: int) -> tuple[Locator, dict[str, float]]:
    """Map, and where the middle of a cell is in it."""
    board = frame.locator(".board > .paper").first
    box = board.bounding_box()
    assert box is not None
    wide, tall = min((box["width"] - 128) / HEADS, 64), min((box["height"] - 64) / LAYERS, 64)
    return board, {"x": 46 + (head + 0.5) * wide, "y": 24 + (layer + 0.5) * tall}


def facts(frame: FrameLocator) -> dict[str, str]:
    names, values = (frame.locator(f".inspector {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def test_a_tooltip_stands_at_the_pointer(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=words&metric=entropy&step=30")
    expect(frame.locator(".readout .value")).to_have_text("0.3 nats")
    tooltip = frame.locator(".tooltip")
    expect(tooltip).to_be_hidden()
    board, position = cell(frame, 1, 2)
    board.hover(position=position)
    for text in ("Layer 1, head 2", "0.3 nats", "+0.3 since step 0"):
        expect(tooltip).to_contain_text(text)
    expect(tooltip.locator("canvas")).to_be_visible()
    near, around = tooltip.bounding_box(), board.bounding_box()
    assert near is not None
    assert around is not None
    for axis, size in (("x", "width"), ("y", "height")):
        pointer = around[axis] + position[axis]
        assert min(abs(near[axis] - pointer), abs(near[axis] + near[size] - pointer)) < 20
    board.hover(position={"x": 10, "y": 5})
    expect(tooltip).to_be_hidden()


def test_a_click_opens_the_head_and_the_slider_moves_through_its_patterns(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=words&metric=entropy&step=20")
    board, position = cell(frame, 1, 2)
    board.click(position=position)
    drawer = frame.locator(".inspector")
    expect(drawer.locator("h3")).to_have_text("Layer 1, head 2")
    captions = drawer.locator("figcaption b")
    expect(captions).to_have_text(["step 0", "step 20", "step 50"], timeout=PATIENCE)
    second = drawer.locator(".head-patterns .paper").nth(1)
    box = second.bounding_box()
    assert box is not None
    second.hover(position={"x": 8, "y": box["height"] / 2})
    reading = drawer.locator(".reading")
    expect(reading).to_contain_text("Step 20: queries")
    expect(reading).to_contain_text(f"keys 0–1 “{HOSTILE} w1”: 0.")
    assert 0.59 < float((reading.locator("b").text_content() or "").strip()) < 0.61
    second.hover(position={"x": box["width"] - 6, "y": box["height"] / 2})
    expect(reading).to_contain_text("keys 62–63 “w62 w63”: 0.4")
    frame.locator("input[type=range]").focus()
    page.keyboard.press("End")
    expect(captions).to_have_text(["step 0", "step 50", "step 50"])
    expect(drawer.locator("dd").first).to_have_text("forward")
    assert facts(frame)["Nearest twin"] == "head 3 (similarity 0.9, at step 50)"
    rows = drawer.locator("tbody tr")
    expect(rows).to_have_count(2 + len(GATES))  # cone.output is a layer's
    expect(rows.first).to_have_text(re.compile(r"Attention entropy0\.5 nats\+0\.5"))
    page.keyboard.press("Home")
    expect(drawer.locator("dd").first).to_have_text("open")
    expect(rows.first).to_have_text(re.compile(r"Attention entropy0 nats0"))


def test_the_keyboard_opens_it_pins_and_closes(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=words&metric=entropy")
    board = frame.locator(".board > .paper").first
    board.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    drawer = frame.locator(".inspector")
    expect(drawer.locator("h3")).to_be_focused()
    expect(drawer.locator("h3")).to_have_text("Layer 1, head 1")
    page.keyboard.press("Tab")
    expect(drawer.get_by_role("button", name="Pin", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(frame.locator(".spoken")).to_have_text("layer 1, head 1 is pinned")
    expect(drawer.get_by_role("button", name="Unpin")).to_be_focused()
    pattern = drawer.locator(".head-patterns .paper").first
    expect(pattern).to_be_visible(timeout=PATIENCE)
    pattern.focus()
    page.keyboard.press("ArrowDown")
    expect(frame.locator(".spoken")).to_contain_text("Step 0: queries 0–1")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(board).to_be_focused()
    expect(frame.locator(".map .legend .pick")).to_contain_text("layer 1, head 1")
    board.click(position=cell(frame, 0, 0)[1])
    drawer.get_by_role("button", name="Close", exact=True).click()
    expect(drawer).to_have_count(0)
    board.click(position={**cell(frame, 0, 0)[1], "x": 40})  # a layer's number pins it
    expect(frame.locator(".map .legend")).to_contain_text("layer 0×")


def test_a_link_leads_back_and_a_metric_of_the_head_opens(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=words&metric=entropy&head=1.2")
    drawer = frame.locator(".inspector")
    expect(drawer.locator("h3")).to_have_text("Layer 1, head 2", timeout=PATIENCE)
    drawer.get_by_role("button", name="Redundancy").first.click()
    expect(frame.locator("h2")).to_contain_text("redundancy")
    expect(drawer.locator("h3")).to_have_text("Layer 1, head 2")
    frame = opened(page, address, "view=map&run=words&metric=entropy&head=1.99")
    expect(frame.locator(".readout .where")).to_contain_text("Whole model")
    expect(drawer).to_have_count(0)


def test_without_words_the_tokens_have_numbers(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&run=images&metric=entropy&head=1.2")
    reading = frame.locator(".inspector .reading")
    expect(reading).to_contain_text("64 tokens of one probe sequence (numbered: ", timeout=PATIENCE)
    frame.locator(".head-patterns .paper").nth(2).hover(position={"x": 8, "y": 20})
    expect(reading).to_contain_text(re.compile(r"Step 50: queries \d+–\d+ → keys 0–1: 0$"))


@pytest.mark.parametrize(
    ("view", "reason"),
    [("run=bare&head=1.2", "This run's record has no attention patterns: patterns=False"),
     ("run=words&head=2.1", "No attention pattern of this layer")],
)  # fmt: skip
def test_where_there_is_no_pattern_a_line_says_why(page: Page, address: str, view: str, reason: str) -> None:
    frame = opened(page, address, f"view=map&metric=entropy&{view}")
    drawer = frame.locator(".inspector")
    expect(drawer.locator("[role=status]")).to_contain_text(reason, timeout=PATIENCE)
    expect(drawer.locator(".head-patterns")).to_be_hidden()
    expect(drawer.locator("tbody tr")).to_have_count(2 + len(GATES))


def test_the_png_has_what_is_on_screen_and_no_more(page: Page, address: str, tmp_path: Path) -> None:
    frame = opened(page, address, "view=map&run=words&metric=entropy&head=1.2")
    expect(frame.locator(".inspector figcaption b")).to_have_count(3, timeout=PATIENCE)
    page.set_viewport_size({"width": 1300, "height": 600})  # no room for the layers over steps
    expect(frame.locator(".layer-steps").first).to_be_hidden()
    with page.expect_download() as download:
        frame.get_by_role("button", name="PNG", exact=True).click()
    download.value.save_as(tmp_path / "map.png")
    view = frame.locator(".view.map").bounding_box()
    page.set_viewport_size({"width": 1300, "height": 850})
    assert view is not None
    assert Image.open(tmp_path / "map.png").width <= view["width"] + 2 * 12
