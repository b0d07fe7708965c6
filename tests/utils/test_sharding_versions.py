"""What splits parameters with a torch in which that was never tried is not trusted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_geo.observe.replay.gathering import unreplayable
from lightning_geo.utils._torch import sharding


def test_sharding_of_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    monkeypatch.setattr(sharding, "_TRIED", (99, 0))
    assert sharding.untried_sharding(model) == unreplayable(model, [model]) == ""
    monkeypatch.setattr(sharding, "sharded_modules", lambda root: [root])
    assert f"torch {torch.__version__}" in unreplayable(model, [model])
    monkeypatch.setattr(sharding, "_TRIED", (2, 0))
    assert sharding.untried_sharding(model) == ""
