"""A run that is killed outright at step 160, after a checkpoint at step 100.

``python -m programs.killed <directory> <scenario>...`` runs each scenario in a child of its own, which
sends itself SIGKILL: nothing is closed, no handler runs.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from support.lit import Classifier, loader, sequences, trainer

CHECKPOINT, KILLED, STOPPED = 100, 160, 120
#: Whether a fit can be told how checkpoints are read; that of Lightning 2.4 cannot.
ASKS_HOW = "weights_only" in inspect.signature(pl.Trainer.fit).parameters


class Logging(Classifier):
    """Logs its loss at each step and has a forward of its own, as users' modules do."""

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(**batch).loss  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class Killer(pl.Callback):
    """Ends the process at once after some step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def monitors(scenario: str) -> list[GeometryMonitor]:
    """The monitors of a scenario."""
    every: dict[str, Any] = {"every_n_steps": 33, "metrics": ["entropy", "subspace"]}
    if scenario == "two":
        slow = GeometryMonitor(70, metrics="cone", source="batch", name="slow")
        return [GeometryMonitor(**every), slow]
    if scenario == "early_stopping":
        every["every_n_steps"] = 40  # so that the run resumes between samples
    if scenario == "batch":
        every.update(source="batch", every_n_steps=40)
    if scenario in ("unsaved", "unsaved_other"):
        every.update(probe_in_checkpoint=False, patterns=False)
    return [GeometryMonitor(**every)]


def session(
    directory: Path,
    scenario: str,
    *,
    steps: int,
    kill_at: int | None = None,
    resume: bool = False,
    version: int = 0,
    checkpoint: Path | None = None,
    weights_only: bool | None = None,
    save_every: int = CHECKPOINT,
) -> tuple[pl.Trainer, list[GeometryMonitor]]:
    """One session of a run; its batches are all the same, so that it can go on anywhere in an epoch."""
    watching = monitors(scenario)
    callbacks: list[pl.Callback] = [*watching]
    options: dict[str, Any] = {}
    saved: dict[str, Any] = {"every_n_train_steps": save_every}
    if scenario == "early_stopping":
        options["val_check_interval"] = 10
        callbacks.append(EarlyStopping("geometry/normalized_entropy", patience=10**6))
    if scenario == "at_validation":
        options["val_check_interval"] = 50
        saved = {"monitor": "validation_loss"}
    callbacks.append(ModelCheckpoint(directory / "checkpoints", "{step}", save_top_k=-1, **saved))
    if kill_at is not None:
        callbacks.append(Killer(kill_at))
    kind = CSVLogger if scenario == "csv" else TensorBoardLogger
    runner = trainer(
        directory, *callbacks, steps=steps, enable_checkpointing=True,
        logger=kind(directory, name="", version=version), **options,
    )  # fmt: skip
    pl.seed_everything(1, verbose=False)
    module = Logging(
        manual=scenario == "manual", layers=1, heads=2, width=16, dropout=0.0, learning_rate=1e-3
    )
    training = DataLoader(sequences(4) * 1000, 4)  # type: ignore[arg-type]
    validation = None if scenario == "unsaved" else loader(8, seed=1)
    if resume:
        checkpoint = directory / "checkpoints" / f"step={CHECKPOINT}.ckpt"
    loading = {"weights_only": weights_only} if ASKS_HOW else {}
    runner.fit(module, training, validation, ckpt_path=checkpoint, **loading)
    return runner, watching


def main() -> None:
    """Run the scenarios, each in a child."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for scenario in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            session(Path(sys.argv[1]) / scenario, scenario, steps=10 * KILLED, kill_at=KILLED)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"{scenario} ended by itself: {status}")


if __name__ == "__main__":
    main()
