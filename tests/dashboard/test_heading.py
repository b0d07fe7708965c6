"""A person who does not know a metric reads what it means: the heading and its "?", in headless Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import FrameLocator, Page, expect

from dashboard.providers import write_run
from lightning_geo.metrics.catalog import CATALOG
from support.records import make_record
from support.registry import spec_named
from support.tensorboard_page import opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1280, 800)

OWN = spec_named("own", meaning="<b>A rise</b>: more fruit.", unit="bananas")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run with two built-in metrics and one that is not."""
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    records = [make_record(step, metrics=["entropy", "drift.key"], wall_time=time.time()) for step in (0, 10)]
    for record in records:
        record.stacks["encoder"]["own"] = np.ones((2, 3), np.float32)
    write_run(directory / "run", [replace(record, specs={"own": OWN}) for record in records])
    with tensorboard_on(directory, run="run") as url:
        yield url


@pytest.fixture(scope="module")
def frame(page_and_errors: tuple[Page, list[str]], address: str) -> FrameLocator:
    """Each test begins where the one before it ended."""
    return opened(page_and_errors[0], address, "view=map&metric=entropy")


def test_the_heading_says_what_a_metric_is(frame: FrameLocator) -> None:
    spec = CATALOG["entropy"]
    frame.locator("button.metric", has_text="entropy").click()
    expect(frame.locator(".heading h2")).to_have_text(f"{spec.title} entropy")
    expect(frame.locator(".heading .line")).to_contain_text(spec.question)
    expect(frame.locator(".heading .line")).to_contain_text(f"usual: {spec.usual}")
    frame.locator("button.metric", has_text="drift").click()
    expect(frame.locator(".heading h2")).to_have_text("Drift since the start · key drift.key")


def test_the_question_mark_explains_it_until_escape(frame: FrameLocator, page: Page) -> None:
    spec = CATALOG["entropy"]
    frame.locator("button.metric", has_text="entropy").click()
    ask, panel = frame.locator(".ask"), frame.locator(".explained")
    expect(panel).to_be_hidden()
    ask.click()
    expect(ask).to_have_attribute("aria-expanded", "true")
    for text in (spec.higher, spec.lower, spec.usual, spec.worry, spec.formula, spec.source):
        expect(panel).to_contain_text(text)
    low, high = (panel.locator("svg").nth(i) for i in (0, 1))
    expect(panel.locator("figcaption")).to_have_text(["Low", "High"])
    assert low.evaluate("e => e.innerHTML") != high.evaluate("e => e.innerHTML")
    drawn = low.bounding_box()
    assert drawn is not None
    assert drawn["width"] > 60
    frame.locator("input[type=range]").fill("0")  # a repaint leaves it open
    frame.locator("button.metric", has_text="drift").click()  # and another metric explains itself
    expect(panel).to_contain_text(CATALOG["drift"].worry)
    ask.focus()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(ask).to_be_focused()
    frame.get_by_role("button", name="Overview", exact=True).click()
    expect(ask).to_have_count(0)
    frame.get_by_role("button", name="Map", exact=True).click()
    expect(ask).to_be_visible()


def test_a_metric_that_is_not_built_in_shows_what_it_brought(frame: FrameLocator) -> None:
    frame.locator("button.metric", has_text="own").click()
    expect(frame.locator(".heading h2")).to_have_text("own")
    expect(frame.locator(".heading .line")).to_contain_text(OWN.meaning)
    frame.locator(".ask").click()
    expect(frame.locator(".explained dt")).to_have_text(["Meaning", "Defined as", "Unit", "Source"])
    expect(frame.locator(".explained svg")).to_have_count(0)
    frame.locator(".explained .close").click()
    expect(frame.locator(".explained")).to_be_hidden()
