"""What is trained with and without a monitor: models and modules that a monitor could disturb."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from families.handwritten import Block
from support.lit import Causal, Classifier, Lit, bert


class Drawing(nn.Module):
    """Drops half of the tokens at random even in eval mode, as a masked autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.own = torch.Generator().manual_seed(3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        noise = torch.rand(input_ids.shape) + torch.rand(input_ids.shape, generator=self.own)
        keep = (noise * (1 + random.random() + np.random.rand())).argsort(1)[:, :5]
        kept = {"input_ids": input_ids.gather(1, keep), "attention_mask": attention_mask.gather(1, keep)}
        return self.bert(**kept, labels=labels)


class Writing(nn.Module):
    """Writes buffers, in place and anew, and plain attributes in every forward; does more in ``train``."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.norm = nn.BatchNorm1d(10)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("longest", torch.zeros(()))
        self.register_buffer("cache", None)
        self.seen = 0
        self.switched = 0

    def train(self, mode: bool = True) -> Writing:
        self.switched += 1
        return super().train(mode)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        self.calls += 1
        self.longest = torch.maximum(self.longest, attention_mask.sum(1).max().float())
        self.cache = attention_mask.float()
        self.seen += 1
        result = self.bert(input_ids, attention_mask, labels=labels)
        scale = 1 + 1e-3 * (self.calls + self.longest + self.seen + self.cache.mean())
        result.loss = result.loss * scale + self.norm(input_ids.float()).square().mean()
        return result


class Encoder(nn.Module):
    """``nn.TransformerEncoder``, with another one as a frozen teacher: its fast path must stay on."""

    def __init__(self, teacher: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 2)
        self.teacher = nn.TransformerEncoder(layer, 2).requires_grad_(False) if teacher else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        y = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        loss = nn.functional.cross_entropy(self.head(y.mean(1)), labels)
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher.eval()(x)
            loss = loss + (y - target).square().mean()
        return type("Output", (), {"loss": loss})


def checkpointed(reentrant: bool, **options: Any) -> nn.Module:
    model = bert(**options)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def lora() -> nn.Module:
    return get_peft_model(bert(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["query", "value"]))


class Light(nn.Module):
    """One block written by hand, with dropout: the compiler traces it in a fraction of a BERT's time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(60, 32), nn.ModuleList([Block("sdpa")])
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x, _ = self.blocks[0](self.dropout(self.embed(input_ids)), attention_mask[:, None, None].bool())
        logits = self.head(x.mean(1))
        return SequenceClassifierOutput(nn.functional.cross_entropy(logits, labels), logits)  # type: ignore[arg-type]


def one_layer() -> nn.Module:
    return bert(layers=1)


def compiled(how: str, backend: str = "eager", build: Callable[[], Any] = Light) -> nn.Module:
    model = build()
    if how == "wrapped":
        return torch.compile(model, backend=backend)  # type: ignore[return-value]
    if how == "in place":
        model.compile(backend=backend)
    elif how == "blocks":
        for layer in model.bert.encoder.layer if hasattr(model, "bert") else model.blocks:
            layer.compile(backend=backend)
    else:
        model.forward = torch.compile(model.forward, backend=backend)
    return model  # type: ignore[no-any-return]


class Towers(nn.Module):
    """A compiled model and one that is not, which runs in the same step."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = compiled("in place"), bert(layers=1)


class TowersLit(Lit):
    """Two observed models, side by side."""

    def __init__(self) -> None:
        super().__init__(Towers)
        self.one, self.other = self.model.one, self.model.other
        del self.model

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.one(**batch).loss + self.other(**batch).loss  # type: ignore[no-any-return]


class CompiledLoss(Lit):
    """The loss function is compiled, not the model."""

    def __init__(self) -> None:
        super().__init__(bert)
        # dynamo of torch 2.6 cannot begin at a function of torch's own
        self.criterion = torch.compile(lambda *args: nn.functional.cross_entropy(*args), backend="eager")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.criterion(self.model(**inputs).logits, labels)  # type: ignore[no-any-return]


class InPlace(Lit):
    """The LightningModule itself is compiled, and called."""

    def __init__(self) -> None:
        super().__init__(Light)
        self.compile(backend="eager")

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(**batch).loss  # type: ignore[no-any-return]


class Silent(Lit):
    """Logs nothing: what Lightning 2.4 does in `self.log` is too much for the compiler of torch 2.6."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch)


def compiled_as_a_whole() -> Any:
    return torch.compile(Silent(Light), backend="eager")


#: name -> how the LightningModule is made, and options of the Trainer
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (Classifier, {}),
    "gpt2": (Causal, {}),
    "eager": (functools.partial(Classifier, attn_implementation="eager"), {}),
    "bf16-mixed": (Classifier, {"precision": "bf16-mixed"}),
    "bf16-true": (Causal, {"precision": "bf16-true"}),
    "accumulation": (Classifier, {"accumulate_grad_batches": 3}),
    "checkpointing": (lambda: Lit(lambda: checkpointed(False)), {}),
    "checkpointing, reentrant": (lambda: Lit(lambda: checkpointed(True)), {}),
    "manual": (functools.partial(Classifier, manual=True), {}),
    "lora": (lambda: Lit(lora), {}),
    "draws": (lambda: Lit(Drawing), {}),
    "writes": (lambda: Lit(Writing), {}),
    "encoder": (lambda: Lit(Encoder), {}),
    "frozen teacher": (lambda: Lit(lambda: Encoder(teacher=True)), {}),
    "compiled": (lambda: Lit(lambda: compiled("wrapped")), {}),
    "compiled in place": (lambda: Lit(lambda: compiled("in place", "aot_eager")), {}),
    "compiled by inductor": (lambda: Lit(lambda: compiled("in place", "inductor", one_layer)), {}),
    "compiled blocks": (lambda: Lit(lambda: compiled("blocks")), {}),
    "compiled forward": (lambda: Lit(lambda: compiled("forward")), {}),
    "compiled and not": (TowersLit, {}),
    "compiled loss": (CompiledLoss, {}),
    "compiled root": (InPlace, {}),
    "compiled as a whole": (compiled_as_a_whole, {}),
}
