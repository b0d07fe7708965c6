"""The monitor's numbers next to others': those of `measure`, of other loggers and monitors."""

from __future__ import annotations

import copy
import csv
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import default_collate

from lightning_geo import GeometryHistory, GeometryMonitor, GeometryRecord, load_history, measure
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import compares_samples, is_of_batch
from support.lit import Causal, Classifier, Lit, fit, loader, sequences


def batch_of(first: int, last: int, **data: Any) -> dict[str, Tensor]:
    """Some of the sequences that loaders yield, as one batch."""
    return default_collate(sequences(**data)[first:last])


def history_of(directory: Path, name: str | None = None) -> GeometryHistory:
    """Where the record goes without a logger."""
    return load_history(directory / "lightning_geo" / "version_0", name)


def assert_close(ours: GeometryRecord, theirs: GeometryRecord) -> None:
    """Equal in all metrics of ``theirs``; ``ours`` has no others but those that compare samples."""
    assert set(theirs) <= set(ours)
    assert all(compares_samples(name) or is_of_batch(name) for name in set(ours) - set(theirs))
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-6, err_msg=key)


def assert_equal(ours: GeometryHistory, theirs: GeometryHistory) -> None:
    """Equal bit for bit."""
    assert ours.steps.tolist() == theirs.steps.tolist()
    assert ours.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    assert ours.metadata["probe_fingerprint"].tolist() == theirs.metadata["probe_fingerprint"].tolist()
    for sample in range(len(theirs)):
        mine, other = ours.record(sample).matrices, theirs.record(sample).matrices
        assert {stack: set(arrays) for stack, arrays in mine.items()} == {s: set(a) for s, a in other.items()}
        for stack, arrays in other.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(mine[stack][name], array, err_msg=name)


def same(ours: Any, theirs: Any) -> bool:
    # layers that were not chosen have bases of NaN
    tensors = isinstance(ours, Tensor)
    return torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7)) if tensors else ours == theirs


# -- measure


class Weights(Callback):
    """Keeps the model as it enters each step."""

    def __init__(self) -> None:
        self.entering: dict[int, nn.Module] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.entering[trainer.global_step] = copy.deepcopy(pl_module.model)


@pytest.mark.parametrize("build", [Classifier, Causal])
@pytest.mark.parametrize("sanity", [True, False], ids=["sanity check", "no sanity check"])
def test_every_sample_is_a_measurement_of_the_weights_that_enter_its_step(
    build: Callable[[], Lit], sanity: bool, tmp_path: Path
) -> None:
    module, weights = build(), Weights()
    fit(
        tmp_path, module, weights, GeometryMonitor(every_n_steps=1, special_token_ids=[1], strict=True),
        steps=3, num_sanity_val_steps=int(sanity), validation=loader(8, seed=7),
    )  # fmt: skip
    # one batch is the probe: what the sanity check sees, else the first of training
    probe = batch_of(0, 4, count=8, seed=7) if sanity else batch_of(0, 4)
    if build is Causal:
        del probe["labels"]
    history, models = history_of(tmp_path), [*weights.entering.values(), module.model]
    assert history.steps.tolist() == [0, 1, 2, 3]
    for sample, model in enumerate(models):
        assert_close(history.record(sample), measure(model, probe, special_token_ids=[1]))
        before = measure(models[sample - 1], probe, special_token_ids=[1])  # other weights, other numbers
        assert not np.allclose(history.record(sample)["entropy"], before["entropy"], rtol=1e-5, atol=0)


def test_special_mass_is_that_of_the_attention_matrices(tmp_path: Path) -> None:
    special = [1, 30, 31, 32]
    module = Classifier(attn_implementation="eager")
    fit(tmp_path, module, GeometryMonitor(special_token_ids=special, strict=True), steps=1)
    batch = batch_of(0, 4)
    mask, keys = batch["attention_mask"], torch.isin(batch["input_ids"], torch.tensor(special))
    attentions = module.model.eval()(**batch, output_attentions=True).attentions
    rows = torch.stack([(p * keys[:, None, None]).sum(-1) * mask[:, None] for p in attentions])
    expected = (rows.sum(-1) / mask.sum(-1)[:, None]).mean(1)  # over rows, then sequences: [layer, head]
    ours = history_of(tmp_path)["special_mass"][-1]
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-5)


def test_a_model_that_is_named_gives_the_numbers_of_the_one_that_is_found(tmp_path: Path) -> None:
    for name in (None, "model", "model.bert"):
        monitor = GeometryMonitor(module=name, special_token_ids=[1], strict=True)
        fit(tmp_path / str(name), Classifier(), monitor, steps=2)
    found = history_of(tmp_path / "None")
    for name, stack in (("model", "bert.encoder"), ("model.bert", "encoder")):
        named = history_of(tmp_path / name)
        assert list(named.stacks) == [stack]
        assert named.keys() == found.keys()
        for key in found:
            np.testing.assert_array_equal(named[key], found[key], err_msg=key)


# -- loggers and callbacks


def test_several_loggers_get_the_same_numbers(tmp_path: Path) -> None:
    tensorboard, table = TensorBoardLogger(tmp_path, "board"), CSVLogger(tmp_path, "table")
    monitor = GeometryMonitor(every_n_steps=2, special_token_ids=[1], scalars="layer", strict=True)
    fit(tmp_path, Classifier(), monitor, steps=4, logger=[tensorboard, table])
    history = load_history(tensorboard.log_dir)
    assert history.steps.tolist() == [0, 2, 4]
    with open(Path(table.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["geometry/entropy"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    events = EventAccumulator(tensorboard.log_dir).Reload()
    layer = "geometry_subspace/effective_rank.query/layer_01"
    for tag, values in {
        "geometry/entropy": history["entropy"].mean((1, 2)),
        layer: history["effective_rank.query"][:, 1].mean(-1),
    }.items():
        assert [event.step for event in events.Scalars(tag)] == [0, 2, 4]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(values.tolist())
        assert [float(row[tag]) for row in rows] == pytest.approx(values.tolist(), rel=1e-5)
    # one logger holds the record; there is no second one elsewhere
    assert {file.parent for file in tmp_path.rglob("*tfevents*")} == {Path(tensorboard.log_dir)}


def test_callback_metrics_hold_the_means_over_the_layers_that_were_chosen(tmp_path: Path) -> None:
    monitor = GeometryMonitor(every_n_steps=1, layers=[1], special_token_ids=[1], strict=True)
    runner = fit(tmp_path, Classifier(layers=3), monitor)
    record = monitor.last_record
    assert record is not None
    ours = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("geometry/")}
    keys = set(record) - {"weight_similarity"}  # there is no other layer to compare with
    # masks of the training forward stand in the record after it alone
    assert {key for key in ours if not is_of_batch(key)} == {f"geometry/{key}" for key in keys}
    for key in keys:
        chosen = record[key][1]
        expected = chosen.max() if key == "max_logit" else chosen.mean()
        assert ours[f"geometry/{key}"] == pytest.approx(float(expected), rel=1e-5, abs=1e-7), key


def test_callbacks_may_watch_the_geometry(tmp_path: Path) -> None:
    stopper = EarlyStopping("geometry/entropy", mode="max", stopping_threshold=0.1)
    saver = ModelCheckpoint(tmp_path, monitor="geometry/entropy", mode="max")
    monitor = GeometryMonitor(every_n_steps=1, metrics="entropy", strict=True)
    runner = fit(
        tmp_path, Classifier(), monitor, stopper, saver, steps=50, validation=loader(8), val_check_interval=2,
        enable_checkpointing=True,
    )  # fmt: skip
    assert runner.global_step == 2  # the first validation found enough
    # which saw the latest sample: that of the weights that entered step 1
    assert float(saver.best_model_score) == pytest.approx(float(history_of(tmp_path)["entropy"][1].mean()))


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_lines_say_what_is_measured_what_it_costs_and_where_the_record_is(
    source: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = GeometryMonitor(every_n_steps=2, source=source, special_token_ids=[1], strict=True)
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        fit(tmp_path, Classifier(), monitor, steps=7)
    lines = [
        r.getMessage() for r in caplog.records if r.levelname == "INFO" and "GeometryM" in r.getMessage()
    ]
    place = re.escape(str(tmp_path / "lightning_geo" / "version_0"))
    inputs = {"probe": "4 sequences with 34 tokens, the first of the training batches"}
    expected = [
        r"found BertForSequenceClassification \(bert.encoder: 2 layers × 4 heads\)\. Measured on "
        rf"{inputs.get(source, 'the training batches')}\.",
        rf"samples are taken every 2 steps\. Where to look: lightning-geo tail {place}",
        r"a sample takes 0\.\d+ s, about \S+ % of the run's time at this interval; `max_overhead.*",
        r"(\d) samples in (\d+\.\d) s \((\d+\.\d) % of the run\)\.",
        r"Nothing unusual\.",
        r"largest changes: \S+ \S+ → \S+ \(layer \d: \S+ → \S+\), .*",
        rf"look closer: lightning-geo show {place} \(or report\)",
    ]
    said = [re.fullmatch(f"GeometryMonitor: {e}", line) for e, line in zip(expected, lines, strict=True)]
    assert all(said), lines
    assert int(said[3][1]) == len(history_of(tmp_path)) == (5 if source == "probe" else 4)
    assert 0 < float(said[3][3]) <= 100


# -- another monitor


def test_two_monitors_are_what_each_is_alone(tmp_path: Path) -> None:
    def pair() -> dict[str, GeometryMonitor]:
        often = GeometryMonitor(every_n_steps=1, metrics=["entropy", "drift"], name="often", strict=True)
        seldom = GeometryMonitor(
            every_n_steps=2, metrics="subspace", layers=[1], rank=2, probe_size=3, name="seldom", strict=True
        )
        return {"often": often, "seldom": seldom}

    def run(where: str, *monitors: GeometryMonitor) -> tuple[dict[str, list[str]], Path]:
        logger = CSVLogger(tmp_path, where)
        fit(tmp_path, Classifier(), *monitors, steps=3, logger=logger)
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        tags = set(rows[0]) - {"step", "epoch"}
        values = {tag: [row[tag] for row in rows if row[tag]] for tag in tags}
        return values, Path(logger.log_dir)

    both, alone = pair(), pair()
    logged, shared = run("both", *both.values())
    separate = {name: run(name, monitor) for name, monitor in alone.items()}
    assert logged == {**separate["often"][0], **separate["seldom"][0]}
    assert len({monitor.state_key for monitor in both.values()}) == 2
    for name, (values, place) in separate.items():
        assert all(tag.startswith((f"{name}/", f"{name}_")) for tag in values)
        assert_equal(load_history(shared, name), load_history(place))
        (ours, form), (theirs, expected) = (
            tree_flatten({k: v for k, v in m.state_dict().items() if k != "cost"})
            for m in (both[name], alone[name])
        )
        assert form == expected
        assert all(map(same, ours, theirs))


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_the_cost_of_a_sample_is_that_of_observing_too(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = SampleStatistics.attention

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        attention(*args)

    monkeypatch.setattr(SampleStatistics, "attention", slow)
    fit(tmp_path, Classifier(), GeometryMonitor(every_n_steps=2, source=source), steps=3)
    assert (history_of(tmp_path).metadata["cost_seconds"] >= 0.4).all()  # two layers
