"""How quick the Geometry tab is: run as ``python tests/benchmarks/page_speed.py --layers 80 --heads 64``.

Writes a run of random numbers with curves of its training, opens it in TensorBoard and headless Chromium, and
prints how long choosing a metric takes until it is on screen, and how long a repaint takes while
the slider moves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.tensorboard_page import chromium, tensorboard_on

# times every render from here on
_WATCH = """async () => {
  const { App } = await import(new URL('static/app.js', document.baseURI));
  const render = App.prototype.render;
  window.times = [];
  App.prototype.render = function () {
    window.app = this;
    const start = performance.now();
    render.call(this);
    window.times.push(performance.now() - start);
  };
}"""
_CHOOSE = """(name) => new Promise((resolve) => {
  const start = performance.now();
  [...document.querySelectorAll('button.metric')].find((b) => b.textContent === name).click();
  const shown = () => document.querySelector('h2 .id')?.textContent === name
    && document.querySelector('.stage').style.visibility === 'visible';
  const poll = () => (shown() ? resolve(performance.now() - start) : requestAnimationFrame(poll));
  requestAnimationFrame(poll);
})"""
_SUMMARY = """() => new Promise((resolve) => {
  const start = performance.now();
  [...document.querySelectorAll('header button')].find((b) => b.textContent === 'Summary').click();
  const shown = () => document.querySelector('.verdict h2')?.textContent
    && document.querySelector('.moved:not([hidden]) li');
  const poll = () => (shown() ? resolve(performance.now() - start) : requestAnimationFrame(poll));
  requestAnimationFrame(poll);
})"""
_SLIDE = """async (view) => {
  [...document.querySelectorAll('header button')].find((b) => b.textContent === view).click();
  await new Promise((resolve) => setTimeout(resolve, 1500));
  window.times = [];
  const slider = document.querySelector('input[type=range]');
  for (let i = 0; i < 100; i++) {
    slider.value = String(Math.floor((i * slider.max) / 100));
    slider.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
  }
  return window.times;
}"""


def write(directory: Path, layers: int, heads: int, samples: int, names: list[str]) -> None:
    """Write a run of random numbers."""
    generator = np.random.default_rng(0)
    base = {name: generator.random((layers, heads), np.float32) for name in names}
    structure = {"modules": [f"layer.{i}" for i in range(layers)], "heads": [heads] * layers}
    sink = RecordFile(directory, "geometry")
    for sample in range(samples):
        stack = {name: values + np.float32(sample / samples) for name, values in base.items()}
        metadata: dict[str, Any] = {"class": "Random", "stacks": {"encoder": structure}}
        sink.write(GeometryRecord({"encoder": stack}, metadata, step=10 * sample, wall_time=time.time()))
    sink.close()
    writer = SummaryWriter(str(directory))
    for step in range(0, 10 * samples, 10):
        for tag, value in (("train/loss", 1 / (step + 1)), ("val/accuracy", step), ("lr-SGD", 0.1)):
            writer.add_scalar(tag, value, step)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 32), ("heads", 32), ("samples", 1000), ("metrics", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    names = [name for name in select() if spec_of(name).axes == ("layer", "head")][: args.metrics]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        write(runs / "random", args.layers, args.heads, args.samples, names)
        started = time.perf_counter()
        with tensorboard_on(runs, run="random") as url, chromium() as (page, errors):
            page.set_viewport_size({"width": 1280, "height": 800})
            page.goto(f"{url}/#lightning_geo&p.lightning_geo.view=view%3Dmap")
            tab = page.frame_locator("iframe")
            tab.locator(".stage").wait_for(state="visible", timeout=600_000)
            last = f"step {10 * (args.samples - 1)} of {10 * (args.samples - 1)}, newest"
            tab.get_by_text(last, exact=True).wait_for(timeout=600_000)
            print(
                f"all samples on screen {time.perf_counter() - started:.1f} s after TensorBoard was started"
            )
            frame = next(frame for frame in page.frames if "plugin_entry" in frame.url)
            frame.evaluate(_WATCH)
            chosen = [frame.evaluate(_CHOOSE, name) for name in names[1:6] if "." not in name]
            print("choosing a metric:", ", ".join(f"{ms:.0f}" for ms in chosen), "ms")
            print(f"Summary and what moved most: {frame.evaluate(_SUMMARY):.0f} ms")
            for view in ("Map", "Trace", "Evolution", "Overview"):
                times = sorted(frame.evaluate(_SLIDE, view))
                middle, high = statistics.median(times), times[int(0.95 * len(times))]
                print(f"repaint of {view}: median {middle:.1f} ms, 95 % under {high:.1f} ms")
            print(f"metrics held by the page: {frame.evaluate('window.app.cache.bytes()') / 2**20:.0f} MiB")
            assert not errors, errors


if __name__ == "__main__":
    main()
