"""Trains the four runs of the gallery: heads that collapse, outputs that narrow, heads that repeat, and none.

All four are real: the packaged 6-layer BERT is fine-tuned on BBC News, each time from the same seed. What is
wrong with three of them is planted in their weights, a little after each step from :data:`SINCE` on.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

from lightning_geo import GeometryMonitor

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from texts import bbc_news, loader, packaged_bert, tokenizer_of

__all__ = ["KINDS", "SINCE", "train"]

#: Steps of a run, the step that what is planted first acts on, and steps between two samples.
STEPS, SINCE, EVERY = 80, 32, 4
_LENGTH, _BATCH, _HEADS = 32, 8, 12


def _collapse(layers: nn.ModuleList) -> None:
    """Queries and keys of half the heads of two layers grow without bound."""
    for layer in (layers[2], layers[3]):
        attention: Any = layer.attention.self  # type: ignore[union-attr]
        for projection in (attention.query, attention.key):
            _heads(projection.weight)[:6] *= 1.06


def _narrow(layers: nn.ModuleList) -> None:
    """A layer adds the same growing vector to every token."""
    bias: Tensor = layers[3].output.LayerNorm.bias  # type: ignore[union-attr,assignment]
    bias += 0.06 * torch.from_numpy(np.sign(np.sin(np.arange(len(bias), dtype=np.float32) ** 2)))


def _repeat(layers: nn.ModuleList) -> None:
    """Four heads of a layer come to read and write what its first head does."""
    attention: Any = layers[4].attention.self  # type: ignore[union-attr]
    for projection in (attention.query, attention.key, attention.value):
        for parameter in (projection.weight, projection.bias):
            heads = _heads(parameter)
            heads[1:5] += 0.2 * (heads[:1] - heads[1:5])


def _heads(parameter: Tensor) -> Tensor:
    """[head, feature, …], a view."""
    return parameter.unflatten(0, (_HEADS, -1))


#: Kind -> what is planted, and the metric that shows it.
KINDS: dict[str, tuple[Callable[[nn.ModuleList], None] | None, str]] = {
    "collapse": (_collapse, "normalized_entropy"),
    "narrowing": (_narrow, "cone.output"),
    "redundancy": (_repeat, "redundancy"),
    "healthy": (None, "normalized_entropy"),
}


class _Training(pl.LightningModule):
    """AdamW with a warm-up of ten steps, and what is planted."""

    def __init__(self, plant: Callable[[nn.ModuleList], None] | None, classes: list[str]) -> None:
        super().__init__()
        names = dict(enumerate(classes))
        model = BertForSequenceClassification.from_pretrained(
            packaged_bert(), local_files_only=True, id2label=names, label2id={v: k for k, v in names.items()}
        )
        self.model = model.train()
        self.plant = plant

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        right = (self.model(**batch).logits.argmax(-1) == batch["labels"]).float().mean()
        self.log("val/accuracy", right, batch_size=len(batch["labels"]))

    def on_train_batch_end(self, *_: Any) -> None:
        if self.plant is not None and self.global_step > SINCE:
            with torch.no_grad():
                self.plant(self.model.bert.encoder.layer)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(kind: str, runs: Path, steps: int = STEPS) -> str:
    """Train a run, and return the monitor's lines on the terminal.

    Args:
        kind: Of :data:`KINDS`.
        runs: The run goes to a directory below of that name, with its model and W&B's files.
        steps: Optimizer steps.
    """
    import wandb

    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    texts, tokenizer = bbc_news(), tokenizer_of(packaged_bert())
    order = np.random.default_rng(0).permutation(len(texts.labels)).tolist()
    parts: list[DataLoader[Any]] = [
        loader(texts.pick(part), tokenizer=tokenizer, length=_LENGTH, batch_size=_BATCH, shuffle=shuffle)
        for part, shuffle in ((order[200:], True), (order[:200], False))
    ]
    module = _Training(KINDS[kind][0], texts.classes)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, log_every_n_steps=EVERY,
        val_check_interval=max(EVERY, steps // 4),
        logger=[
            TensorBoardLogger(runs, kind, ""),
            WandbLogger(kind, save_dir=runs / kind, project="gallery", offline=True),
        ],
        callbacks=[GeometryMonitor(EVERY)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    lines = logging.StreamHandler(terminal := io.StringIO())
    log = logging.getLogger("pytorch_lightning.callbacks.geometry_monitor")
    log.addHandler(lines)
    trainer.fit(module, *parts)
    wandb.finish()
    log.removeHandler(lines)
    module.model.save_pretrained(runs / kind / "model")
    tokenizer.save_pretrained(runs / kind / "model")
    return terminal.getvalue()
