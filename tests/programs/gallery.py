"""Makes the gallery's pictures: what four kinds of run look like on each surface.

``PYTHONPATH=tests python tests/programs/gallery.py``, with the test dependencies and a browser. It trains the
runs of :mod:`programs.gallery_runs` that are not there yet, about a minute each on two cores, and draws what
TensorBoard, W&B's files, a notebook, the report and an explanation show. The terminal's lines are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from lightning_geo import load_history
from lightning_geo.cli.main import main as command
from programs.gallery_runs import KINDS, STEPS, train
from programs.tab_pictures import shown
from support.tensorboard_page import PATIENCE, chromium, tensorboard_on
from support.wandb_file import sent

TEXT = "The chancellor said that companies and the economy would grow as sales of shares rose."
_TAGS = r"^geometry/(normalized_entropy|cone\.output|redundancy)$"
_BAR = 64  # pixels of TensorBoard's own bar


def save(path: Path, content: bytes) -> None:
    """Write a picture as small as it gets with all its colours."""
    Image.open(io.BytesIO(content)).convert("RGB").save(path, optimize=True)


def tab(page: Page, address: str, kind: str, output: Path) -> None:
    """The tab GEOMETRY, as it opens on a run."""
    frame = shown(page, address, f"run={kind}")
    expect(frame.locator(".summary .verdict h2").first).not_to_have_text("Loading…", timeout=PATIENCE)
    page.wait_for_timeout(2500)  # pictures are drawn as their numbers come
    save(output / f"tab_{kind}.png", page.locator("iframe").screenshot())


def scalars(page: Page, address: str, output: Path) -> None:
    """TensorBoard's own tab: three numbers of all runs."""
    page.goto("about:blank")
    page.goto(f"{address}/?darkMode=false&tagFilter={_TAGS}#timeseries")
    expect(page.locator("scalar-card").nth(2)).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Settings").last.click()
    page.wait_for_timeout(4000)  # curves are drawn as their points come
    save(output / "tensorboard_scalars.png", page.screenshot())


def images(page: Page, address: str, output: Path, count: int) -> None:
    """TensorBoard's own tab: a metric of all heads, of all runs."""
    page.goto("about:blank")
    page.goto(f"{address}/?darkMode=false&tagFilter=geometry_entropy/normalized_entropy#timeseries")
    expect(page.locator("image-card img").nth(count - 1)).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(2000)
    save(output / "tensorboard_images.png", page.screenshot())


def weights_and_biases(run: Path, kind: str, output: Path) -> None:
    """What the run logged for W&B's panel ``geometry/layer_by_step``, at its last sample."""
    [folder] = (run / "wandb").glob("offline-run-*")
    known: dict[str, list[str]] = {}
    for record in sent(folder):
        for item in record.history.item:
            place = list(item.nested_key)
            if place[:1] == ["geometry/layer_by_step"] and place[-1] in ("filenames", "captions"):
                known[place[-1]] = json.loads(item.value_json)
    if "captions" not in known:
        raise LookupError(f"{folder} has no pictures by layer and step, but {known}")
    place = known["captions"].index(KINDS[kind][1])
    Image.open(folder / "files" / known["filenames"][place]).save(output / f"wandb_{kind}.png", optimize=True)


def notebook(page: Page, run: Path, kind: str, output: Path) -> None:
    """What the objects of a run show below a cell."""
    history, metric = load_history(run), KINDS[kind][1]
    history.plot(metric).save(output / f"history_{kind}.svg")
    history.record(-1).plot(metric).save(output / f"record_{kind}.svg")
    shown_below = history.findings()._repr_html_()
    page.set_content(f"<body style='margin: 12px; width: 620px'><div>{shown_below}</div>")
    save(output / f"findings_{kind}.png", page.locator("body > div").screenshot())


def on_a_page(page: Page, name: str, output: Path, *arguments: str) -> None:
    """The first screen of a page that a command writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        if command([*arguments, "--output", str(file)]):
            raise SystemExit(f"lightning-geo {arguments[0]} failed")
        page.goto(file.as_uri())
        page.wait_for_timeout(300)
        save(output / f"{name}.png", page.screenshot())


def draw(runs: Path, output: Path, kinds: Sequence[str]) -> None:
    """Draw every surface of the runs."""
    with chromium() as (page, _):
        page.set_viewport_size({"width": 860, "height": 490 + _BAR})
        with tensorboard_on(runs, run=kinds[-1]) as address:
            for kind in kinds:
                tab(page, address, kind, output)
            page.set_viewport_size({"width": 1400, "height": 620})
            scalars(page, address, output)
            page.set_viewport_size({"width": 1400, "height": 840})
            images(page, address, output, len(kinds))
        page.set_viewport_size({"width": 900, "height": 620})
        for kind in kinds:
            run = runs / kind
            weights_and_biases(run, kind, output)
            on_a_page(page, f"report_{kind}", output, "report", str(run))
            on_a_page(
                page, f"explanation_{kind}", output,
                "explain", str(run / "model"), "--text", TEXT, "--target", "business",
            )  # fmt: skip
            notebook(page, run, kind, output)


def main() -> None:
    """Train what is not there yet, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/gallery"), help="directory of the runs")
    add("--output", type=Path, default=Path("examples/pictures/gallery"), help="directory of the pictures")
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="only some of the runs")
    add("--steps", type=int, default=STEPS, help="optimizer steps of a run (default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        if not (options.runs / kind).exists():
            print(f"$ {kind}", train(kind, options.runs, options.steps), sep="\n", flush=True)
    draw(options.runs, options.output, options.kinds)


if __name__ == "__main__":
    main()
