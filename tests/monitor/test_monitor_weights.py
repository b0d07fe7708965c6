"""The family ``weights`` in a run: its own clock, the start that drift is against, what enters a step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_geo import GeometryMonitor, measure
from support.lit import Lit, bert, loader, trainer
from support.same import records

METRICS = ["metric:entropy", "weights"]


def monitor(**options: Any) -> GeometryMonitor:
    return GeometryMonitor(metrics=METRICS, strict=True, **{"every_n_steps": 1, **options})


def run(
    directory: Path, watch: GeometryMonitor, module: pl.LightningModule, steps: int, **options: Any
) -> Any:
    data = options.pop("data", None) or loader(64)
    runner = trainer(directory, watch, max_steps=steps, **options)
    runner.fit(module, data)
    return runner


def test_weights_have_a_clock_of_their_own(tmp_path: Path) -> None:
    watch = monitor(weights_every_n_samples=3)
    runner = run(tmp_path, watch, Lit(bert), 5)
    kept = records(tmp_path)
    assert [r.step for r in kept] == [0, 1, 2, 3, 4, 5]
    assert [r.step for r in kept if "symmetry" in r] == [0, 3, 5]  # and the last
    assert all("entropy" in r for r in kept)
    drifts = [float(r["weight_drift.query"].mean()) for r in kept if "symmetry" in r]
    assert drifts[0] == 0 < drifts[1] < drifts[2]
    assert "geometry/symmetry" in runner.callback_metrics


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_sample_describes_the_weights_that_enter_its_step(tmp_path: Path, source: str) -> None:
    module = Lit(bert, learning_rate=0.05)
    entering: list[np.ndarray] = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
            entering.append(measure(pl_module.model, batch, metrics=["symmetry"])["symmetry"])

    watch = monitor(source=source, weights_every_n_samples=1)
    runner = trainer(tmp_path, watch, max_steps=3)
    runner.callbacks.append(Note())
    runner.fit(module, loader(64))
    for record, expected in zip(records(tmp_path), entering, strict=False):
        np.testing.assert_array_equal(record["symmetry"], expected)


def test_drift_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    # without dropout, and on one batch again and again: both runs train alike, wherever the second takes up
    def model() -> Lit:
        return Lit(lambda: bert(dropout=0.0))

    data = loader(4)
    whole = monitor(weights_every_n_samples=2)
    run(tmp_path / "whole", whole, model(), 6, data=data)
    first = monitor(weights_every_n_samples=2)
    runner = run(tmp_path / "parts", first, model(), 3, data=data)
    runner.save_checkpoint(tmp_path / "parts.ckpt")
    second = monitor(weights_every_n_samples=2)
    runner = trainer(tmp_path / "rest", second, max_steps=6)
    runner.fit(model(), data, ckpt_path=tmp_path / "parts.ckpt")
    assert second.last_record is not None
    assert whole.last_record is not None
    drift = second.last_record["weight_drift.query"]
    assert drift.min() > 0
    np.testing.assert_allclose(drift, whole.last_record["weight_drift.query"], rtol=1e-6)
    begun, goes_on = (m.state_dict()["start"]["model"] for m in (first, second))
    for module, roles in begun.items():
        assert all(weight.equal(goes_on[module][role]) for role, weight in roles.items())
    kept = torch.load(tmp_path / "parts.ckpt", weights_only=True)["callbacks"][first.state_key]["start"]
    assert {
        tuple(w.shape) for layers in kept.values() for roles in layers.values() for w in roles.values()
    } == {(4, 8, 32)}


def test_no_weights_are_kept_that_nobody_compares_with(tmp_path: Path) -> None:
    watch = GeometryMonitor(every_n_steps=1, metrics=["symmetry"], strict=True)
    run(tmp_path, watch, Lit(bert), 1)
    assert not any(watch.state_dict()["start"].values())


def test_how_much_memory_kept_weights_take_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, with the size, and only where it is large."""
    watch = monitor(weights_every_n_samples=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path / "small", watch, Lit(bert), 2)
        assert not [w for w in caught if "weight_drift" in str(w.message)]
        kept = [
            x
            for modules in watch._run.samples.state.start.values()
            for r in modules.values()
            for x in r.values()
        ]
        size = sum(x.nbytes for x in kept)
        assert size == 2 * 4 * 32 * 32 * 4  # four matrices of two layers
        monkeypatch.setattr("lightning_geo.monitor.absence_warnings._KEPT_BYTES", size - 1)
        run(tmp_path / "large", monitor(weights_every_n_samples=1), Lit(bert), 2)
    [said] = [str(w.message) for w in caught if "weight_drift" in str(w.message)]
    assert f"{size / 1e9:.2f} GB" in said
    monkeypatch.setattr("lightning_geo.monitor.absence_warnings._KEPT_BYTES", size)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*weight_drift")
        run(tmp_path / "limit", monitor(weights_every_n_samples=1), Lit(bert), 2)
