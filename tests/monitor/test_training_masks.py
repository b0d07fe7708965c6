"""Masks that training alone loses, seen in its own forward pass while samples are taken on a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import GeometryMonitor
from lightning_geo.observe.evidence.mask_structure import MaskStructures
from support.lit import Lit, bert, fit, gpt2, loader, sequences
from support.outside import finished
from support.same import assert_same, outcome, records, traces


class Leaky(nn.Module):
    """A GPT-2 whose attention is causal in eval mode alone, from a number of steps on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.gpt = gpt2(attn_implementation="sdpa", dropout=0.1)
        self.after, self.calls = after, 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        n = input_ids.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        if self.training:
            self.calls += 1
            if self.calls > self.after:
                causal = torch.ones_like(causal)
        mask = causal & (attention_mask[:, None, None, :] > 0)
        return self.gpt(input_ids, attention_mask=mask, labels=input_ids)


def train(path: Path, *monitors: Any, after: int = 0, **options: Any) -> tuple[Any, Lit]:
    module = Lit(lambda: Leaky(after))
    runner = fit(path, module, *monitors, data=loader(200), **options)
    return runner, module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mask_lost_in_training_is_in_the_next_record(accumulate: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 13, "accumulate_grad_batches": accumulate}
    monitor = GeometryMonitor(1, metrics="masks", strict=True, probe=next(iter(loader())))
    runner, module = train(tmp_path, monitor, after=4 * accumulate, **options)
    taken = records(tmp_path)
    assert [record.step for record in taken] == [*range(14)]
    for record in taken:
        assert (record["future_visible.probe"] == 0).all()
        assert (record["padding_visible.probe"] == 0).all()
    assert [r.step for r in taken if "future_visible.batch" in r] == [1, 11]
    np.testing.assert_array_equal(taken[1]["future_visible.batch"], 0)
    np.testing.assert_array_equal(taken[11]["future_visible.batch"], 1)
    assert (taken[11]["padding_visible.batch"] == 0).all()
    assert runner.callback_metrics["geometry/future_visible.batch"] == 1
    plain, other = train(tmp_path / "plain", after=4 * accumulate, **options)
    assert_same(outcome(runner, module), outcome(plain, other))
    assert traces(module) == []


def test_the_batch_itself_has_one_of_the_two(tmp_path: Path) -> None:
    train(tmp_path, GeometryMonitor(2, source="batch", metrics="masks", strict=True), steps=3, after=1)
    for record, value in zip(records(tmp_path), (0, 1), strict=True):
        assert record.keys() == ["future_visible.batch", "padding_visible.batch"]
        np.testing.assert_array_equal(record["future_visible.batch"], value)


def test_a_failure_costs_these_metrics_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_geo.monitor.training_masks.pairs_of", lambda call: 1 / 0)
    monitor = GeometryMonitor(1, metrics=["masks", "entropy"], probe=next(iter(loader())))
    with pytest.warns(UserWarning, match="masks of the training forward could not be observed: ZeroDivision"):
        runner, module = train(tmp_path, monitor, steps=3)
    assert ["entropy" in r and "future_visible.batch" not in r for r in records(tmp_path)] == [True] * 4
    plain, other = train(tmp_path / "plain", steps=3)
    assert_same(outcome(runner, module), outcome(plain, other))


def test_a_step_that_is_compiled_is_not_looked_at(tmp_path: Path) -> None:
    """The compiler would trace the observer into the step's graph."""
    module = torch.compile(Lit(lambda: bert(layers=1)), backend="eager")
    monitor = GeometryMonitor(1, metrics=["masks", "entropy"], strict=True, probe=next(iter(loader())))
    fit(tmp_path, module, monitor, steps=3)  # type: ignore[arg-type]
    torch._dynamo.reset()
    assert ["future_visible.probe" in record for record in records(tmp_path)] == [True] * 4
    assert not any("future_visible.batch" in record for record in records(tmp_path))


#: One entry for each; not in the model, of which replays run a copy.
REPLAYS: list[None] = []


class Departing(nn.Module):
    """Mixed into a BERT's attention: gets a mask of another structure in one replay."""

    at = 0

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **others: Any) -> Any:
        if not self.training:
            REPLAYS.append(None)
            if len(REPLAYS) == Departing.at:
                near = torch.ones_like(attention_mask, dtype=torch.bool).tril(2)
                added = attention_mask.dtype != torch.bool  # to scores, in transformers 4
                attention_mask = attention_mask.masked_fill(
                    ~near, torch.finfo(torch.float32).min if added else 0
                )
        return super().forward(hidden_states, attention_mask, **others)


def departing() -> nn.Module:
    """A BERT whose second layer is one."""
    model = bert(attn_implementation="sdpa", dropout=0.0)
    module = model.get_submodule("bert.encoder.layer.1.attention.self")
    module.__class__ = type("Departing", (Departing, type(module)), {})
    return model


@pytest.mark.parametrize("at", [5, 14])  # 14 is in a step with a look
def test_a_look_at_training_leaves_what_a_device_knows_of_the_samples_masks(at: int, tmp_path: Path) -> None:
    """A device tells after the sample that a mask was not as assumed; a look must not take that answer."""
    REPLAYS.clear()
    Departing.at = at
    late = patch.object(MaskStructures, "knows_at_once", staticmethod(lambda call: False))
    probe = sequences(4)[:4]
    monitor = GeometryMonitor(1, metrics=["masks", "entropy"], probe=default_collate(probe))
    with late, finished("asked for"):
        fit(tmp_path, Lit(departing), monitor, data=loader(80), steps=14)
    withdrawn = [r.step for r in records(tmp_path) if np.isnan(r["entropy"][1]).any()]
    named = [r.step for r in records(tmp_path) if "another structure" in str(r.coverage["left_out"])]
    assert withdrawn == named
    assert len(named) == 1
