"""The tab without a mouse, and without its colours: the real page, in Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dashboard.providers import write_run
from lightning_geo import load_history
from support.records import make_record
from support.tensorboard_page import PATIENCE, opened, tensorboard_on

pytestmark = pytest.mark.browser

VIEWPORT = (1300, 800)

LONG = "sweep/of_a_study_with_a_long_name/learning_rate={}/version_0"
METRICS = ["entropy", "max_logit", "cone.output", "cone.head", "hidden_norm"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logdir") / "runs"
    for seed, rate in enumerate(("0.001", "0.003")):
        records = (
            make_record(step, metrics=METRICS, layers=16, heads=16, seed=seed, wall_time=time.time())
            for step in range(0, 130, 10)
        )
        write_run(directory / LONG.format(rate), records)
    return directory


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with tensorboard_on(runs, run=LONG.format("0.003")) as url:
        yield url


def test_the_keys_of_the_slider_work_while_it_has_the_focus(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map")
    step = frame.locator(".player output")
    expect(step).to_have_text("step 120 of 120, newest", timeout=PATIENCE)
    frame.locator("input[type=range]").focus()
    for key, there in (
        ("Home", "step 0 of 120"), ("ArrowRight", "step 10 of 120"),
        ("Shift+ArrowRight", "step 110 of 120"), ("Shift+ArrowLeft", "step 10 of 120"),
        ("ArrowLeft", "step 0 of 120"), ("End", "step 120 of 120, newest"),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(step).to_have_text(there)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(frame.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Space")
    expect(frame.get_by_role("button", name="Play")).to_be_visible()


def test_a_group_is_one_tab_stop_and_the_arrows_move_within_it(page: Page, address: str) -> None:
    frame = opened(page, address, "view=map&metric=cone.output")
    focus = """() => {
      const active = document.activeElement;
      return (active.closest('.metrics, .choice, .buttons, .paper') ?? active).className;
    }"""
    frame.locator("select[name=other]").focus()
    inner = next(frame for frame in page.frames if "plugin_entry" in frame.url)
    stops = []
    while "paper" not in stops:
        page.keyboard.press("Tab")
        stops.append(inner.evaluate(focus))
        assert len(stops) < 10, stops
    groups = [stop for stop in stops if stop in ("metrics", "choice", "buttons")]
    assert groups == ["metrics", "choice", "choice", "choice", "buttons"]
    frame.locator("select[name=other]").focus()
    page.keyboard.press("Tab")  # to the metric that is chosen
    expect(frame.locator("button.metric:focus")).to_have_text("cone")
    page.keyboard.press("ArrowUp")
    expect(frame.locator("button.metric:focus")).to_have_text("max_logit")
    page.keyboard.press("Enter")
    expect(frame.locator("h2")).to_contain_text("max_logit")
    expect(frame.locator("button.metric:focus")).to_have_text("max_logit")  # it is still there
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(frame.locator(".choice button:focus")).to_have_text("Compare")


def test_a_cell_is_reached_with_the_arrows_spoken_and_pinned(page: Page, address: str, runs: Path) -> None:
    frame = opened(page, address, "view=map&metric=entropy")
    expect(frame.locator("h2")).to_contain_text("entropy")
    final = load_history(runs / LONG.format("0.001"))["entropy"][-1]
    board = frame.locator(".board > .paper").first
    board.focus()
    spoken = frame.locator(".spoken")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(spoken).to_contain_text(f"Layer 2, head 1 {final[2, 1]:.3g} nats")
    expect(frame.locator(".cell-cursor").first).to_be_visible()
    expect(frame.locator(".player output")).to_have_text("step 120 of 120, newest")  # the slider stayed
    page.keyboard.press("End")
    expect(spoken).to_contain_text("Layer 2, head 15 ")
    page.keyboard.press("Enter")
    expect(frame.locator(".inspector h3")).to_have_text("Layer 2, head 15")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(spoken).to_have_text("layer 2, head 15 is pinned")
    page.keyboard.press("Escape")
    expect(frame.locator(".map .legend .pick")).to_have_text(re.compile("layer 2, head 15"))
    page.keyboard.press("Tab")
    expect(frame.locator(".readout .where")).to_contain_text("Whole model")
    frame.get_by_role("button", name="Evolution", exact=True).click()
    frame.locator(".evolution .paper").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(spoken).to_contain_text("layer 0, step 10 ")
    page.keyboard.press("Enter")
    expect(frame.locator(".player output")).to_have_text("step 10 of 120")


def test_runs_that_differ_in_the_middle_of_their_names_can_be_told_apart(page: Page, address: str) -> None:
    frame = opened(page, address, f"view=compare&run={LONG.format('0.001')}&other={LONG.format('0.003')}")
    expect(frame.locator(".view .runs")).to_be_visible(timeout=PATIENCE)
    for select, rate in (("run", "0.001"), ("other", "0.003")):
        chosen = frame.locator(f"select[name={select}] option:checked")
        assert rate in (chosen.text_content() or "")
        assert len(chosen.text_content() or "") <= 27
        expect(frame.locator(f"select[name={select}]")).to_have_attribute("title", LONG.format(rate))
    legend = frame.locator(".view .runs").text_content() or ""
    assert "0.001" in legend
    assert "0.003" in legend


def test_the_difference_can_be_read_without_its_colours(page: Page, address: str, runs: Path) -> None:
    a, b = (LONG.format(rate) for rate in ("0.001", "0.003"))
    frame = opened(page, address, f"view=compare&metric=entropy&run={a}&other={b}")
    expect(frame.locator(".view .runs")).to_be_visible(timeout=PATIENCE)
    apart = load_history(runs / b)["entropy"][-1] - load_history(runs / a)["entropy"][-1]
    inner = next(frame for frame in page.frames if "plugin_entry" in frame.url)
    # how many pixels of the middle column and of the middle row of a cell stand out from the cell
    strokes = inner.evaluate(
        """([rows, cols]) => {
          const canvas = document.querySelectorAll('.maps canvas')[2];
          const ratio = canvas.width / canvas.clientWidth;
          const [left, top] = [46, 24];
          const wide = Math.min((canvas.clientWidth - 46 - 78 - 4) / cols, 64);
          const tall = Math.min((canvas.clientHeight - 24 - 40) / rows, 64);
          const context = canvas.getContext('2d');
          const grey = (x, y) => {
            const d = context.getImageData(Math.floor(x * ratio), Math.floor(y * ratio), 1, 1).data;
            return 0.3 * d[0] + 0.6 * d[1] + 0.1 * d[2];
          };
          const found = [];
          for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) {
            const [x, y] = [left + (col + 0.5) * wide, top + (row + 0.5) * tall];
            const base = grey(x + wide * 0.4, y + tall * 0.4);
            const arm = Math.max(1.5, Math.min(4.5, Math.min(wide, tall) * 0.28)) - 1;
            found.push([Math.abs(grey(x - arm, y) - base) > 40, Math.abs(grey(x, y - arm) - base) > 40]);
          }
          return found;
        }""",
        [16, 16],
    )
    marked = 0
    for (across, up), value in zip(strokes, apart.ravel(), strict=True):
        if across:
            marked += 1
            assert up == (value > 0)
    assert marked > 100  # all but those that are nearly the same
