"""Parts of a model that write state of every kind in their forward."""

from __future__ import annotations

import collections
import copy
import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from run_machine.descriptions import WIDTH

__all__ = ["PARTS", "Losses"]


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
