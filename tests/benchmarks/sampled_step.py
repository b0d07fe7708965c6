"""What a sample costs in a real training: the packaged BERT, every metric, TensorBoard included.

Every other step is sampled, and each sampled step is set against the plain one after it; a sample of the
probe also against a bare forward of the same inputs without gradient. ``eager`` is what one does without
this package: attention matrices from ``output_attentions=True`` and their entropies, at every such step.
"""

from __future__ import annotations

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
    """The packaged BERT with a new head; ``eager`` looks at its attention matrices at even steps."""

    def __init__(self, eager: bool = False) -> None:
        super().__init__()
        self.model = BertForSequenceClassification.from_pretrained(packaged_bert()).train()
        self.eager = eager

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of random labels: only the time matters."""
        if not self.eager or self.global_step % 2:
            return self.model(**batch).loss  # type: ignore[no-any-return]
        self.model.set_attn_implementation("eager")
        output = self.model(**batch, output_attentions=True)
        for p in output.attentions:
            torch.special.entr(p.detach()).sum(-1).mean((0, 2)).tolist()
        self.model.set_attn_implementation("sdpa")
        return output.loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As in the example."""
        return torch.optim.AdamW(self.parameters(), 1e-5)


def random_texts(count: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Return padded texts of random tokens, with random labels: only the time matters."""
    return [
        {"input_ids": torch.randint(1000, 20_000, (length,)), "labels": torch.tensor(i % 2),
         "attention_mask": (torch.arange(length) < length - i % 20).long()}
        for i in range(count)
    ]  # fmt: skip


def measure(way: str, batch: int, length: int, steps: int) -> tuple[float, float | None]:
    """Medians: sampled by plain step, and sample by bare forward."""
    rows = random_texts(batch * steps, length)
    clock = Clock()
    callbacks: list[pl.Callback] = [clock]
    if way != "eager":
        callbacks.insert(0, GeometryMonitor(schedule=lambda step: step % 2 == 0, source=way))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=TensorBoardLogger(directory),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Classifier(way == "eager"), DataLoader(rows, batch))  # type: ignore[arg-type]
        took = clock.steps()  # of steps 1, 2, ...: the even ones are sampled
        ratio = statistics.median(s / plain for plain, s in zip(took[0::2], took[1::2], strict=False))
        if way == "eager":
            return ratio, None
        costs = load_history(str(trainer.log_dir)).metadata["cost_seconds"]
    # the first sample opens the sinks, the pictures are not at every one
    forwards = zip(costs[1:], clock.bare[2::2], strict=False)
    return ratio, statistics.median(cost / bare for cost, bare in forwards)


def main(steps: int = 25) -> None:
    """Print the table."""
    print(f"\nPackaged BERT (6 layers, 12 heads of 32), default metrics, {torch.get_num_threads()} threads\n")
    print("| batch | way | sampled / plain step | sample / bare forward | of a run at every 50 steps |")
    print("| --- | --- | --- | --- | --- |")
    for batch, length in ((16, 128), (8, 256)):
        for way in ("batch", "probe", "eager"):
            ratio, forward = measure(way, batch, length, steps)
            of_forward = "" if forward is None else f"{forward:.2f}"
            share = "(every step)" if way == "eager" else f"{100 * (ratio - 1) / 50:.2f} %"
            print(f"| {batch} x {length} | {way} | {ratio:.2f} | {of_forward} | {share} |", flush=True)


if __name__ == "__main__":
    main()
