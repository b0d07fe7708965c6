"""Makes pictures of the tab "Geometry" to look at: its first screen on three runs, every view in each state.

``PYTHONPATH=tests python tests/programs/tab_pictures.py --output DIR``. The runs are planted: in *collapsed*
half the heads of two layers end at a single token, in *planted* ten of 1,024 do, *healthy* drifts as a
fine-tuning does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FrameLocator, Page, Route, expect
from torch.utils.tensorboard import SummaryWriter

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.tensorboard_page import PATIENCE, chromium, tensorboard_on

VIEWS = ("summary", "evolution", "map", "compare", "runs", "trace", "overview")
STEPS = range(0, 2050, 50)
SINCE = 1000
SIZE = (1300, 760)
#: Metric -> its level and how far heads lie apart.
LEVELS = {
    "entropy": (3.0, 0.5),
    "normalized_entropy": (0.65, 0.1),
    "max_probability": (0.2, 0.05),
    "self_mass": (0.08, 0.03),
    "first_mass": (0.25, 0.1),
    "effective_rank.output": (24.0, 3.0),
}
#: What an attention that has collapsed to one token looks like.
SICK = {
    "entropy": 0.02,
    "normalized_entropy": 0.005,
    "max_probability": 0.99,
    "self_mass": 0.0,
    "first_mass": 0.99,
}


def records(shape: tuple[int, int], sick: NDArray[np.bool_]) -> Iterator[GeometryRecord]:
    """Yield a run's records, with what a detector finds in them."""
    generator, detector = np.random.default_rng(0), Detector()
    heads = {metric: generator.normal(level, spread, shape) for metric, (level, spread) in LEVELS.items()}
    modules = {
        "modules": [f"encoder.layer.{i}.attention" for i in range(shape[0])],
        "heads": [shape[1]] * shape[0],
    }
    for step in STEPS:
        arrays = {}
        for metric, (level, spread) in LEVELS.items():
            heads[metric] = heads[metric] + generator.normal(0, 0.02 * spread, shape)
            trained = heads[metric] * (1 - 0.2 * (1 - np.exp(-step / 600)))
            values = np.clip(trained, 0.05 * level, None if level > 1 else 0.98)
            share = np.clip((step - SINCE) / 100 + 1, 0, 1)
            if metric in SICK:
                values = np.where(sick, values + share * (SICK[metric] - values), values)
            arrays[metric] = values.astype(np.float32)
        record = GeometryRecord(
            {"encoder": arrays}, {"class": "Encoder", "stacks": {"encoder": modules}}, step=step,
            epoch=step // 500, batches_seen=step, wall_time=1.7e9 + step, probe_fingerprint="cafe",
        )  # fmt: skip
        record.findings = detector.update(record)
        record.looked_for = list(RULES)
        yield record


def write(directory: Path) -> None:
    """Write the three runs, with a loss and a score."""
    half = np.zeros((6, 12), bool)
    half[2:4, ::2] = True
    ten = np.zeros((32, 32), bool)
    ten[5, 10:20] = True
    for name, sick, end in (
        ("collapsed", half, 1.6),
        ("healthy", np.zeros((6, 12), bool), 0.3),
        ("planted", ten, 0.5),
    ):
        sink = RecordFile(directory / name, "geometry")
        for record in records(sick.shape, sick):
            sink.write(record)
        sink.close()
        with SummaryWriter(str(directory / name)) as writer:
            for step in STEPS:
                writer.add_scalar("train/loss", end + (1.7 - end) * np.exp(-step / 400), step)
                if step % 500 == 0:
                    writer.add_scalar("val/accuracy", 0.95 - 0.25 * end - 0.3 * np.exp(-step / 400), step)


def shown(page: Page, address: str, view: str, *, dark: bool = False) -> FrameLocator:
    """Open the tab at a view."""
    page.goto("about:blank")
    theme = "true" if dark else "false"
    page.goto(f"{address}/?darkMode={theme}#lightning_geo&p.lightning_geo.view={quote(view, safe='')}")
    return page.frame_locator("iframe")


@contextmanager
def failing(page: Page) -> Iterator[None]:
    """Let all that the tab asks for fail, but for its modules and the index."""

    def answer(route: Route) -> None:
        route.fulfill(status=500, body="the disk is gone")

    routes = [
        f"**/lightning_geo/{name}*" for name in ("data", "findings", "metadata", "curves", "runs", "head")
    ]
    for pattern in routes:
        page.route(pattern, answer)
    try:
        yield
    finally:
        for pattern in routes:
            page.unroute(pattern, answer)


def picture(page: Page) -> Image.Image:
    """The tab as it is on screen."""
    page.wait_for_timeout(2500)  # pictures are drawn as their numbers come
    path = Path(tempfile.gettempdir()) / "tab_pictures.png"
    page.locator("iframe").screenshot(path=path)
    return Image.open(path).convert("RGB")


def sheet(pictures: list[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures side by side at half their size."""
    half = [one.resize((one.width // 2, one.height // 2), Image.Resampling.LANCZOS) for one in pictures]
    width, height = half[0].size
    whole = Image.new("RGB", (columns * width, -(-len(half) // columns) * height), "white")
    for place, one in enumerate(half):
        whole.paste(one, (place % columns * width, place // columns * height))
    return whole


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as (page, _):
        runs, bare = Path(folder) / "runs", Path(folder) / "bare"
        write(runs)
        with SummaryWriter(str(bare / "none")) as writer:
            writer.add_scalar("loss", 1.0, 0)
        page.set_viewport_size({"width": SIZE[0], "height": SIZE[1] + 64})  # TensorBoard's own bar
        with tensorboard_on(runs, run="planted") as address:
            first = []
            for run in ("collapsed", "planted", "healthy"):
                frame = shown(page, address, f"run={run}")
                expect(frame.locator(".summary .verdict h2").first).not_to_have_text(
                    "Loading…", timeout=PATIENCE
                )
                first.append(picture(page))
            sheet(first, 1).save(output / "tab_first_screens.png", optimize=True)
            for state in ("light", "dark"):
                views = []
                for view in VIEWS:
                    shown(
                        page,
                        address,
                        f"view={view}&run=collapsed&other=healthy&metric=entropy&step=1500",
                        dark=state == "dark",
                    )
                    views.append(picture(page))
                sheet(views).save(output / f"tab_{state}.png", optimize=True)
            with failing(page):
                views = []
                for view in VIEWS:
                    shown(page, address, f"view={view}&run=collapsed&other=healthy&metric=entropy")
                    views.append(picture(page))
                sheet(views).save(output / "tab_error.png", optimize=True)
        with tensorboard_on(bare, run="none") as address:
            shown(page, address, "view=map")
            picture(page).save(output / "tab_empty.png", optimize=True)


if __name__ == "__main__":
    main()
