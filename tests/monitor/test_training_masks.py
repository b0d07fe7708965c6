"""Masks that training alone loses, seen in its own forward pass while samples are taken on a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_geo import GeometryMonitor
from support.lit import Lit, fit, gpt2, loader
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
