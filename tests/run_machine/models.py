"""Tiny models that write state of every kind in their forward, and batches of unequal lengths and keys."""

from __future__ import annotations

import collections
import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from run_machine.failures import Failure
from run_machine.short import Short

__all__ = [
    "ATTENTIONS",
    "CALLS",
    "PARTS",
    "ROOTS",
    "WIDTH",
    "Batches",
    "Model",
    "Module",
    "loader",
]

WIDTH, HEADS, VOCABULARY = 8, 2, 20

ROOTS = ("child", "keywords", "split", "itself", "stepwise")
CALLS = ("once", "twice", "quiet first")


@dataclass(frozen=True)
class Batches:
    """The data of a run.

    Args:
        lengths: Of the sequences of each batch.
        extra: Whether each batch has the optional key.
        shuffle: Whether their order is drawn from the global generator.
        validation: How many of them are validated on too; 0 for no validation.
    """

    lengths: tuple[tuple[int, ...], ...]
    extra: tuple[bool, ...]
    shuffle: bool = False
    validation: int = 0

    def make(self, seed: int) -> list[dict[str, Tensor]]:
        """The batches, padded on the right."""
        generator = torch.Generator().manual_seed(seed)
        batches = []
        every = self.lengths if seed < 100 else self.lengths[::-1]  # another rank's
        for lengths, extra in zip(every, self.extra, strict=True):
            longest = max(lengths)
            mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
            ids = torch.randint(1, VOCABULARY, (len(lengths), longest), generator=generator)
            batch = {"ids": ids * mask, "mask": mask}
            if extra:
                batch["extra"] = torch.rand(len(lengths), longest, 1, generator=generator)
            batches.append(batch)
        return batches


def loader(batches: list[dict[str, Tensor]], *, shuffle: bool = False) -> DataLoader[Any]:
    """One batch at a time."""
    return DataLoader(batches, batch_size=None, shuffle=shuffle)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class Model(Short):
    """Description of a LightningModule.

    Args:
        root: What the trainer feeds: a child of the LightningModule by position, or by keywords; an encoder
            behind an embedding; the LightningModule, which logs in its forward; its step alone.
        attention: How attention is computed.
        parts: What writes state between the layers.
        calls: How often a step calls the model.
        layers: How many.
        tied: Whether all layers are the same module.
        gathers: Whether hooks of the user's gather activations for the loss.
        manual: Whether the LightningModule optimizes by hand.
    """

    root: str = "child"
    attention: str = "sdpa"
    parts: tuple[str, ...] = ()
    calls: str = "once"
    layers: int = 1
    tied: bool = False
    gathers: bool = False
    manual: bool = False


# -- attention


class Attention(nn.Module):
    """Two heads with a residual around them; notes what it is given where ``seen`` is a list."""

    seen: list[tuple[Attention, Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append((self, x.detach().clone(), visible.clone()))
        return x + self.attend(x, visible)

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def projections(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values, in rows."""
        raise NotImplementedError

    def entropies(self, x: Tensor, visible: Tensor) -> list[Tensor]:
        """[head, row] entropies of the visible rows of each sequence, in float64 and dense."""
        weight, bias = (p.detach().double() for p in self.projections())
        q, k = (x.double() @ weight.T + bias)[..., : 2 * WIDTH].unflatten(-1, (2, HEADS, -1)).unbind(-3)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH / HEADS)
        p = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
        rows = -torch.special.xlogy(p, p).sum(-1)
        return [mine[:, real] for mine, real in zip(rows, visible, strict=True)]


class Projected(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def projections(self) -> tuple[Tensor, Tensor]:
        return self.qkv.weight, self.qkv.bias

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.mix(q, k, v, visible[:, None, None]).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class ByHand(Projected):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) @ v


class Packaged(Attention):
    """``nn.MultiheadAttention``, with the batch on the first axis or the second."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.batch_first = batch_first

    def projections(self) -> tuple[Tensor, Tensor]:
        return self.mha.in_proj_weight, self.mha.in_proj_bias

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.mha(x, x, x, key_padding_mask=~visible, need_weights=False)[0]
        return y if self.batch_first else y.transpose(0, 1)  # type: ignore[no-any-return]


class Checkpointed(Projected):
    """Runs again in backward."""

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        return checkpoint(super().attend, x, visible, use_reentrant=False)  # type: ignore[no-any-return]


class Bert(Attention):
    """A BERT of one layer as transformers has it; its entropies are not checked."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS,
                intermediate_size=WIDTH, max_position_embeddings=16,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        return self.bert(inputs_embeds=x, attention_mask=visible.long()).last_hidden_state  # type: ignore[no-any-return]


ATTENTIONS: dict[str, Callable[[], Attention]] = {
    "sdpa": Projected,
    "by hand": ByHand,
    "packaged": lambda: Packaged(batch_first=True),
    "sequence first": lambda: Packaged(batch_first=False),
    "checkpointed": Checkpointed,
    "bert": Bert,
}


# -- parts that write state


class Mean(nn.Module):
    """A running mean in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = {"mean": torch.zeros(WIDTH), "count": 0}

    def forward(self, x: Tensor) -> Tensor:
        mean = self.stats["mean"]
        assert isinstance(mean, Tensor)
        mean += 0.1 * (x.detach().mean((0, 1)) - mean)
        self.stats["count"] += 1
        return x - mean.clone()


class Queue(nn.Module):
    """Earlier activations in a deque, as momentum contrast keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = collections.deque([torch.zeros(WIDTH)], maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.stack(list(self.queue)).mean(0)
        self.queue.append(x.detach().mean((0, 1)))
        return x - 0.1 * rest


class Losses(nn.Module):
    """Auxiliary losses in a list that the step empties."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.losses.append(x.square().mean())
        return x


class Kept(nn.Module):
    """Its last activations, with their graph."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x * 1
        return x


class Counter:
    """A plain object."""

    def __init__(self) -> None:
        self.count, self.seen = 0, {"lengths": [0]}


class Plain(nn.Module):
    """Counts in an object, which changes what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.counter.count += 1
        self.counter.seen["lengths"] = [*self.counter.seen["lengths"][-3:], x.shape[1]]
        return x * (1 + 0.01 * self.counter.count)


class Buffers(nn.Module):
    """Buffers that are written in place, anew and once it sees a longer sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(WIDTH))
        self.register_buffer("table", torch.zeros(1, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.latest = x.detach().mean((0, 1))
        if self.table.shape[0] < x.shape[1]:
            self.table = torch.linspace(0, 1, x.shape[1] * WIDTH).view(-1, WIDTH)
        return x + self.table[: x.shape[1]] + 0.01 * self.count


class Batch(nn.Module):
    """Batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Rescaled(nn.Module):
    """A parameter that its forward rescales in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.div_(self.weight.data.norm() / math.sqrt(WIDTH)).mul_(0.99)
        return x @ self.weight


class Momentum(nn.Module):
    """A slow copy of its own weights, written in place and anew."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = nn.Linear(WIDTH, WIDTH)
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.fast.weight, alpha=0.1)
            self.slow.bias.data = self.slow.bias.data * 0.9 + self.fast.bias.data * 0.1
        return self.fast(x) - 0.5 * self.slow(x)  # type: ignore[no-any-return]


class Noise:
    """Generators in an object."""

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)


class Generators(nn.Module):
    """Draws from generators of its own, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise()

    def forward(self, x: Tensor) -> Tensor:
        draw = torch.rand(WIDTH, generator=self.noise.torch)
        return x * (0.5 + draw + self.noise.numpy.random() + self.noise.python.random())


class Draws(nn.Module):
    """Draws from everybody's generators, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (0.5 + torch.rand(WIDTH) + np.random.random() + random.random())


class Lazy(nn.Module):
    """Makes an attribute when it first runs."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "shift"):
            self.shift, self.first = torch.rand(WIDTH), x.detach().mean((0, 1))
        return x + self.shift + self.first


class Normed(nn.Module):
    """Weight norm, and spectral norm with its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.spectral = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight(x) + self.spectral(x)  # type: ignore[no-any-return]


class Locked(nn.Module):
    """Cannot be copied: it holds a generator function's frame."""

    def __init__(self) -> None:
        super().__init__()
        self.source = (number for number in range(10**6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "mean": Mean,
    "queue": Queue,
    "losses": Losses,
    "kept": Kept,
    "plain": Plain,
    "buffers": Buffers,
    "batch norm": Batch,
    "rescaled": Rescaled,
    "momentum": Momentum,
    "generators": Generators,
    "draws": Draws,
    "dropout": lambda: nn.Dropout(0.3),
    "lazy": Lazy,
    "normed": Normed,
    "locked": Locked,
}


# -- the model


class Encoder(nn.Module):
    """Parts and layers, taking turns."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.parts = nn.ModuleList([PARTS[name]() for name in model.parts])
        made = [ATTENTIONS[model.attention]() for _ in range(1 if model.tied else model.layers)]
        self.layers = nn.ModuleList(made * model.layers if model.tied else made)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        for layer in self.layers:
            x = layer(x, visible)
        return x


class Net(nn.Module):
    """Embedding and encoder."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(VOCABULARY, WIDTH), Encoder(model)

    def forward(self, ids: Tensor, mask: Tensor, extra: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        return self.encoder(x if extra is None else x + extra, mask)  # type: ignore[no-any-return]


class Module(pl.LightningModule):
    """A LightningModule of a description.

    Args:
        model: The description.
        seed: Of its weights.
    """

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__()
        self.model = model
        self.failure = Failure()
        self.automatic_optimization = not model.manual
        random_states = torch.get_rng_state()
        torch.manual_seed(seed)
        if model.root in ("child", "keywords"):
            self.net = Net(model)
        else:
            self.embed, self.encoder = nn.Embedding(VOCABULARY, WIDTH), Encoder(model)
        torch.set_rng_state(random_states)
        #: what hooks of the user's gathered since the last step, and how much in each step
        self.gathered: list[Tensor] = []
        self.counts: list[int] = []
        for layer in self.layers if model.gathers else ():
            layer.register_forward_hook(self.gather)

    @property
    def layers(self) -> list[Attention]:
        """Each attention once."""
        return list(dict.fromkeys(m for m in self.modules() if isinstance(m, Attention)))

    def gather(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.gathered.append(output.mean())

    def forward(self, ids: Tensor, mask: Tensor, extra: Tensor | None = None) -> Tensor:
        self.failure("forward")
        x = self.embed(ids)
        out = self.encoder(x if extra is None else x + extra, mask)
        if self.model.root == "itself":
            self.log("norm", out.detach().norm(), on_step=True, on_epoch=True, batch_size=len(ids))
        return out  # type: ignore[no-any-return]

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """One call of the model."""
        ids, mask, extra = batch["ids"], batch["mask"], batch.get("extra")
        if self.model.root == "keywords":
            return self.net(**batch)  # type: ignore[no-any-return]
        if self.model.root == "child":
            return self.net(ids, mask) if extra is None else self.net(ids, mask, extra)  # type: ignore[no-any-return]
        if self.model.root == "stepwise":
            x = self.embed(ids)
            return self.encoder(x if extra is None else x + extra, mask)  # type: ignore[no-any-return]
        return self(ids, mask, extra)  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """All calls of a step."""
        shorter = {name: x[:1, : max(2, x.shape[1] - 1)] for name, x in batch.items() if name != "extra"}
        if self.model.calls == "quiet first":
            with torch.no_grad():
                self.run(shorter)
        loss = (self.run(batch) - 1).square().mean()
        if self.model.calls == "twice":
            loss = loss + self.run(shorter).square().mean()
        for module in self.modules():
            if isinstance(module, Losses):
                loss = loss + 0.1 * sum(module.losses, torch.zeros(()))
                module.losses.clear()
        self.counts = [*self.counts[-8:], len(self.gathered)]
        loss = loss + 0.1 * sum(self.gathered, torch.zeros(()))
        self.gathered.clear()
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.failure("training_step")
        loss = self.loss(batch)
        self.log("loss", loss.detach(), on_step=True, on_epoch=True, batch_size=len(batch["ids"]))
        if self.model.manual:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
            optimizer.zero_grad()  # type: ignore[union-attr]
        self.failure("training_step_end")
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.failure("validation_step")
        self.log("validation", self.loss(batch), batch_size=len(batch["ids"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.failure("test_step")
        self.log("test", self.loss(batch), batch_size=len(batch["ids"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.failure("predict_step")
        return self.loss(batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.failure("optimizer_step")
        super().optimizer_step(*args, **kwargs)
        self.failure("optimizer_step_end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)
