"""Models that call ``flex_attention`` themselves, and what their attention is in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention whose inner function is given: 4 heads of 8, ``shared`` of them for keys and values."""

    def __init__(self, attend: Attend, shared: int = 4) -> None:
        super().__init__()
        self.q, self.kv, self.attend, self.num_heads = (
            nn.Linear(32, 32),
            nn.Linear(32, 16 * shared),
            attend,
            4,
        )
        with torch.no_grad():
            self.q.weight.mul_(4)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, -1, 8)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(*self.project(x)).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *attends: Attend, shared: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(attend, shared) for attend in attends)
        self.requires_grad_(False)  # on the CPU, flex attention refuses to be differentiated

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def probabilities(
    block: nn.Module, x: Tensor, visible: Tensor | None = None, scale: float = 8**-0.5
) -> Tensor:
    """Of one block, in float64."""
    assert isinstance(block, Block)
    with torch.no_grad():
        q, k, _ = (part.double() for part in block.project(x))
    scores = q @ k.repeat_interleave(4 // k.shape[1], 1).transpose(-1, -2) * scale
    return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(-1)


def entropy(p: Tensor) -> np.ndarray[Any, Any]:
    """[H], over all rows."""
    return torch.special.entr(p).sum(-1).mean((0, 2)).numpy()


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flex_attention(q, k, v)
