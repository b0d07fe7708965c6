"""What a sample prepares, it prepares once, however many calls the probe has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from torch import nn

from lightning_geo import GeometryMonitor, load_history
from support.lit import Lit, bert, fit, loader


def test_hooks_are_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not anew for each of the probe's four calls, nor, for importance, for each of its sequences."""
    counts: list[int] = []
    installed: list[type] = []
    register = nn.Module.register_forward_hook

    def counted(self: nn.Module, *args: Any, **options: Any) -> Any:
        if options.get("always_call"):  # the tap's
            installed.append(type(self))
        return register(self, *args, **options)

    class Count(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            counts.append(len(installed))
            installed.clear()

    monkeypatch.setattr(nn.Module, "register_forward_hook", counted)
    monitor = GeometryMonitor(1, metrics=["entropy", "importance"], importance_every_n_samples=1)
    fit(tmp_path, Lit(bert), monitor, Count(), steps=3, validation=loader(16, batch_size=4))
    assert np.isfinite(load_history(tmp_path / "lightning_geo" / "version_0")["importance"]).all()
    hooked = [m for m in bert().modules() if not isinstance(m, nn.ModuleList)]
    assert counts == [2 * len(hooked)] * 3  # for the sample, and for importance
