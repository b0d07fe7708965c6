"""Steps whose loss a function computes, and the sample of a run of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import GeometryMonitor, GeometryRecord, measure
from support.lit import Lit, fit, loader, sequences
from support.same import assert_same, outcome, traces

Loss = Callable[[Any, dict[str, Tensor]], Tensor]
BATCH = default_collate(sequences(4))


class Steps(Lit):
    """Its loss is computed by a function of it and a batch."""

    def __init__(self, build: Callable[[], nn.Module], compute: Loss, **options: Any) -> None:
        super().__init__(build, **options)
        self.compute = compute

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.compute(self, batch)


def plain(step: Any, batch: dict[str, Tensor]) -> Tensor:
    return step.model(**batch).loss  # type: ignore[no-any-return]


def shuffled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other sequences of the same shape."""
    mask = torch.ones_like(batch["attention_mask"])
    mask[:, 4:] = 0  # much lower entropy
    return {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": mask}


def sample(directory: Path, module: Lit, **options: Any) -> GeometryRecord:
    """The first sample of a run, after checking that training was as without it."""
    other = copy.deepcopy(module)
    monitor = GeometryMonitor(100, source="batch", strict=True, metrics=["entropy", "pattern", "importance"],
                              importance_every_n_samples=1, special_token_ids=[1])  # fmt: skip
    alone = outcome(fit(directory / "alone", other, data=loader(8, 4), steps=2, **options), other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = outcome(fit(directory, module, monitor, data=loader(8, 4), steps=2, **options), module)
    assert_same(watched, alone)
    assert traces(module) == traces(other)
    record = monitor.last_record
    assert record is not None
    return record


def assert_is_that_of(model: nn.Module, record: GeometryRecord, batch: dict[str, Tensor] = BATCH) -> None:
    expected = measure(model, batch, metrics=["entropy", "pattern"], special_token_ids=[1])
    for key in expected:
        np.testing.assert_allclose(record[key], expected[key], atol=1e-5, err_msg=key)


def no_grad_before(step: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        reference = step.model(**shuffled(batch)).loss
    return plain(step, batch) + reference
