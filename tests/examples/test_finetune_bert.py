"""The main example, small: every logger, every probe, a model and a dataset of one's own."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from transformers import DistilBertConfig, DistilBertModel

from lightning_geo import load_history
from texts import packaged_bert, tokenizer_of

pytestmark = pytest.mark.slow

SMALL = ("--max-steps", 3, "--every-n-steps", 1, "--limit", 60, "--length", 16, "--batch-size", 8)


def test_all_loggers(run, accuracy, tmp_path):
    loggers = ("--logger", "tensorboard", "--logger", "csv", "--logger", "wandb")
    printed = run("finetune_bert.py", *SMALL, *loggers)
    assert accuracy(printed)[1] == 15
    events = tmp_path.glob("finetune_bert/version_0/events.out.tfevents.*")
    assert max(file.stat().st_size for file in events) > 10_000
    history = load_history(tmp_path / "finetune_bert" / "version_0")
    assert history.steps.tolist() == [0, 1, 2, 3]
    assert history["entropy"].shape == (4, 6, 12)
    assert np.isfinite(history["entropy"]).all()
    assert np.isfinite(history["special_mass"]).all()
    [table] = tmp_path.glob("finetune_bert/version_*/metrics.csv")
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("geometry/entropy")]
    logged = [float(row["geometry/entropy"]) for row in rows]
    np.testing.assert_allclose(logged, history["entropy"].mean((1, 2)), rtol=1e-5)
    [offline] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert offline.stat().st_size > 10_000


@pytest.mark.parametrize("probe", ["validation", "none"])
def test_other_probes(run, accuracy, tmp_path, probe):
    printed = run("finetune_bert.py", *SMALL, "--probe", probe)
    accuracy(printed)
    history = load_history(tmp_path / "finetune_bert" / "version_0")
    assert ("drift.query" in history) == (probe == "validation")
    assert bool(history.metadata["probe_fingerprint"][0]) == (probe == "validation")
    # weights after the last step have no training forward of their own
    assert history.steps.tolist() == ([0, 1, 2, 3] if probe == "validation" else [0, 1, 2])


def test_own_model_and_dataset(run, accuracy, tmp_path):
    model, dataset = tmp_path / "model", tmp_path / "dataset"
    tokenizer_of(packaged_bert()).save_pretrained(model)
    DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64)).save_pretrained(model)
    dataset.mkdir()
    for part, rows in (("train", 24), ("validation", 10)):
        with (dataset / f"{part}.csv").open("w", newline="") as file:
            texts = [(f"text {i}", "ab"[i % 2]) for i in range(rows)]
            csv.writer(file).writerows([("text", "label"), *texts])
    printed = run(
        "finetune_bert.py", "--model", model, "--dataset", dataset, "--max-steps", 2, "--batch-size", 8
    )
    assert accuracy(printed)[1] == 10
    assert load_history(tmp_path / "finetune_bert" / "version_0")["entropy"].shape[1:] == (2, 4)
