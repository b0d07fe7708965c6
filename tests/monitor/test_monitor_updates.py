"""Updates of weights in real runs: those between two samples, wherever a sample is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_geo import GeometryMonitor
from support.lit import Classifier, fit, loader, trainer, weight_averaging
from support.same import records

EVERY = 3


class Weights(pl.Callback):
    """Whole weights of each block in float64, as steps are entered with them, and the final ones."""

    def __init__(self) -> None:
        self.entering: dict[int, list[Tensor]] = {}

    @staticmethod
    def of(module: Classifier) -> list[Tensor]:
        blocks = module.model.bert.encoder.layer
        return [torch.cat([p.detach().double().flatten() for p in b.parameters()]) for b in blocks]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx if not pl_module.automatic_optimization else trainer.global_step
        self.entering.setdefault(step, self.of(pl_module))


@pytest.mark.parametrize(
    "how",
    [
        "probe",
        "batch",
        "accumulated probe",
        "accumulated batch",
        "manual batch",
        "averaged probe",
        "first probe",
    ],
)
def test_updates_are_those_of_the_weights_that_enter_the_steps(how: str, tmp_path: Path) -> None:
    """The model is so small that every weight is drawn."""
    weights, module = Weights(), Classifier(layers=3, width=16, manual="manual" in how)
    module.model.bert.encoder.layer[1].requires_grad_(False)
    probe = None if "first" in how else {k: v for k, v in next(iter(loader())).items() if k != "labels"}
    source: Any = how.rpartition(" ")[2]
    if source == "batch":
        probe = None
    monitor = GeometryMonitor(EVERY, metrics="updates", source=source, probe=probe, strict=True)
    averaging = [weight_averaging("EMAWeightAveraging", decay=0.5)] if "averaged" in how else []
    accumulate = 2 if "accumulated" in how else 1
    fit(tmp_path, module, weights, monitor, *averaging, steps=7, accumulate_grad_batches=accumulate,
        data=loader(60))  # fmt: skip
    taken = records(tmp_path)
    entered = [weights.entering.get(record.step, weights.of(module)) for record in taken]
    assert len(taken) >= 3
    assert "update_size" not in taken[0]
    for number, record in enumerate(taken[1:], start=1):
        pairs = list(zip(entered[number - 1], entered[number], strict=True))
        size = [float((now - was).norm() / was.norm()) for was, now in pairs]
        np.testing.assert_allclose(record["update_size"], size, rtol=1e-4, err_msg=f"step {record.step}")
        np.testing.assert_array_equal(record["unchanged_share"] == 1, [False, True, False])
        assert np.isnan(record["bf16_share"][1])
        assert (record["bf16_share"][[0, 2]] < 0.02).all()


def test_a_resumed_session_begins_without(tmp_path: Path) -> None:
    module, monitor = Classifier(), GeometryMonitor(2, metrics="updates", strict=True)
    first = fit(tmp_path, module, monitor, steps=4, data=loader(60))
    assert "geometry/update_size" in first.callback_metrics
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = GeometryMonitor(2, metrics="updates", strict=True)
    second = trainer(tmp_path, again, steps=8)
    second.fit(Classifier(), loader(60), ckpt_path=tmp_path / "last.ckpt")
    by_step = {record.step: record for record in records(tmp_path)}
    assert {step for step, record in by_step.items() if "update_size" in record} == {2, 4, 8}
