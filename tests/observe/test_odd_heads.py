"""Heads pruned or replaced in training, broken weights, projections out of reach: never a wrong number."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import default_collate
from transformers.pytorch_utils import prune_linear_layer

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.storage.record import GeometryRecord
from support.lit import Lit, bert, fit, sequences
from support.same import records

FAMILIES = sorted({spec.family for spec in CATALOG.values()})
COMPARED = [
    f"{name}.{role}" for name in ("drift", "velocity", "weight_drift") for role in ("query", "output")
]


def prune(model: Any, layer: int, heads: list[int]) -> None:
    """As transformers does: other linear modules in place of those that were there."""
    attention = model.bert.encoder.layer[layer].attention
    kept = torch.cat([torch.arange(8 * head, 8 * head + 8) for head in range(4) if head not in heads])
    with torch.no_grad():
        for name in ("query", "key", "value"):
            setattr(attention.self, name, prune_linear_layer(getattr(attention.self, name), kept))
        attention.output.dense = prune_linear_layer(attention.output.dense, kept, dim=1)
    attention.self.num_attention_heads = len(kept) // 8
    attention.self.all_head_size = len(kept)


class AtStep(pl.Callback):
    """Does something to the model as one step begins."""

    def __init__(self, step: int, change: Any) -> None:
        self.step, self.change = step, change

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.change(pl_module.model)
            trainer.strategy.setup_optimizers(trainer)


def run(
    directory: Path, module: Lit, *callbacks: Any, **options: Any
) -> tuple[list[GeometryRecord], list[str]]:
    """Every family at every step; the records, and what was said."""
    monitor = GeometryMonitor(
        1, metrics=FAMILIES, importance_every_n_samples=1, weights_every_n_samples=1, probe_size=4,
        special_token_ids=[1], **options,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(directory, module, *callbacks, monitor, steps=4)
    return records(directory), [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]


def assert_measured_anew(record: GeometryRecord, module: Lit) -> None:
    """The record is what another tap, which knew no other modules, measures."""
    theirs = measure(module.model, default_collate(sequences(4)), metrics=FAMILIES, special_token_ids=[1])
    for name in theirs:
        # the monitor replays what was recorded of a loader that draws no other sequences
        np.testing.assert_allclose(record[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert {name for name in record if not compares_samples(name)} == set(theirs)


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_heads_pruned_during_training_are_compared_with_none_before(source: Any, tmp_path: Path) -> None:
    module = Lit(lambda: bert(dropout=0.0))
    change = AtStep(2, lambda model: prune(model, 1, [0, 2]))
    kept, said = run(tmp_path, module, change, source=source)
    assert [record.model["stacks"]["bert.encoder"]["heads"] for record in kept] == [
        *[[4, 4]] * 2, *[[4, 2]] * (3 if source == "probe" else 2)
    ]  # fmt: skip
    assert len(said) == 1
    assert "heads changed: in bert.encoder/1 (4 to 2). Remaining heads were renumbered; drift" in said[0]
    for record in kept[2:]:
        for name in (name for name in COMPARED if name in record):
            assert np.isfinite(record[name][0]).all(), name
            if not (name.startswith("velocity") and record.step > 2):  # compares two of the pruned model
                assert np.isnan(record[name][1]).all(), name
        for name in ("importance", "symmetry", "gate.open", "projection_strength.query", "score_entropy"):
            assert np.isfinite(record[name]).sum() == 6, name
    if source == "probe":
        assert_measured_anew(kept[-1], module)
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    assert history["importance"].shape[1:] == (2, 4)


def test_modules_replaced_by_others_of_the_same_size_are_read_anew(tmp_path: Path) -> None:
    """As when adapters are merged: what was there before is no longer what runs."""

    def replace(model: Any) -> None:
        attention = model.bert.encoder.layer[1].attention.self
        attention.query = nn.Linear(32, 32)

    module = Lit(lambda: bert(dropout=0.0))
    kept, said = run(tmp_path, module, AtStep(2, replace), strict=True)
    assert said == []
    assert kept[2]["weight_drift.query"][1].min() > 0.3 > kept[1]["weight_drift.query"].max()
    assert_measured_anew(kept[-1], module)


def test_broken_weights_cost_the_heads_that_they_break(tmp_path: Path) -> None:
    def poisoned() -> nn.Module:
        # PyTorch's fused attention may make zeros of NaN
        model = bert(dropout=0.0, attn_implementation="eager")
        with torch.no_grad():
            model.bert.encoder.layer[1].attention.self.query.weight[8:16] = torch.nan
        return model

    kept, said = run(tmp_path, Lit(poisoned))
    first = kept[0]
    assert any("activations are not finite" in line for line in said)
    for name in (
        "symmetry",
        "qk_norm",
        "read_overlap.query",
        "query_value_angle",
        "projection_strength.query",
    ):
        assert np.isnan(first[name][1, 1]), name
        assert np.isfinite(first[name][0]).all(), name
        assert np.isfinite(first[name][1, [0, 2, 3]]).all(), name
    for name in ("gate.open", "score_entropy", "von_neumann_entropy", "score_norm_share.query"):
        assert np.isnan(first[name][1, 1]), name
        assert np.isfinite(first[name][1, [0, 2, 3]]).all(), name
    assert "importance" not in first  # the loss is NaN
    assert any("importance is absent" in line for line in said)


def test_projections_out_of_reach_are_said_once_and_all_else_is_there(tmp_path: Path) -> None:
    """DoRA's are no sum of a base and an adapter."""

    def adapted() -> nn.Module:
        config = LoraConfig(r=2, target_modules=["query"], use_dora=True)
        return get_peft_model(bert(dropout=0.0), config)  # type: ignore[return-value]

    kept, said = run(tmp_path, Lit(adapted))
    lines = [line for line in said if "the projections of" in line]
    assert len(lines) == 2  # a layer each
    assert "its query" in lines[0]
    for record in kept:
        assert not {"symmetry", "qk_norm", "projection_strength.query", "weight_drift.query"} & set(record)
        for name in ("ov_norm", "projection_strength.key", "importance", "gate.open", "entropy"):
            assert np.isfinite(record[name]).all(), name
