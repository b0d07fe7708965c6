"""Samples leave nothing behind in memory."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_geo import GeometryMonitor
from support.lit import Classifier, loader, trainer

pytestmark = pytest.mark.slow

#: Samples after which what is written once is there, and how many more are looked at.
SETTLED, MORE = 40, 60


class Census(pl.Callback):
    """Counts what is alive after some samples."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.tensors: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        module.losses.clear()
        if trainer.global_step in (SETTLED, SETTLED + MORE):
            gc.collect()
            self.blocks.append(sys.getallocatedblocks())
            self.tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))


def growth(directory: Path, *monitors: pl.Callback) -> tuple[float, float]:
    """Blocks of memory and tensors that a step of a fit leaves behind."""
    census = Census()
    # Lightning's own CSV logger keeps rows until it flushes, which is to happen between the counts
    text = CSVLogger(directory, "csv", flush_logs_every_n_steps=5)
    loggers = [TensorBoardLogger(directory, "tensorboard"), text]
    runner = trainer(directory, *monitors, census, steps=SETTLED + MORE, logger=loggers)
    runner.fit(Classifier(layers=1, heads=2, width=8), loader(8))
    return (census.blocks[1] - census.blocks[0]) / MORE, (census.tensors[1] - census.tensors[0]) / MORE


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Blocks that a step leaves behind without a monitor."""
    return growth(tmp_path_factory.mktemp("without"))[0]


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_sample_leaves_nothing_behind(tmp_path: Path, source: Any, without: float) -> None:
    blocks, tensors = growth(tmp_path, GeometryMonitor(1, source=source))
    assert tensors < 0.05
    # a record alone is dozens of blocks
    assert blocks < without + 10


def test_the_census_sees_a_leak(tmp_path: Path) -> None:
    class Hoarder(GeometryMonitor):
        """Keeps what it is given."""

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_end(*args, **kwargs)
            kept.append((self.last_record, torch.zeros(1)))

    kept: list[Any] = []
    blocks, tensors = growth(tmp_path, Hoarder(1))
    assert blocks > 50
    assert tensors > 0.9
