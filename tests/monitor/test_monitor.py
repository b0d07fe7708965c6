"""The monitor in real runs: when it samples, and what a record says."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.metrics.selection import is_of_batch
from support.close_records import assert_close, joined
from support.lit import Causal, Classifier, Lit, fit, loader
from support.same import records

QUIET: dict[str, Any] = {"special_token_ids": [1], "strict": True}


# -- when


@pytest.mark.parametrize(
    ("monitor", "options", "expected"),
    [
        ({"every_n_steps": 4}, {}, [0, 4, 8, 10]),
        ({"every_n_steps": 4}, {"accumulate_grad_batches": 3}, [0, 4, 8, 10]),
        ({"every_n_steps": 5}, {}, [0, 5, 10]),  # the last sample is not taken twice
        ({"schedule": lambda step: step in (1, 2)}, {}, [0, 1, 2, 10]),
        ({"every_n_steps": 4, "source": "batch"}, {"accumulate_grad_batches": 3}, [0, 4, 8]),
        ({}, {}, [0, 10]),
    ],
)
def test_steps(monitor: dict[str, Any], options: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    fit(tmp_path, Classifier(layers=1), GeometryMonitor(**QUIET, **monitor), steps=10, **options)
    assert [record.step for record in records(tmp_path)] == expected


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_manual_optimization_counts_batches(source: Any, tmp_path: Path) -> None:
    monitor = GeometryMonitor(3, source=source, **QUIET)
    fit(tmp_path, Classifier(layers=1, manual=True), monitor, steps=4)
    assert [record.step for record in records(tmp_path)] == [0, 3, 6] + [8] * (source == "probe")


def test_nothing_is_logged_outside_training(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert not list(tmp_path.rglob("*tfevents*"))
            assert not any(name.startswith("geometry") for name in trainer.callback_metrics)

    module, monitor = Classifier(layers=1), GeometryMonitor(2, **QUIET)
    runner = fit(tmp_path, module, monitor, Watch(), steps=4, validation=loader(8), val_check_interval=1)
    steps = [0, 2, 4]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*tfevents*")}
    assert [record.step for record in records(tmp_path)] == steps
    for run in (runner.validate, runner.test, runner.predict):
        run(module, loader(8), **({} if run == runner.predict else {"verbose": False}))
        assert not any(name.startswith("geometry") for name in runner.callback_metrics)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*tfevents*")} == before


def test_fast_dev_run_measures_and_leaves_no_files(tmp_path: Path) -> None:
    monitor = GeometryMonitor(**QUIET)
    fit(tmp_path, Classifier(layers=1), monitor, validation=loader(8), fast_dev_run=2, logger=True)
    assert monitor.last_record is not None
    assert monitor.last_record.step == 2
    assert not list(tmp_path.iterdir())


# -- what a record says


def test_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = time.time()
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        monitor = GeometryMonitor(2, **QUIET)
        runner = fit(tmp_path, Classifier(), monitor, data=loader(12), steps=7, accumulate_grad_batches=2)
    found = records(tmp_path)  # an epoch is 3 batches, 2 steps
    assert [(r.step, r.epoch, r.batches_seen) for r in found] == [
        (0, 0, 0),
        (2, 1, 3),
        (4, 2, 6),
        (6, 3, 9),
        (7, 3, 11),
    ]
    for record in found:
        assert began <= record.wall_time - record.cost_seconds <= record.wall_time <= time.time()
        assert record.cost_seconds > 0
        assert re.fullmatch("[0-9a-f]{16}", record.probe_fingerprint)
        assert record.probe_fingerprint == found[0].probe_fingerprint
        modules = [f"bert.encoder.layer.{i}.attention.self" for i in range(2)]
        assert record.model == {
            "class": "BertForSequenceClassification",
            "stacks": {"bert.encoder": {"modules": modules, "heads": [4, 4]}},
        }
    means = {f"geometry/{name}": value for name, value in found[-1].summaries().items()}
    kept = {name: float(value) for name, value in runner.callback_metrics.items()}
    # masks of the training forward stand in the record after it alone
    assert {name: x for name, x in kept.items() if not is_of_batch(name)} == pytest.approx(means)
    lines = [r.getMessage() for r in caplog.records if "GeometryMonitor" in r.getMessage()]
    assert len(lines) == 7
    assert lines[0].endswith("Measured on 8 sequences with 68 tokens, the first of the training batches.")
    assert re.search(r"5 samples in [\d.]+ s \([\d.]+ % of the run\)\.", lines[3])


@pytest.mark.parametrize("build", [Classifier, Causal])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_last_sample_is_a_measurement_of_the_final_weights(
    build: Callable[[], Lit], precision: Any, tmp_path: Path
) -> None:
    module, monitor = build(), GeometryMonitor(3, probe_size=6, **QUIET)
    fit(tmp_path, module, monitor, steps=4, validation=loader(6, batch_size=6, seed=3), precision=precision)
    batch = joined(*itertools.islice(loader(6, batch_size=6, seed=3), 1))
    if isinstance(module, Causal):
        batch.pop("labels")
    alone = measure(module.model, batch, special_token_ids=[1])
    last = records(tmp_path)[-1]
    assert last.step == 4
    assert_close(last, alone)
    if precision == "32-true":
        assert (last["drift"] > 0.01).all()
        assert (last["velocity"] > 0.01).all()
    first = records(tmp_path)[0]
    assert (first["drift"] == 0).all()
    assert "velocity" not in first


@pytest.mark.parametrize(
    ("source", "kept"), [("probe", [True, False, False, True]), ("batch", [True, False, False])]
)
def test_bases_are_kept_at_the_ends_alone(source: Any, kept: list[bool], tmp_path: Path) -> None:
    fit(tmp_path, Classifier(), GeometryMonitor(1, source=source), steps=3)
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    assert [bool(history.record(sample).matrices) for sample in range(len(history))] == kept


def test_a_step_of_several_batches_is_one_measurement_of_them_all(tmp_path: Path) -> None:
    module = Classifier(dropout=0.0)
    alone = measure(module.model, joined(*itertools.islice(loader(), 3)), special_token_ids=[1])
    monitor = GeometryMonitor(2, source="batch", **QUIET)
    fit(tmp_path, module, monitor, steps=3, accumulate_grad_batches=3)
    found = records(tmp_path)
    assert_close(found[0], alone, divided=True)
    assert [(r.step, r.batches_seen, r.probe_fingerprint) for r in found] == [(0, 0, ""), (2, 6, "")]
    assert "drift" not in found[1]
    assert all(record.cost_seconds > 0 for record in found)


# -- other callbacks


@pytest.mark.parametrize(("threshold", "steps"), [(100.0, 2), (0.0, 6)])
def test_early_stopping_on_one_of_our_metrics(threshold: float, steps: int, tmp_path: Path) -> None:
    stop = EarlyStopping("geometry/entropy", mode="min", stopping_threshold=threshold, patience=100)
    monitor = GeometryMonitor(2, **QUIET)
    runner = fit(tmp_path, Classifier(), monitor, stop, data=loader(8), validation=loader(4), steps=6)
    assert runner.global_step == steps
    assert [record.step for record in records(tmp_path)] == list(range(0, steps + 1, 2))
