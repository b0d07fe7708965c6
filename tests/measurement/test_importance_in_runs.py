"""Importance in a run: its own clock, losses that have none, failures, checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.measurement.importance import ComparingLossError
from support.lit import Causal, Classifier, Lit, bert, fit, loader, sequences
from support.losses import spread


def test_a_run_measures_it_on_its_own_clock(tmp_path: Path) -> None:
    monitor = GeometryMonitor(
        1, metrics=["importance", "metric:entropy"], importance_every_n_samples=3, probe_size=4, strict=True
    )
    module = Classifier(dropout=0.0)
    runner = fit(tmp_path, module, monitor, steps=5, validation=loader(8))
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    known = np.isfinite(history["importance"]).any(axis=(1, 2))
    assert [int(step) for step in history.steps[known]] == [0, 3, 5]
    batch = default_collate([loader(8).dataset[i] for i in range(4)])
    theirs = measure(module.model, batch, metrics="importance")["importance"]
    np.testing.assert_allclose(history["importance"][-1], theirs, rtol=1e-5)
    assert float(runner.callback_metrics["geometry/importance"]) == pytest.approx(theirs.mean(), rel=1e-5)


def test_a_run_without_loss_says_so_once_and_has_all_else(tmp_path: Path) -> None:
    class OwnLoss(Lit):
        def loss(self, batch: dict[str, Tensor]) -> Tensor:
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            return nn.functional.cross_entropy(self.model(**inputs).logits, batch["labels"])

    monitor = GeometryMonitor(1, metrics=["importance", "entropy"], importance_every_n_samples=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, OwnLoss(bert), monitor, steps=3)
    said = [str(w.message) for w in caught if "importance" in str(w.message)]
    assert len(said) == 1
    assert "importance is absent: the observed model's recorded call returns no `loss`" in said[0]
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    assert len(history) == 4
    assert "entropy" in history
    assert "importance" not in history

    given = GeometryMonitor(1, metrics="importance", strict=True, loss_fn=spread)
    fit(tmp_path / "given", OwnLoss(bert), given, steps=2)
    assert given.last_record is not None
    assert (given.last_record["importance"] > 0).all()


class Pairs(nn.Module):
    """Texts and their twins, each to be told from the batch's other ones."""

    def __init__(self, negatives: str) -> None:
        super().__init__()
        self.bert = bert(dropout=0.0, initializer_range=0.3).bert
        self.negatives = negatives

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Any:
        one, other = (
            nn.functional.normalize(self.bert(ids, attention_mask).last_hidden_state.mean(1), dim=-1)
            for ids in (input_ids, input_ids.flip(1))
        )
        similarity = 5.0 * one @ other.T
        if self.negatives == "softmax":
            loss = nn.functional.cross_entropy(similarity, torch.arange(len(one)))
        elif self.negatives == "sigmoid":
            sign = 2.0 * torch.eye(len(one)) - 1
            loss = -nn.functional.logsigmoid(sign * similarity).sum() / len(one)
        elif self.negatives == "variance":
            loss = -one.std(0).mean()
        else:
            loss = -similarity.diagonal().mean()
        return SimpleNamespace(loss=loss)


@pytest.mark.parametrize("negatives", ["softmax", "sigmoid"])
def test_a_loss_that_compares_sequences_gives_no_number(negatives: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = default_collate(sequences(4))
    with pytest.raises(
        ComparingLossError, match=r"4 sequences together is .*, neither a mean .* compares sequences"
    ):
        measure(Pairs(negatives), batch, metrics="importance")
    monitor = GeometryMonitor(1, metrics=["importance", "metric:entropy"], probe_size=4)
    with pytest.warns(UserWarning, match="importance is absent: the loss of 4 sequences together is"):
        fit(tmp_path, Lit(lambda: Pairs(negatives)), monitor, steps=2)
    assert monitor.last_record is not None
    assert list(monitor.last_record) == ["entropy"]
    # a call of a single sequence cannot be told, but those beside it are
    probe = DataLoader(sequences(5), batch_sampler=[[0], [1, 2, 3, 4]])  # type: ignore[arg-type]
    monitor = GeometryMonitor(1, metrics=["importance", "metric:entropy"], probe=probe)
    with pytest.warns(UserWarning, match="importance is absent: the loss of 4 sequences together is"):
        fit(tmp_path / "given", Lit(lambda: Pairs(negatives)), monitor, steps=1)
    assert list(monitor.last_record) == ["entropy"]  # type: ignore[arg-type]


@pytest.mark.parametrize("negatives", ["softmax", "variance"])
def test_a_loss_that_a_single_sequence_does_not_have_gives_no_number(negatives: str, tmp_path: Path) -> None:
    """Constant, or not finite: with a probe of one sequence there is nothing to compare with."""
    torch.manual_seed(0)
    assert "importance" not in measure(
        Pairs(negatives), default_collate(sequences(1)), metrics=["importance", "metric:entropy"]
    )
    monitor = GeometryMonitor(1, metrics=["importance", "metric:entropy"], probe_size=1)
    with pytest.warns(UserWarning, match="importance is absent: no head changes the loss of a sequence"):
        fit(tmp_path, Lit(lambda: Pairs(negatives)), monitor, steps=2)
    assert monitor.last_record is not None
    assert list(monitor.last_record) == ["entropy"]


def test_means_and_sums_over_sequences_are_no_comparison() -> None:
    torch.manual_seed(0)
    model, batch = Pairs("none"), default_collate(sequences(4))
    mean = measure(model, batch, metrics="importance")["importance"]
    total = measure(model, batch, metrics="importance", loss_fn=lambda output, input_ids, **_: (
        output.loss * len(input_ids)
    ))["importance"]  # fmt: skip
    assert (mean > 0).all()
    np.testing.assert_allclose(total, mean, rtol=1e-5)


def test_a_failure_costs_the_importance_alone(tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> Tensor:
        raise ArithmeticError("no")

    monitor = GeometryMonitor(1, metrics=["importance", "entropy"], loss_fn=fails)
    with pytest.warns(UserWarning, match="importance could not be measured: ArithmeticError: no"):
        fit(tmp_path, Causal(), monitor, steps=2)
    assert monitor.last_record is not None
    assert monitor.last_record.keys()[0] == "entropy"
    assert "importance" not in monitor.last_record


def test_a_checkpoint_keeps_the_last_number(tmp_path: Path) -> None:
    monitor = GeometryMonitor(
        1, metrics=["importance", "metric:entropy"], importance_every_n_samples=2, probe_size=4
    )
    fit(tmp_path, Classifier(), monitor, steps=4)
    assert "geometry/importance" in monitor.state_dict()["summaries"]
