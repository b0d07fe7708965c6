"""What a sampled step costs: run as ``python tests/benchmarks/sampled_step.py``.

Trains the packaged BERT (16 sequences of 128 tokens) with every other step sampled, TensorBoard
included, and prints the median ratio of each sampled step to the unsampled one after it; and for
the probe, the sample against a bare forward of the same inputs without gradient.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

from lightning_geo import GeometryMonitor, load_history

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from texts import packaged_bert


class Clock(pl.Callback):
    """Seconds of each step, samples included, and of a bare forward of its batch."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.bare: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.ends.append(time.perf_counter())
        module.model.eval()
        with torch.no_grad():
            module.model(**batch)
        module.model.train()
        self.bare.append(time.perf_counter() - self.ends[-1])

    def steps(self) -> list[float]:
        """Seconds of the steps but the first."""
        starts = [end + bare for end, bare in zip(self.ends, self.bare, strict=True)]
        return [end - start for start, end in zip(starts, self.ends[1:], strict=False)]


class Classifier(pl.LightningModule):
    """The packaged BERT with a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = BertForSequenceClassification.from_pretrained(packaged_bert()).train()

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of random labels: only the time matters."""
        return self.model(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As in the example."""
        return torch.optim.AdamW(self.parameters(), 1e-5)


def main() -> None:
    """Train with both sources and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    rows = [
        {"input_ids": torch.randint(1000, 20_000, (args.length,)), "labels": torch.tensor(i % 2),
         "attention_mask": (torch.arange(args.length) < args.length - i % 20).long()}
        for i in range(args.batch * args.steps)
    ]  # fmt: skip
    for source in ("batch", "probe"):
        clock, costs = Clock(), []
        monitor = GeometryMonitor(schedule=lambda step: step % 2 == 0, source=source)
        with tempfile.TemporaryDirectory() as directory:
            trainer = pl.Trainer(
                accelerator="cpu", max_steps=args.steps, callbacks=[monitor, clock],
                logger=TensorBoardLogger(directory), enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Classifier(), DataLoader(rows, args.batch))  # type: ignore[arg-type]
            history = load_history(trainer.log_dir)
            costs = history.facts["cost_seconds"]
        steps = clock.steps()  # of steps 1, 2, ...: the even ones are sampled
        ratios = [sampled / plain for plain, sampled in zip(steps[0::2], steps[1::2], strict=False)]
        forwards = [cost / bare for cost, bare in zip(costs[1:], clock.bare[2::2], strict=False)]
        print(
            f"{source:>5}: sampled / unsampled step {statistics.median(ratios):.3f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs), sample / bare forward "
            f"{statistics.median(forwards):.3f}"
        )


if __name__ == "__main__":
    main()
