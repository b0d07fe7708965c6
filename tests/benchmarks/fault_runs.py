"""The runs of the benchmark of faults: two models, eight faults from one step on, and healthy runs."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lightning_geo import GeometryMonitor

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from texts import bbc_news, packaged_bert, tokenizer_of

__all__ = ["FAULTS", "FAULT_AT", "STEPS", "Case", "cases", "train"]

#: Steps of a run, and the step that a fault first acts on.
STEPS, FAULT_AT = 300, 200

_NOISE = 5  # batches
_GROWTH = 1.1  # a step
_JUMP = 30.0


@dataclass(frozen=True)
class Case:
    """One run: a model, what is wrong with it, and a seed."""

    model: str
    fault: str
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.model}/{self.fault}/{self.seed}"


#: Fault -> the model that it is done to.
FAULTS = {
    "learning rate +10 % a step": "decoder",
    "learning rate × 30": "decoder",
    "five batches of noise": "decoder",
    "labels shuffled": "decoder",
    "a layer frozen": "decoder",
    "causal mask lost in training": "decoder",
    "weights rounded to bf16": "decoder",
    "padding mask lost": "bert",
}


def cases(seeds: int, healthy: int) -> list[Case]:
    """All runs: each fault with so many seeds, and so many healthy runs of each model.

    Seeds below 20, and healthy ones from 100 to 129, were looked at while the rules were written.
    """
    faulty = [Case(model, fault, 20 + seed) for seed in range(seeds) for fault, model in FAULTS.items()]
    return faulty + [Case(m, "healthy", 200 + seed) for seed in range(healthy) for m in ("decoder", "bert")]


# -- models and data


class _Batches(IterableDataset[dict[str, Tensor]]):
    """So many batches, each drawn by its number and the seed alone."""

    def __init__(
        self, draw: Callable[[np.random.Generator], dict[str, Tensor]], seed: int, count: int
    ) -> None:
        self._draw, self._seed, self._count = draw, seed, count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(self._count):
            yield self._draw(np.random.default_rng([self._seed, number]))


@cache
def _bytes() -> np.ndarray[Any, Any]:
    text = "\n".join(bbc_news().documents).encode("ascii", "ignore")
    return np.frombuffer(text, np.uint8).astype(np.int64)


def _pieces(random: np.random.Generator) -> dict[str, Tensor]:
    """16 pieces of 64 bytes of the news."""
    text = _bytes()
    starts = random.integers(0, len(text) - 64, 16)
    ids = torch.from_numpy(np.stack([text[start : start + 64] for start in starts]))
    return {"input_ids": ids, "labels": ids.clone()}


@cache
def _tokens() -> tuple[list[list[int]], list[int]]:
    texts = bbc_news()
    tokenizer = tokenizer_of(packaged_bert())
    return tokenizer(texts.documents, truncation=True, max_length=32)["input_ids"], texts.labels


def _documents(random: np.random.Generator) -> dict[str, Tensor]:
    """8 documents, cut to 12 to 32 tokens and padded to 32."""
    tokens, labels = _tokens()
    chosen = random.integers(0, len(labels), 8)
    ids, mask = torch.zeros(8, 32, dtype=torch.long), torch.zeros(8, 32, dtype=torch.long)
    for row, index in enumerate(chosen):
        kept = tokens[index][: random.integers(12, 33)]
        ids[row, : len(kept)], mask[row, : len(kept)] = torch.tensor(kept), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([labels[i] for i in chosen])}


def _decoder() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _bert() -> nn.Module:
    model: nn.Module = BertForSequenceClassification.from_pretrained(
        packaged_bert(), num_labels=5, local_files_only=True
    )
    return model


#: Model -> what makes it, its batches, and its usual learning rate.
_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., dict[str, Tensor]], float]] = {
    "decoder": (_decoder, _pieces, 1e-3),
    "bert": (_bert, _documents, 5e-5),
}


# -- training


class _Training(pl.LightningModule):
    """AdamW with a linear warm-up of 20 steps, and one fault."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        make, _, self._rate = _MODELS[case.model]
        self.model = make()
        self._case = case
        self._random = torch.Generator().manual_seed(case.seed)
        self.losses: list[float] = []

    @property
    def _faulty(self) -> bool:
        return self._case.fault != "healthy" and self.global_step >= FAULT_AT

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        if self._faulty:
            batch = self._spoiled(batch)
        with self._bidirectional():
            loss: Tensor = self.model(**batch).loss
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss)
        return loss

    def _spoiled(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        fault, random = self._case.fault, self._random
        if fault == "five batches of noise" and self.global_step < FAULT_AT + _NOISE:
            ids = torch.randint(0, 128, batch["input_ids"].shape, generator=random)
            return {**batch, "input_ids": ids, "labels": ids.clone()}
        if fault == "labels shuffled":
            labels = batch["labels"].flatten()
            order = torch.randperm(len(labels), generator=random)
            return {**batch, "labels": labels[order].view_as(batch["labels"])}
        if fault == "padding mask lost":
            return {name: value for name, value in batch.items() if name != "attention_mask"}
        return batch

    @contextlib.contextmanager
    def _bidirectional(self) -> Iterator[None]:
        """Lose the causal mask in training alone, as where a flag of the attention is set wrongly."""
        lost = self._faulty and self._case.fault == "causal mask lost in training"
        attentions = [m for m in self.modules() if lost and hasattr(m, "is_causal")]
        for module in attentions:
            module.is_causal = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for module in attentions:
                module.is_causal = True  # type: ignore[assignment]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._faulty and self._case.fault == "a layer frozen":
            for parameter in self._layers()[-1].parameters():
                parameter.grad = None

    def _layers(self) -> nn.ModuleList:
        return next(module for module in self.modules() if isinstance(module, nn.ModuleList))

    def on_train_batch_end(self, *_: Any) -> None:
        if self._case.fault == "weights rounded to bf16" and self.global_step > FAULT_AT:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.copy_(parameter.bfloat16())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self._rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor),
                "interval": "step",
            },
        }

    def _factor(self, step: int) -> float:
        factor, since = min(1.0, (step + 1) / 20), step - FAULT_AT + 1
        if since > 0 and self._case.fault == "learning rate +10 % a step":
            return factor * _GROWTH**since
        if since > 0 and self._case.fault == "learning rate × 30":
            return factor * _JUMP
        return factor


def train(case: Case, directory: Path) -> None:
    """Train one run, unless it has been: its record, and the loss of each step."""
    folder = directory / case.folder
    if (folder / "loss.npy").exists():
        return
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pl.seed_everything(case.seed, verbose=False)
    module = _Training(case)
    for old in folder.glob("events*"):
        old.unlink()
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=TensorBoardLogger(folder, "", ""), log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[GeometryMonitor(1, alerts=False, probe_size=8, scalars="model")],
    )  # fmt: skip
    batches = _Batches(_MODELS[case.model][1], case.seed, STEPS)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    np.save(folder / "loss.npy", np.array(module.losses))
