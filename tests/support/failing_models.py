"""A logger, models and LightningModules that a monitor cannot cope with in whole."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from support.lit import Lit, bert

# -- loggers and disks


class Down(CSVLogger):
    """Cannot be reached."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("geometry") for name in metrics):
            raise ConnectionError("the server is down")
        super().log_metrics(metrics, step)


# -- models


class Headless(nn.Module):
    """No attention at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(60, 8), nn.Linear(8, 2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        loss = nn.functional.cross_entropy(self.layers(input_ids).mean(1), labels)
        return type("Output", (), {"loss": loss})


class LinearAttention(nn.Module):
    """An attention without softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).chunk(3, -1)
        return x + q @ (k.transpose(1, 2) @ v) / x.shape[1]


class Strange(nn.Module):
    """A BERT before whose encoder there is an attention of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.strange = bert(), LinearAttention()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.strange(self.bert.bert.embeddings.word_embeddings(input_ids))
        return self.bert(inputs_embeds=x, attention_mask=attention_mask, labels=labels)


class TrainOnly(nn.Module):
    """Cannot run in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()

    def forward(self, **inputs: Tensor) -> Any:
        if not self.training:
            raise NotImplementedError("made for training alone")
        return self.bert(**inputs)


def poisoned() -> nn.Module:
    """NaN in the second layer's values, and so in all that follows, but not in its own scores."""
    model = bert(layers=3)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.weight.fill_(torch.nan)
    return model


class ByMethod(Lit):
    """Calls the model past its ``__call__``."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.forward(**batch).loss  # type: ignore[no-any-return]


class Unrecordable(Lit):
    """Hands the model an object that no probe can keep."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch, extra=object()).loss  # type: ignore[no-any-return]


class Unkept(Unrecordable):
    """The object comes with the batch, so that no probe can keep its step either."""

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return {**batch, "extra": object()}

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.model(**batch).loss  # type: ignore[no-any-return]


class Extra(nn.Module):
    """Takes an argument that it does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()

    def forward(self, extra: object = None, **inputs: Tensor) -> Any:
        return self.bert(**inputs)
