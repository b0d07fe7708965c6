"""Several models in a step, a model that runs twice, and several monitors of a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from lightning_geo import GeometryMonitor, measure
from support.close_records import assert_close, of_source
from support.lit import Classifier, Lit, bert, fit, gpt2, loader, trainer
from support.same import records

QUIET: dict[str, Any] = {"special_token_ids": [1], "strict": True}


class Twice(Lit):
    """The model runs on two halves of a batch, as for contrastive pairs."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        halves = ({name: x[part::2] for name, x in batch.items()} for part in (0, 1))
        return sum(self.model(**half).loss for half in halves)  # type: ignore[return-value]


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_model_that_runs_twice_in_a_step_is_one_model(source: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return bert(dropout=0.0)

    monitor = GeometryMonitor(1, source=source, probe_size=4, **QUIET)
    alone = measure(Lit(build).model, next(iter(loader())), special_token_ids=[1])
    fit(tmp_path, Twice(build), monitor, steps=1)
    assert_close(records(tmp_path)[0], alone, divided=True)


class Towers(Lit):
    """A policy and a reference."""

    def __init__(self) -> None:
        super().__init__(nn.Identity)
        self.policy, self.reference = gpt2(dropout=0.0), bert(dropout=0.0, layers=3)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        return self.policy(**inputs).logits.square().mean() + self.reference(**inputs).logits.square().mean()


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_several_models_get_a_prefix_each(source: Any, tmp_path: Path) -> None:
    module = Towers()
    batch = next(iter(loader()))
    batch.pop("labels")
    alone = {
        name: measure(getattr(module, name), batch, special_token_ids=[1]) for name in ("policy", "reference")
    }
    fit(tmp_path, module, GeometryMonitor(1, source=source, probe_size=4, **QUIET), steps=1)
    found = records(tmp_path)[0]
    assert list(found.stacks) == ["policy.transformer", "reference.bert.encoder"]
    assert found.model["class"] == "GPT2LMHeadModel, BertForSequenceClassification"
    for prefix, record in alone.items():
        (stack,) = record.stacks
        for metric in record:
            key = of_source(f"{prefix}.{stack}/{metric}", found)
            np.testing.assert_allclose(found[key], record[metric], rtol=1e-6, atol=1e-6)
    with pytest.raises(KeyError, match=r"policy\.transformer/entropy"):
        found["entropy"]


@pytest.mark.parametrize("source", ["probe", "batch"])
@pytest.mark.parametrize("layers", [[2], r"^reference\..*layer\.2"])
def test_a_model_without_asked_layers_costs_the_others_nothing(
    layers: Any, source: Any, tmp_path: Path
) -> None:
    monitor = GeometryMonitor(1, source=source, layers=layers, metrics="entropy", **QUIET)
    fit(tmp_path, Towers(), monitor, steps=4)
    found = records(tmp_path)
    assert len(found) >= 4
    for record in found:
        assert list(record.stacks) == ["reference.bert.encoder"]
        assert np.isfinite(record["entropy"]).all(1).tolist() == [False, False, True]
        assert record.coverage == {"seen": 1, "measured": 1, "left_out": {}}
    with pytest.raises(ValueError, match=r"`layers` to match at least one layer but got \[3\]"):
        fit(tmp_path / "none", Towers(), GeometryMonitor(1, source=source, layers=[3], **QUIET), steps=1)


def test_two_monitors_share_a_trainer_under_their_names(tmp_path: Path) -> None:
    train = GeometryMonitor(2, source="batch", metrics="entropy", name="train", **QUIET)
    probe = GeometryMonitor(3, metrics="cone", name="probe", **QUIET)
    runner = fit(tmp_path, Classifier(), train, probe, steps=4)
    assert {name.partition("/")[0] for name in runner.callback_metrics} == {"train", "probe"}
    assert "train/entropy" in runner.callback_metrics
    assert "probe/cone.output" in runner.callback_metrics
    assert "probe/entropy" not in runner.callback_metrics
    found = records(tmp_path, "train")
    assert [(r.step, "entropy" in r, "cone" in r) for r in found] == [(0, True, False), (2, True, False)]
    assert [r.step for r in records(tmp_path, "probe")] == [0, 3, 4]
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(tmp_path, GeometryMonitor(), GeometryMonitor())
