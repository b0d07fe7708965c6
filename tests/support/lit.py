"""Tiny LightningModules around real transformers models, data for them, and a Trainer that keeps quiet.

Import as ``from support.lit import Classifier, Causal, loader, fit``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

VOCABULARY = 60
#: What the sequences of :func:`sequences` start with, in the way of BERT's [CLS].
FIRST_TOKEN = 1
PADDING = 0


def bert(layers: int = 2, heads: int = 4, width: int = 32, dropout: float = 0.1, **config: Any) -> nn.Module:
    """A random BERT for classification into two classes."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=2 * width, max_position_embeddings=32, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, **config,
        )
    )  # fmt: skip


def gpt2(layers: int = 2, heads: int = 4, width: int = 32, dropout: float = 0.1, **config: Any) -> nn.Module:
    """A random GPT-2."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=heads, n_positions=32,
            attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
            use_cache=False, bos_token_id=1, eos_token_id=2, **config,
        )
    )  # fmt: skip


def sequences(count: int = 32, length: int = 10, seed: int = 0) -> list[dict[str, Tensor]]:
    """Right-padded random sequences; the label says whether low or high tokens prevail."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
        ids[0] = FIRST_TOKEN
        mask = torch.arange(length) < length - index % 4
        label = (ids[mask].float().mean() > VOCABULARY / 2).long()
        items.append({"input_ids": ids.where(mask, PADDING), "attention_mask": mask.long(), "labels": label})
    return items


def loader(count: int = 32, batch_size: int = 4, *, shuffle: bool = False, **data: Any) -> DataLoader[Any]:
    """Batches of :func:`sequences`; shuffling draws from the global generator, as in real runs."""
    return DataLoader(sequences(count, **data), batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]


class Lit(pl.LightningModule):
    """Trains ``build()`` with AdamW and keeps every loss.

    Args:
        build: Makes the model, after the seed is set.
        seed: Of the initial weights.
        manual: Whether to optimize by hand, two batches an update.
        learning_rate: Of AdamW.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        seed: int = 0,
        manual: bool = False,
        learning_rate: float = 1e-2,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = build()
        self.automatic_optimization = not manual
        self.learning_rate = learning_rate
        self.losses: list[Tensor] = []

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of the model on one batch."""
        return self.model(**batch).loss  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.detach().clone())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("validation_loss", self.loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).logits  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class Classifier(Lit):
    """A tiny BERT classifier with dropout; keyword arguments of :func:`bert` and :class:`Lit`."""

    def __init__(self, *, seed: int = 0, manual: bool = False, learning_rate: float = 1e-2, **model: Any):
        super().__init__(lambda: bert(**model), seed=seed, manual=manual, learning_rate=learning_rate)


class Failing(Classifier):
    """Stops at a step."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


class Causal(Lit):
    """A tiny GPT-2 with dropout; keyword arguments of :func:`gpt2` and :class:`Lit`."""

    def __init__(self, *, seed: int = 0, manual: bool = False, learning_rate: float = 1e-2, **model: Any):
        super().__init__(lambda: gpt2(**model), seed=seed, manual=manual, learning_rate=learning_rate)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return self.model(**{**batch, "labels": labels}).loss  # type: ignore[no-any-return]


def trainer(directory: Path | str, *callbacks: pl.Callback, steps: int = 4, **options: Any) -> pl.Trainer:
    """A Trainer on the CPU without bars, checkpoints or a logger, unless ``options`` say so."""
    quiet = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "max_steps": steps, "max_epochs": -1, "default_root_dir": directory, "callbacks": list(callbacks),
    }  # fmt: skip
    return pl.Trainer(**{**quiet, **options})


def fit(
    directory: Path | str,
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    data: DataLoader[Any] | None = None,
    validation: DataLoader[Any] | None = None,
    seed: int = 1,
    **options: Any,
) -> pl.Trainer:
    """Train ``module`` with the global generators at ``seed``; without ``validation`` no sanity check."""
    runner = trainer(directory, *callbacks, **options)
    pl.seed_everything(seed, verbose=False)
    runner.fit(module, loader() if data is None else data, validation)
    return runner


def weight_averaging(name: str, **options: Any) -> pl.Callback:
    """A callback of Lightning that averages weights; skips the test where the installed one has none."""
    kind = getattr(pl.callbacks, name, None)
    if kind is None:
        pytest.skip(f"this Lightning has no {name}")
    callback: pl.Callback = kind(**options)
    return callback
