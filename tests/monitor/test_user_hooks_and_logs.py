"""The user's hooks, logs and metrics move as they do without a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_geo import GeometryMonitor
from support.small_nets import Lit, Net, fit, same


class Features(Lit):
    """Its loss takes activations that hooks gather."""

    def __init__(self) -> None:
        super().__init__(Net)
        self.gathered: list[Tensor] = []
        self.seen: list[int] = []
        for layer in self.net.layers:  # type: ignore[union-attr]
            layer.register_forward_hook(lambda module, args, out: self.gathered.append(out.mean()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(len(self.gathered))
        loss = loss + torch.stack(self.gathered).square().mean()
        self.gathered.clear()
        return loss


def test_the_user_s_hooks_do_not_run_in_replays_and_that_is_said(tmp_path: Path) -> None:
    alone, watched = Features(), Features()
    fit(tmp_path / "alone", alone)
    said = fit(tmp_path / "watched", watched, GeometryMonitor(1, metrics=["entropy"]))
    assert watched.seen == alone.seen
    assert same(alone, watched)
    assert any("forward hooks were left out of replays" in line for line in said)


class Logs(Lit):
    """Is observed itself, and logs in its forward."""

    def __init__(self) -> None:
        super().__init__(Net)
        self.other = Net()

    def forward(self, ids: Tensor) -> Tensor:
        out = self.net(ids) + self.other(ids)
        self.log("norm", out.norm(), on_step=False, on_epoch=True)
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()


def test_replays_log_nothing_and_the_last_sample_is_taken(tmp_path: Path) -> None:
    logged = []
    for watch in (False, True):
        lit, monitor = Logs(), GeometryMonitor(1, metrics=["entropy"])
        said = fit(tmp_path / str(watch), lit, *[monitor] * watch)
        logged.append(float(lit.trainer.callback_metrics["norm"]))
    assert logged[0] == logged[1]
    assert monitor.last_record is not None
    assert monitor.last_record.step == 4
    assert not any("dropped" in line for line in said)


class LogsLoss(Lit):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class Metrics(pl.Callback):
    """Notes the user's metrics, as they are without a reader, in the hooks of a step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def _note(self, trainer: pl.Trainer, *_: Any) -> None:
        behind = trainer._logger_connector._callback_metrics
        self.seen.append({name: float(v) for name, v in behind.items() if "geometry" not in name})

    on_train_batch_start = on_before_backward = on_after_backward = _note  # type: ignore[assignment]
    on_before_optimizer_step = on_before_zero_grad = on_train_batch_end = _note  # type: ignore[assignment]


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_the_users_metrics_move_when_they_do_without_a_monitor(source: str, tmp_path: Path) -> None:
    seen = []
    for watch in (False, True):
        torch.manual_seed(0)
        metrics, monitor = Metrics(), GeometryMonitor(1, source=source, metrics=["entropy"])
        fit(tmp_path / str(watch), LogsLoss(Net), *[monitor] * watch, metrics)
        seen.append(metrics.seen)
        assert not watch or monitor.last_record is not None
    assert any(seen[0])
    assert seen[0] == seen[1]
