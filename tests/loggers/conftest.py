"""W&B without a network and without words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb


@pytest.fixture
def quiet_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    settings = {"SILENT": "true", "MODE": "offline", "CONFIG_DIR": str(tmp_path / "config")}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.finish()
