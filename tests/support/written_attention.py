"""Attention that a test writes itself, and what its rows are, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_geo.storage.record import GeometryRecord

LENGTH = 12
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


def ids(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 64, (batch, length))


def padded(lengths: Sequence[int], left: bool = False, length: int = LENGTH) -> Tensor:
    positions = torch.arange(length)
    return torch.stack([(positions >= length - n if left else positions < n).long() for n in lengths])


def mean_of(rows: Tensor, real: Tensor | None = None) -> np.ndarray:
    """[B, H, Nq] to [H]: over real rows, then over sequences."""
    weights = torch.ones_like(rows) if real is None else real[:, None].double().expand_as(rows)
    return ((rows * weights).sum(-1) / weights.sum(-1)).mean(0).numpy()


def entropy_of(p: Tensor, real: Tensor | None = None) -> np.ndarray:
    p = p.double() / p.double().sum(-1, keepdim=True)
    return mean_of(-(p * p.clamp_min(1e-300).log()).sum(-1), real)


def pattern_of(p: Tensor, offset: int) -> dict[str, np.ndarray]:
    p = p.double()
    distance = torch.arange(p.shape[-2])[:, None] + offset - torch.arange(p.shape[-1])
    weights = {
        "self_mass": distance == 0, "previous_mass": distance == 1, "next_mass": distance == -1,
        "backward_mass": distance > 0, "forward_mass": distance < 0, "attention_distance": distance.abs(),
    }  # fmt: skip
    return {name: mean_of((p * weight).sum(-1)) for name, weight in weights.items()}


def close(record: GeometryRecord, name: str, layer: int, expected: np.ndarray) -> None:
    # ten times what was seen, a few roundings of float32
    np.testing.assert_allclose(record[name][layer], expected, atol=7e-6, err_msg=name)


def rows(record: GeometryRecord) -> dict[str, list[str]]:
    """stack -> modules that attend."""
    return {
        name: [m for m, heads in zip(stack["modules"], stack["heads"], strict=True) if heads]
        for name, stack in record.model["stacks"].items()
    }


class Block(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.qkv, self.out, self.attend, self.num_heads = nn.Linear(32, 96), nn.Linear(32, 32), attend, 4
        self.size = 8
        with torch.no_grad():
            self.qkv.weight.mul_(3)

    def heads(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))


class Stack(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(attend) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * q.shape[-1] ** -0.5
