"""Whole training steps with and without samples."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.loggers.pictures import PictureSchedule
from on_device.bench import Bench, table

__all__ = ["prepare"]


def prepare(bench: Bench) -> object:
    """Import what is trained; the first samples compile, and are left out."""
    import transformers  # noqa: F401

    return lambda: _run(bench)


class Clock(pl.Callback):
    """Seconds of steps, samples included."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self._bench.wait()
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Milliseconds of steps 1, 2, ..."""
        return [1e3 * (end - start) for start, end in zip(self.ends, self.ends[1:], strict=False)]


def _classifier(bench: Bench) -> pl.LightningModule:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}

    class Classifier(pl.LightningModule):
        """BERT-base from scratch."""

        def __init__(self) -> None:
            super().__init__()
            self.model = BertForSequenceClassification(BertConfig(**small if bench.tiny else {}))

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.model(**batch).loss  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-5)

    return Classifier()


def _run(bench: Bench) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    sizes = [(2, 16)] if bench.tiny else [(16, 128), (32, 512)]
    steps = 13 if bench.tiny else 62

    def rows() -> Any:
        for batch, tokens in sizes:
            data = [
                {"input_ids": torch.randint(1000, 20_000, (tokens,)), "labels": torch.tensor(i % 2),
                 "attention_mask": (torch.arange(tokens) < tokens - i % 7).long()}
                for i in range(batch * steps)
            ]  # fmt: skip
            for source in ("batch", "probe"):
                yield batch, tokens, source, *_trained(bench, data, batch, steps, source)

    table(
        "Training BERT-base, bf16-mixed, default metrics, TensorBoard, without the pictures of ten samples",
        "batch | tokens | source | plain step ms | a sample adds ms | of it in its own step | "
        "of a run sampled every 50 steps | cost_seconds ms | warnings",
        rows(),
    )


def _trained(bench: Bench, data: Any, batch: int, steps: int, source: str) -> tuple[object, ...]:
    clock = Clock(bench)
    every = 3 if bench.tiny else 15
    monitor = GeometryMonitor(schedule=lambda step: step % every == 0, source=source)  # type: ignore[arg-type]
    without = mock.patch.object(PictureSchedule, "due", return_value=False)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught, without:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            accelerator="cpu" if bench.tiny else "gpu", devices=1,
            precision="bf16-mixed", max_steps=steps, callbacks=[monitor, clock],
            logger=TensorBoardLogger(directory), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(_classifier(bench), DataLoader(data, batch))
        costs = load_history(trainer.log_dir).metadata["cost_seconds"]
    times = dict(enumerate(clock.steps(), 1))
    # kernels are compiled in the first sample; what is left of a sample slows the steps after it
    sampled = [step for step in times if step % every == 0 and step > every][:-1]
    plain = statistics.median(times[s] for s in times if s > every and s % every > every // 2)
    added = [sum(times[s + i] - plain for i in range(every)) for s in sampled]
    own = [str(w.message).splitlines()[0] for w in caught if "lightning_geo" in str(w.message)]
    return (
        plain,
        statistics.median(added),
        statistics.median(times[s] - plain for s in sampled),
        f"{statistics.median(added) / (50 * plain):.1%}",
        1e3 * statistics.median(costs[2:]),
        "; ".join(own) or "none",
    )
