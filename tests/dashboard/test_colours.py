"""One outlier hides nothing: colours of a map in the real page, pixel by pixel, in headless Chromium."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FrameLocator, Page, expect

from dashboard.providers import write_run
from lightning_geo.storage.record import GeometryRecord
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1400, 900)

SIZE = 32
COLLAPSED = [(5, head) for head in range(10, 20)]
OUTLIER = (0, 0)
STEPS = range(0, 400, 10)


def sample(step: int) -> GeometryRecord:
    """Heads about 0.72, ten of which collapse half-way; one is far above all others all the time."""
    generator = np.random.default_rng(step)
    values = np.random.default_rng(0).uniform(0.55, 0.9, (SIZE, SIZE))
    values += generator.normal(0, 0.01, (SIZE, SIZE))
    if step >= 200:
        values[tuple(np.array(COLLAPSED).T)] = 0.02
    values[OUTLIER] = 6.0
    lengths = np.exp(generator.uniform(0, 7, (SIZE, SIZE)))  # from 1 to 1,000
    arrays = {"entropy": values.astype(np.float32), "query_norm": lengths.astype(np.float32)}
    structure = {"modules": [f"layer.{i}" for i in range(SIZE)], "heads": [SIZE] * SIZE}
    model = {"class": "Planted", "stacks": {"encoder": structure}}
    return GeometryRecord({"encoder": arrays}, model, step=step)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    write_run(directory / "planted", [sample(step) for step in STEPS])
    with tensorboard_on(directory, run="planted") as url:
        yield url


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shown(page: Page, address: str, view: str, theme: str = "light") -> FrameLocator:
    frame = opened(page, address, view, f"?darkMode={'true' if theme == 'dark' else 'false'}")
    expect(frame.locator(".readout .value")).to_be_visible(timeout=PATIENCE)
    return frame


def cells(frame: FrameLocator, *, corner: bool = False) -> NDArray[np.float64]:
    """CIE lightness [row, column] of each cell of the map, over its lower half or its upper right corner."""
    # the page paints once before each frame that is shown
    painted = "canvas => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done("
    picture = frame.locator(".view canvas").first.evaluate(f"{painted}canvas.toDataURL()))))")
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as opened_picture:
        pixels = np.asarray(opened_picture.convert("RGB"), np.float64) / 255
    height, width, _ = pixels.shape
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    tall, wide = min((height - 64) / SIZE, 64), min((width - 128) / SIZE, 64)  # as heatmap.js lays it out
    first, last, start = (0.1, 0.45, 0.5) if corner else (0.6, 0.9, 0.1)
    rows = [(int(24 + tall * (i + first)), int(24 + tall * (i + last))) for i in range(SIZE)]
    columns = [(int(46 + wide * (i + start)), int(46 + wide * (i + 0.9))) for i in range(SIZE)]
    return np.array([[lightness[t:b, left:right].mean() for left, right in columns] for t, b in rows])


def seen(found: NDArray[np.float64]) -> float:
    """By how much the dimmest of the ten stands out of the cells around them, in steps of lightness."""
    ten = np.array([found[cell] for cell in COLLAPSED])
    around = np.delete(found[4:7, 9:21].ravel(), [12 + 1 + i for i in range(10)])
    return float(np.median(around) - ten.max())


def test_ten_collapsed_heads_are_seen_beside_one_outlier(page: Page, address: str, theme: str) -> None:
    frame = shown(page, address, "view=map&run=planted&metric=entropy", theme)
    found = cells(frame)
    assert seen(found) > 25  # 2 are just noticed
    others = np.ones((SIZE, SIZE), bool)
    for cell in [*COLLAPSED, OUTLIER]:
        others[cell] = False
    assert found[others].std() > 8  # and the healthy ones still differ from each other
    assert found[OUTLIER] > found[others].max()
    frame.get_by_role("button", name="full range", exact=True).click()
    hidden = cells(frame)
    assert seen(hidden) < 15
    assert hidden[others].std() < 3


def test_a_change_of_ten_heads_is_seen_and_the_scale_holds_for_all_steps(page: Page, address: str) -> None:
    frame = shown(page, address, "view=map&run=planted&metric=entropy&change=1")
    assert seen(cells(frame)) > 25
    frame.locator("input[type=range]").fill("0")  # all that collapsed later is as it was
    expect(frame.locator(".player output")).to_have_text("step 0 of 390")
    assert np.ptp(cells(frame)) < 2


def test_cells_beyond_the_scale_are_marked(page: Page, address: str) -> None:
    frame = shown(page, address, "view=map&run=planted&metric=entropy")
    capped = cells(frame, corner=True) - cells(frame)
    assert min(capped[cell] for cell in COLLAPSED) > 10  # a white triangle in a dark cell
    assert capped[OUTLIER] < -10  # a black one in a light cell
    others = np.ones((SIZE, SIZE), bool)
    for cell in [*COLLAPSED, OUTLIER]:
        others[cell] = False
    assert np.abs(capped[others]).max() < 1
    frame.get_by_role("button", name="full range", exact=True).click()
    assert np.abs(cells(frame, corner=True) - cells(frame)).max() < 1


def test_lengths_are_compared_by_their_ratio(page: Page, address: str) -> None:
    frame = shown(page, address, "view=map&run=planted&metric=query_norm")
    found = cells(frame)  # lengths from 1 to 1,000, as many below 32 as above
    assert abs(np.median(found) - found.mean()) < 5
    assert 40 < np.median(found) < 65
