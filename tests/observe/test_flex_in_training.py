"""``flex_attention`` of the model's own under a monitor: both sources, and training as without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor, load_history
from support.flexible import Model, entropy, plain, probabilities
from support.lit import Lit, fit
from support.same import assert_same, outcome, traces

DATA = list(torch.randn(16, 12, 32, generator=torch.Generator().manual_seed(2)))


class Frozen(Model):
    """Flex attention refuses to be differentiated on the CPU: what is trained comes behind it."""

    def __init__(self, *attends: Callable[..., Tensor]) -> None:
        super().__init__(*attends)
        self.end = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.dropout(super().forward(x), 0.1, self.training))


class Regression(Lit):
    def loss(self, batch: Any) -> Tensor:
        return self.model(batch).square().mean()


def build(kind: str) -> Frozen:
    if kind == "eager":
        return Frozen(plain, plain)
    model = Frozen(plain, plain)
    for layer in model.layers:
        layer.attend = torch.compile(flex_attention, backend="eager")
    return model


def train(directory: Path, kind: str, *callbacks: Any) -> tuple[Regression, dict[str, Any]]:
    module = Regression(lambda: build(kind))
    runner = fit(directory, module, *callbacks, data=DataLoader(DATA, batch_size=4), steps=3)  # type: ignore[arg-type]
    return module, outcome(runner, module)


@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("source", ["probe", "batch"])
def test_samples_are_right_and_training_is_as_without(tmp_path: Path, source: str, kind: str) -> None:
    _, alone = train(tmp_path / "alone", kind)
    monitor = GeometryMonitor(every_n_steps=1, source=source, probe_size=4, strict=True)
    module, watched = train(tmp_path / "watched", kind, monitor)
    assert_same(watched, alone)
    assert traces(module) == []
    history = load_history(tmp_path / "watched" / "lightning_geo" / "version_0")
    x = torch.stack(DATA[:4])
    for layer, found in zip(module.model.layers, history["entropy"][0], strict=True):
        np.testing.assert_allclose(found, entropy(probabilities(layer, x)), atol=1e-5)
        x = layer(x)
