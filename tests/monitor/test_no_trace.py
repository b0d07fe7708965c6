"""A replay leaves no trace, whatever a forward writes, and begins at the data."""

from __future__ import annotations

import collections
import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_geo import GeometryMonitor, measure
from support.small_nets import IDS, WIDTH, Attention, Lit, Net, fit, same


class InDict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stats = {"mean": torch.zeros(WIDTH)}

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        self.stats["mean"] += 0.1 * (out.detach().mean(0) - self.stats["mean"])
        return out - self.stats["mean"]


class InDeque(Net):
    def __init__(self) -> None:
        super().__init__()
        self.queue: collections.deque[Tensor] = collections.deque([torch.zeros(WIDTH)], maxlen=4)

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        rest = torch.stack(list(self.queue)).mean(0)
        self.queue.append(out.detach().mean(0))
        return out - 0.1 * rest


class Noise:
    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)


class Draws(Net):
    """Draws from generators that lie in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise()

    def forward(self, ids: Tensor) -> Tensor:
        draw = torch.rand(WIDTH, generator=self.noise.torch)
        return super().forward(ids) * (draw + self.noise.numpy.random() + self.noise.python.random())


class Momentum(Net):
    """Writes parameters."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.anew = anew
        self.slow = copy.deepcopy(self.layers[0]).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            for p, q in zip(self.slow.parameters(), self.layers[0].parameters(), strict=True):
                if self.anew:
                    p.data = p.data * 0.9 + q.data * 0.1
                else:
                    p.mul_(0.9).add_(q, alpha=0.1)
        return super().forward(ids) - 0.1 * self.slow(self.embed(ids)).mean(1)


class Locked(InDict):
    """Cannot be copied; counts in what is put back."""

    def __init__(self) -> None:
        super().__init__()
        self.file = (x for x in ())
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return Net.forward(self, ids) * self.calls


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "dict": InDict,
    "deque": InDeque,
    "generators": Draws,
    "parameters in place": lambda: Momentum(anew=False),
    "parameters anew": lambda: Momentum(anew=True),
    "not to be copied": Locked,
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_a_forward_writes_is_training_s_own(name: str, tmp_path: Path) -> None:
    alone, watched = Lit(BUILDS[name]), Lit(BUILDS[name])
    fit(tmp_path / "alone", alone)
    monitor = GeometryMonitor(1, metrics=["entropy"])
    said = fit(tmp_path / "watched", watched, monitor)
    assert same(alone, watched)
    assert monitor.last_record is not None
    assert any("cannot be copied" in line for line in said) is (name == "not to be copied")


class Split(Lit):
    """Embedding and encoder are its children: the encoder is given what depends on parameters."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(Attention(), Attention()))
        self.embed, self.drop = nn.Embedding(20, WIDTH), nn.Dropout(0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.drop(self.embed(ids)))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()


class Stepwise(Split):
    """Its step does it all: its own forward is never called."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = (self.net(self.drop(self.embed(batch[0]))) - 1).square().mean()
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("kind", [Split, Stepwise])
def test_a_replay_begins_at_the_data(kind: type[Split], tmp_path: Path) -> None:
    """The last sample is that of the final embeddings, without training's dropout."""
    lit, monitor = kind(), GeometryMonitor(1, metrics=["entropy"], probe_size=8)
    fit(tmp_path, lit, monitor)
    with torch.no_grad():
        expected = measure(lit.net.eval(), lit.embed(IDS[:8]), metrics=["entropy"])["entropy"]
    assert monitor.last_record is not None
    assert monitor.last_record.step == 4
    np.testing.assert_allclose(monitor.last_record["entropy"], expected, rtol=1e-5)


class Normed(Net):
    """Attends to what running statistics have normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(3 * self.embed(ids).transpose(1, 2) + 5).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


def test_the_first_sample_has_the_buffers_that_entered_its_step(tmp_path: Path) -> None:
    lit, first = Lit(Normed), []
    expected = measure(copy.deepcopy(lit.net).eval(), IDS[:8], metrics=["entropy"])["entropy"]
    monitor = GeometryMonitor(1, metrics=["entropy"], probe_size=8)

    class Keep(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            first.append(monitor.last_record)

    fit(tmp_path, lit, monitor, Keep())
    np.testing.assert_allclose(first[0]["entropy"], expected, rtol=1e-5)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embed, self.replays = nn.Linear(WIDTH, WIDTH), nn.Embedding(20, WIDTH), 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.embed(ids)).mean(1)  # type: ignore[no-any-return]


def test_no_attention_is_given_up_after_a_few_samples(tmp_path: Path) -> None:
    said = fit(tmp_path, Lit(Nothing), GeometryMonitor(1, metrics=["entropy"]))
    assert any("no attention was seen in 3 samples" in line for line in said)
