"""What a sample of a probe consists of: milliseconds of its parts, beside a bare forward of the same inputs.

The packaged BERT, default metrics, TensorBoard included. Methods of the package are wrapped to be timed; a
part's time is without that of parts inside it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sampled_step import Classifier, Clock, random_texts
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from lightning_geo.functional import head_weights, subspace
from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.measurement import assemble, sample
from lightning_geo.measurement.sample_statistics import SOURCES
from lightning_geo.monitor.delivery import Delivery
from lightning_geo.monitor.samples import Samples
from lightning_geo.observe.replay.undisturbed_run import Call


class Parts:
    """Seconds by part of the sample that is taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time counts for a part."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                self.seconds[part] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return wrapped

    def time(self, part: str, owner: Any, *names: str) -> None:
        """Time functions of a module or methods of a class."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))


class Samplewise(pl.Callback):
    """Keeps the seconds of each sample by part.

    Args:
        parts: Of the sample that is taken.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.samples: list[dict[str, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep what was timed since the last sample."""
        if self._parts.seconds:
            self.samples.append(dict(self._parts.seconds))
            self._parts.seconds.clear()


def wrap(parts: Parts) -> None:
    """Time what a sample consists of."""
    events = "attention", "attention_output", "block", "projections", "settle"
    for source in SOURCES:
        parts.time(f"`{source.__name__}` observes", source, *events)
        parts.time("metrics from sums", source, "derive")
    parts.time("metrics from sums", sample, "derive")
    parts.time("metrics from sums", assemble.Derivation, "finish")
    for module in (head_weights, subspace):
        parts.time("eigenvalues", module, "by_lapack")
    parts.time("the model's forward, followed", Call, "run")
    parts.time("record and findings", Delivery, "_write")
    parts.time("TensorBoard and the record's file", LoggerSinks, "write")
    parts.time("the rest: hooks, random state, merging", Samples, "replay")


def main(batch: int = 16, length: int = 128, steps: int = 40) -> None:
    """Print the table."""
    parts, clock = Parts(), Clock()
    wrap(parts)
    samplewise = Samplewise(parts)
    callbacks = [GeometryMonitor(every_n_steps=2), clock, samplewise]
    with tempfile.TemporaryDirectory() as directory:
        pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=callbacks,
            logger=TensorBoardLogger(directory),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Classifier(), DataLoader(random_texts(batch * steps, length), batch))  # type: ignore[arg-type]
    samples = samplewise.samples[2:]  # the first opens the sinks
    bare = statistics.median(clock.bare[4:])
    threads = torch.get_num_threads()
    print(f"{batch} x {length} tokens, {threads} threads: a bare forward {1e3 * bare:.0f} ms\n")
    print("| part | ms | / bare forward |\n| --- | --- | --- |")
    medians = {name: statistics.median(s.get(name, 0.0) for s in samples) for name in samples[0]}
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / bare:.2f} |")
    whole = statistics.median(sum(s.values()) for s in samples)
    print(f"| a sample | {1e3 * whole:.0f} | {whole / bare:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    main()
