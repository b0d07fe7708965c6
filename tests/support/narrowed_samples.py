"""Samples of a model that may be observed in its asked layers alone, beside samples of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_geo.measurement.narrowing import Narrowing
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap
from lightning_geo.observe.narrow_tap import NarrowTap
from lightning_geo.observe.replay.undisturbed_run import undisturbed

EVERY = sorted({spec.family for spec in CATALOG.values()} - {"importance"})
METRICS = tuple(name for name in select(EVERY) if not compares_samples(name))


class Samples:
    """Samples of a model on the same inputs, each with the whole one beside it."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], layers: Any) -> None:
        self._model, self._batch, self._layers = model, batch, layers
        self._tap = Tap(model, (5, 6, 7))
        self._narrowings = {"": Narrowing(self._tap)}
        self._known: tuple[Any, Any] = ({}, {})
        self.metrics = METRICS

    def take(self, narrowings: Any = None) -> Measurement:
        known = self._known[narrowings is None]
        taps, layers = {"": self._tap}, self._layers
        sample = Measurement(taps, self.metrics, layers, known=known, narrowings=narrowings)
        with undisturbed(self._model), sample.observe():
            self._model(**self._batch)
        if sample.failures:
            raise sample.failures[0]
        return sample

    def is_narrow(self) -> bool:
        """Take both samples, compare everything about them, and return whether the first was narrow."""
        narrow, whole = self.take(self._narrowings), self.take()
        values, expected = narrow.compute(), whole.compute()
        assert values.structure == expected.structure
        assert narrow.coverage == whole.coverage
        assert narrow.unprojected.items() <= whole.unprojected.items()  # of the first sample too
        assert narrow.unobserved == whole.unobserved
        assert values.stacks.keys() == expected.stacks.keys()
        for stack, arrays in expected.stacks.items():
            assert values.stacks[stack].keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(values.stacks[stack][name], array, f"{stack} {name}")
        return isinstance(narrow._taps[""], NarrowTap)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.memory: Tensor | None = None

    def forward(
        self, x: Tensor, scores: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        query, key, value = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.memory is not None:
            key = value = self.memory
        product = query @ key.mT if scores is None else query @ key.mT + scores
        x = x + (product.softmax(-1) @ value).transpose(1, 2).flatten(2)
        if memory is not None:
            query, memory = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in (x, memory))
            x = x + ((query @ memory.mT).softmax(-1) @ memory).transpose(1, 2).flatten(2)
        return x, product


class Model(nn.Module):
    """Layers in a list, which pass on what ``how`` says."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.encoder, self.embed = Layer(), nn.Linear(8, 8)
        self.latents = nn.Parameter(torch.randn(2, 5, 8))
        self.how = how

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x, scores = self.embed(x), None
        memory = self.encoder(x)[0] if self.how == "memory" else None
        memory = self.latents if self.how == "latents" else memory
        for number, layer in enumerate(self.layers):
            if self.how == "skips" and number == 1:
                continue
            if self.how == "again" and number == 1:
                layer(x)
            if self.how == "attribute":
                keys = self.embed(other).unflatten(-1, (2, 4)).transpose(1, 2)
                layer.memory = keys if number == 3 else None  # type: ignore[assignment]
            if self.how == "fails":
                raise RuntimeError("planted")
            if self.how == "shorter" and number == 3:
                x = x[:, :-1]
            x, scores = layer(x, scores if self.how == "scores" and number else None, memory)
        return self.layers[3].forward(x)[0] if self.how == "direct" else x


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(2, 6, 8), "other": torch.randn(2, 6, 8)}
