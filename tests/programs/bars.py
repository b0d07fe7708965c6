"""Trains with a progress bar and the monitor, for a test that reads what the terminal shows.

``python bars.py KIND``: ``tqdm`` or ``rich`` for Lightning's bars, ``loop`` for ``watch`` with a bar of tqdm,
``trainer`` for that of ``transformers.Trainer``, ``quiet`` for a loop that keeps warnings only.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from tqdm import tqdm
from transformers import Trainer, TrainingArguments

from lightning_geo import Alerts, GeometryCallback, GeometryMonitor, Level, Rule, watch
from support.lit import Classifier, bert, fit, loader, sequences

#: Holds in every sample from the second on.
SEEN = Rule("seen_it", ("entropy",), Level(at_least=0.0), "{where} have entropy.")


def lightning(kind: str, directory: str, **arguments: Any) -> None:
    """Train for six steps, with a validation in between."""
    bar: pl.Callback = TQDMProgressBar(refresh_rate=1) if kind == "tqdm" else RichProgressBar(refresh_rate=1)
    fit(
        directory, Classifier(), bar, GeometryMonitor(1, **arguments), steps=6, validation=loader(8),
        enable_progress_bar=True, val_check_interval=3,
    )  # fmt: skip


def loop(directory: str, **arguments: Any) -> None:
    """Train for six steps, as a script does that has never heard of logging."""
    model = bert().train()
    optimizer = torch.optim.AdamW(model.parameters())
    with watch(model, every_n_steps=1, logdir=directory, **arguments) as geometry:
        for _, batch in zip(tqdm(range(6)), loader(), strict=False):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            geometry.step()


def trainer(directory: str, **arguments: Any) -> None:
    """Train for six steps."""
    options = TrainingArguments(directory, max_steps=6, per_device_train_batch_size=2, report_to="none")
    callback = GeometryCallback(1, **arguments)
    Trainer(bert(), options, train_dataset=sequences(12), callbacks=[callback]).train()


def main(kind: str) -> None:
    """Train in one of the loops."""
    warnings.simplefilter("ignore")
    assert not logging.getLogger().handlers, "something else set logging up"
    arguments = {"metrics": ["entropy"], "alerts": Alerts(rules=[SEEN])}
    with tempfile.TemporaryDirectory() as directory:
        if kind in ("tqdm", "rich"):
            lightning(kind, directory, **arguments)
        elif kind == "trainer":
            trainer(directory, **arguments)
        else:
            if kind == "quiet":
                logging.getLogger("lightning_geo").setLevel(logging.WARNING)
            loop(directory, **arguments)


if __name__ == "__main__":
    main(sys.argv[1])
