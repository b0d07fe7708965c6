"""Offline W&B for all runs of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quiet_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B writes below the tests' directory, sends nothing and says nothing."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SILENT": "true", "MODE": "offline"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
        yield
