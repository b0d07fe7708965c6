"""Trains with a progress bar and the monitor, for a test that reads what the terminal shows.

``python bars.py KIND``, which is ``tqdm`` or ``rich``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from lightning_geo import Alerts, GeometryMonitor, Level, Rule
from support.lit import Classifier, fit, loader

#: Holds in every sample from the second on.
SEEN = Rule("seen_it", ("entropy",), Level(at_least=0.0), "{where} have entropy.")


def main(kind: str) -> None:
    """Train for six steps, with a validation in between."""
    warnings.simplefilter("ignore")
    bar: pl.Callback = TQDMProgressBar(refresh_rate=1) if kind == "tqdm" else RichProgressBar(refresh_rate=1)
    monitor = GeometryMonitor(1, metrics=["entropy"], alerts=Alerts(rules=[SEEN]))
    with tempfile.TemporaryDirectory() as directory:
        fit(
            directory, Classifier(), bar, monitor, steps=6, validation=loader(8),
            enable_progress_bar=True, val_check_interval=3,
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
