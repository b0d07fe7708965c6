"""Runs whose importance comes from training's own backward, and models for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import GeometryMonitor, measure
from support.lit import Lit, bert, fit, loader, sequences
from support.same import traces

METRICS = ["importance", "metric:entropy"]


class Manual(Lit):
    """One batch an update, optimized by hand; ``backward`` says how the loss is differentiated."""

    def __init__(self, backward: Callable[[Lit, Tensor], None]) -> None:
        super().__init__(lambda: bert(dropout=0.0), manual=True)
        self.differentiate = backward

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.differentiate(self, self.loss(batch))
        optimizer.step()


def checkpointed(reentrant: bool) -> nn.Module:
    model = bert(dropout=0.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def run(
    directory: Path, module: Lit, *, steps: int = 1, **options: Any
) -> tuple[np.ndarray | None, list[str]]:
    """The importance at the last sample, [layer, head], and what was said of it."""
    monitor = GeometryMonitor(
        1, source="batch", metrics=METRICS, importance_every_n_samples=1, strict=True, special_token_ids=[1]
    )
    before = traces(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(directory, module, monitor, steps=steps, **{"data": loader(8, 4), **options})
    said = [str(w.message) for w in caught if "importance" in str(w.message)]
    record = monitor.last_record
    assert record is not None
    assert np.isfinite(record["entropy"]).all()
    assert traces(module) == before
    return {name: record[name] for name in record}.get("importance"), said


def alone(model: nn.Module, count: int = 4) -> np.ndarray:
    """What each of the first sequences says by itself, on a probe."""
    return measure(model, default_collate(sequences(count)), metrics="importance")["importance"]


class OwnAttention(nn.Module):
    """Keeps what its attention gave, and may change it in place afterwards."""

    def __init__(self, change: bool) -> None:
        super().__init__()
        self.inner, self.out, self.change = nn.Linear(32, 96), nn.Linear(32, 32), change
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        self.kept = weights @ v
        if self.change:
            self.kept.mul_(2.0)
        return x + self.out(self.kept.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Layers whose attention is torch's own, or written by hand."""

    def __init__(self, dropout: float, own: bool = False, change: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 32), nn.Linear(32, 2)
        layers = (
            OwnAttention(change) if own else nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
            for _ in range(2)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        loss = nn.functional.cross_entropy(self.head(x.mean(1)), labels)
        return type("Output", (), {"loss": loss})
