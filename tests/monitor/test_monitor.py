"""The monitor in real runs: what it samples, what it is told, what it says, and what it refuses."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn

from lightning_geo import GeometryMonitor, GeometryRecord, load_history, measure
from lightning_geo.measurement.sample_statistics import SampleStatistics as Statistics
from lightning_geo.metrics.selection import is_of_batch, spec_of
from support.lit import Causal, Classifier, Lit, bert, fit, gpt2, loader, sequences, trainer
from support.same import records

QUIET: dict[str, Any] = {"special_token_ids": [1], "strict": True}


def joined(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_close(ours: GeometryRecord, theirs: GeometryRecord, *, divided: bool = False) -> None:
    """All metrics that the second has agree; less so where the same sequences came in other batches.

    Roots of small eigenvalues then show the rounding of sums.
    """
    assert ours.model["stacks"] == theirs.model["stacks"]
    for key in theirs:
        spectral = spec_of(key).family in ("subspace", "head")
        tolerance = 1e-3 if divided and spectral else 1e-6
        own = ours[of_source(key, ours)]
        np.testing.assert_allclose(own, theirs[key], rtol=tolerance, atol=tolerance, err_msg=key)


def of_source(key: str, record: GeometryRecord) -> str:
    """The name of a metric in a record: ``measure`` calls its batch a probe."""
    return key if key in record.keys() else key.replace(".probe", ".batch")  # noqa: SIM118 (no mapping)


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


# -- other callbacks


@pytest.mark.parametrize(("threshold", "steps"), [(100.0, 2), (0.0, 6)])
def test_early_stopping_on_one_of_our_metrics(threshold: float, steps: int, tmp_path: Path) -> None:
    stop = EarlyStopping("geometry/entropy", mode="min", stopping_threshold=threshold, patience=100)
    monitor = GeometryMonitor(2, **QUIET)
    runner = fit(tmp_path, Classifier(), monitor, stop, data=loader(8), validation=loader(4), steps=6)
    assert runner.global_step == steps
    assert [record.step for record in records(tmp_path)] == list(range(0, steps + 1, 2))


# -- which inputs


def test_the_probe_is_recorded_from_the_sanity_check_or_else_from_the_first_step(tmp_path: Path) -> None:
    """And it is the same to the fingerprint however it came: recorded, as a batch, as a dataloader."""
    seven = joined(*itertools.islice(loader(7, batch_size=7), 1))
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sanity": ({}, {"validation": loader(), "data": loader(seed=5)}),
        "first step": ({}, {"validation": loader(seed=5), "num_sanity_val_steps": 0}),
        "accumulated": ({}, {"accumulate_grad_batches": 2}),
        "batch": ({"probe": seven}, {"data": loader(seed=6)}),
        "dataloader": ({"probe": loader(batch_size=3)}, {"data": loader(seed=6)}),
    }
    found = {}
    for name, (monitor, options) in ways.items():
        monitor = {"probe_size": 4 if name == "first step" else 7, **monitor}
        fit(tmp_path / name, Classifier(), GeometryMonitor(9, **QUIET, **monitor), steps=1, **options)
        found[name] = records(tmp_path / name)[0]
    module = Classifier()
    assert_close(found["first step"], measure(module.model, next(iter(loader())), special_token_ids=[1]))
    alone = measure(module.model, seven, special_token_ids=[1])
    for name, record in found.items():
        assert (record.probe_fingerprint == found["batch"].probe_fingerprint) == (name != "first step"), name
        if name != "first step":
            assert_close(record, alone, divided=True)


@pytest.mark.parametrize(
    ("name", "probe", "observed"),
    [("model", None, "bert.encoder"), ("model.bert", None, "encoder"), (None, "input_ids", "bert.encoder")],
)
def test_module_names_the_observed_one(name: str | None, probe: Any, observed: str, tmp_path: Path) -> None:
    probe = probe and next(iter(loader()))["input_ids"]  # a tensor is the one argument
    fit(tmp_path, Classifier(), GeometryMonitor(9, module=name, probe=probe, **QUIET), steps=1)
    assert list(records(tmp_path)[0].stacks) == [observed]


@pytest.mark.parametrize("layers", [1, [1], r"layer\.1\.", r"^bert\.encoder\.layer\.1"])
@pytest.mark.parametrize("source", ["probe", "batch"])
def test_layers_leaves_the_others_out(layers: Any, source: Any, tmp_path: Path) -> None:
    fit(tmp_path / "all", Classifier(dropout=0.0), GeometryMonitor(1, source=source, **QUIET), steps=3)
    some = GeometryMonitor(1, source=source, layers=layers, **QUIET)
    with patch.object(Statistics, "expect", autospec=True, side_effect=Statistics.expect) as narrowly:
        fit(tmp_path / "some", Classifier(dropout=0.0), some, steps=3)
    assert narrowly.called == (source == "probe")
    # the second sample does not measure what the first one has shown to be other layers, and the third does
    # not observe it
    for whole, part in zip(*(records(tmp_path / name)[:3] for name in ("all", "some")), strict=True):
        assert part.coverage == {"seen": 1, "measured": 1, "left_out": {}}
        assert part.keys() == whole.keys()
        for key in part:
            assert np.isnan(part[key][0]).all(), key
            if key == "weight_similarity":  # there is no other layer to compare with
                continue
            # other layers are decomposed together, which rounds otherwise
            np.testing.assert_allclose(part[key][1], whole[key][1], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("ids", "build", "first"),
    [
        ([1], Classifier, True),
        (None, Causal, True),
        ([59], Causal, False),
        ([], Causal, None),
        (None, Classifier, None),
    ],
)
def test_special_tokens_are_the_given_or_those_of_the_config(
    ids: Any, build: Callable[..., Lit], first: bool | None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    module, monitor = build(), GeometryMonitor(1, metrics="pattern", special_token_ids=ids)
    fit(tmp_path, module, monitor, steps=2)
    said = [str(w.message) for w in recwarn if "special_mass is absent" in str(w.message)]
    assert len(said) == (first is None)
    record = records(tmp_path)[0]
    assert ("special_mass" in record) == (first is not None)
    if first:  # the first token is 1, and the rest is other than what is given
        other = [2] if build is Causal and ids is None else []  # GPT-2's config also names the end
        ids = torch.stack([item["input_ids"] for item in sequences()])[:16]
        assert not np.isin(ids[:, 1:], [1]).any()
        if not other:
            np.testing.assert_allclose(record["special_mass"], record["first_mass"], rtol=1e-5)


def test_drift_is_against_the_baseline_that_was_given(tmp_path: Path) -> None:
    data = {"validation": loader(8, seed=3), "steps": 1}
    fit(tmp_path / "old", Classifier(seed=0), GeometryMonitor(9, rank=3, **QUIET), **data)
    baseline = tmp_path / "old" / "lightning_geo" / "version_0"
    for seed in (0, 1):
        monitor = GeometryMonitor(9, rank=3, baseline=baseline, **QUIET)
        fit(tmp_path / str(seed), Classifier(seed=seed), monitor, **data)
    same, other = (records(tmp_path / name)[0] for name in ("0", "1"))
    np.testing.assert_allclose(same["drift"], 0, atol=1e-5)
    old = load_history(baseline).record(0)
    for role in ("query", "key", "value", "output"):
        u, v = (r.matrices["bert.encoder"][f"basis.{role}"].astype(np.float64) for r in (old, other))
        overlap = np.square(np.swapaxes(u, -1, -2) @ v).sum((-1, -2)) / 3
        np.testing.assert_allclose(other[f"drift.{role}"], np.sqrt(1 - overlap), atol=5e-6)
    wrong = GeometryMonitor(9, rank=3, baseline=baseline)
    module = Classifier(layers=3)
    with pytest.raises(ValueError, match=r"`baseline` to be a run of the same model and `rank` but '.*old"):
        fit(tmp_path / "wrong", module, wrong, **data)
    assert module.losses == []


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["entropi"]}, r"`metrics` .* got 'entropi'\. Did you mean 'entropy'"),
        ({"metrics": []}, "`metrics` to name at least one"),
        ({"every_n_steps": 0}, "`every_n_steps` to be an integer of at least 1 but got 0"),
        ({"every_n_steps": 2.5}, "`every_n_steps` .* got 2.5"),
        ({"every_n_steps": 5, "schedule": bool}, "either `every_n_steps` or `schedule` but got both"),
        ({"schedule": 5}, "`schedule` to be a callable .* got int"),
        ({"source": "train"}, r"`source` to be one of \('probe', 'batch'\) but got 'train'"),
        ({"scalars": "all"}, "`scalars` to be one of .* got 'all'"),
        ({"rank": 0}, "`rank` to be an integer of at least 1 but got 0"),
        ({"probe_size": -1}, "`probe_size` to be an integer of at least 1 but got -1"),
        ({"name": "a/b"}, "`name` to be made of letters.* got 'a/b'"),
        ({"special_token_ids": "[SEP]"}, r"`special_token_ids` to be a list of token ids but got '\[SEP\]'"),
        ({"special_token_ids": 5}, "`special_token_ids` to be a list of token ids but got 5"),
        ({"source": "batch", "probe": torch.ones(2)}, '`probe` only with `source="probe"`'),
        ({"source": "batch", "baseline": "runs"}, '`baseline` only with `source="probe"`'),
        ({"source": "batch", "loss_fn": print}, '`loss_fn` only with `source="probe"`'),
        ({"source": "batch", "metrics": "drift"}, "`metrics` to name more than `drift` and `velocity` with"),
        ({"weights_every_n_samples": 1.5}, "`weights_every_n_samples` to be an integer of at least 1"),
        ({"importance_every_n_samples": 0}, "`importance_every_n_samples` to be an integer of at least 1"),
        (
            {"metrics": "entropy", "baseline": "runs"},
            "`metrics` to include `drift` where `baseline` is given",
        ),
    ],
)
def test_arguments_that_cannot_be_right(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        GeometryMonitor(**arguments)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"module": "modle"},
        "`module` to name a module of Classifier but got 'modle'. Nearest names: .'model'",
    ),
    ({"layers": 2}, r"`layers` to match at least one layer but got 2\. Layers per stack: .*2"),
    ({"layers": [7, 9]}, r"`layers` to match at least one layer but got \[7, 9\]"),
    ({"layers": "decoder"}, "`layers` to match the name of a module but 'decoder' matches none"),
    ({"layers": "intermediate"}, "`layers` to match at least one layer but got 'intermediate'"),
    ({"layers": "layer.(1"}, r"`layers` to be a regular expression but 'layer.\(1' is none"),
    ({"layers": 0.5}, "`layers` to be a pattern or layer indices .* got 0.5"),
    ({"baseline": "nowhere"}, "`baseline` to be the directory of a run but .*'nowhere' does not exist"),
    (
        {"probe": {"pixels": torch.ones(2, 3)}},
        "`probe` to be inputs that the observed model takes .* 'pixels'",
    ),
    ({"probe": [object()]}, "`probe` to be a batch or a dataloader but .*object cannot be kept"),
]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (source, arguments, message)
        for source in ("probe", "batch")
        for arguments, message in REFUSED
        if source == "probe" or not {"baseline", "probe"} & set(arguments)  # refused above
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_step(
    source: Any, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    runner, module = trainer(tmp_path, GeometryMonitor(source=source, **arguments)), Classifier()
    with pytest.raises((ValueError, TypeError), match=message):
        runner.fit(module, loader())
    assert runner.global_step == 0
