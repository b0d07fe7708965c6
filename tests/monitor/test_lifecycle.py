"""Runs do not mix, and nothing is lost: crashes, several Trainers, other versions, weight averaging."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
    ModelCheckpoint,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.monitor.sampler import Sampler
from support.lit import Classifier, Failing, Lit, bert, fit, loader, trainer
from support.open_files import open_files
from support.same import assert_same, outcome, steps_in, traces


def warn_once(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]


# -- before the first step


class Unready(nn.Module):
    """Its config is known later on."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()

    @property
    def config(self) -> Any:
        raise RuntimeError("not yet")

    def forward(self, **inputs: Tensor) -> Any:
        return self.bert(**inputs)


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_config_that_raises_costs_nothing(source: Any, tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, source=source, metrics="entropy", strict=True)
    fit(tmp_path, Lit(Unready), monitor, steps=2)
    assert steps_in(tmp_path / "lightning_geo" / "version_0") == [0, 1] + [2] * (source == "probe")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["probe", "batch"])
def test_whatever_a_hook_calls_may_fail(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that the hooks ask of the sampler raises, one after the other."""
    bare = Classifier()
    expected = outcome(fit(tmp_path, bare, steps=3, validation=loader(8)), bare)
    methods = [
        (owner, name)
        for owner in (Sampler, ProbeReplay, BatchObservation, ObservedModels)
        for name in dir(owner)
        if callable(getattr(owner, name)) and not name.startswith("_") and name != "stop"
    ]
    failed = []
    for owner, name in [(Sampler, "__init__"), *methods]:
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")

            def fail(*args: Any, **kwargs: Any) -> Any:
                raise ArithmeticError("injected")

            patch.setattr(owner, name, fail)
            module = Classifier()
            monitor = GeometryMonitor(1, source=source, layers=[0], metrics=["entropy", "stream"])
            assert_same(
                outcome(fit(tmp_path, module, monitor, steps=3, validation=loader(8)), module), expected
            )
            assert traces(module) == []
            failed += [name] * any("injected" in said for said in warn_once(caught))
    assert {"__init__", "conclude", "pause", "add_importance"} <= set(failed)
    assert ("replay" in failed) == (source == "probe")


def test_notes_are_logged_where_warnings_are_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "GeometryMonitor")
        fit(tmp_path, Classifier(), GeometryMonitor(1), steps=2)  # BERT's config names no special tokens
    assert steps_in(tmp_path / "lightning_geo" / "version_0") == [0, 1, 2]
    assert any("special_mass is absent" in record.message for record in caplog.records)


# -- after an exception


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_monitor_that_is_used_again_after_a_crash(error: BaseException, tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics="entropy", strict=True)
    loggers = [CSVLogger(tmp_path, name, version=0) for name in ("one", "two")]
    with pytest.raises((RuntimeError, SystemExit)):
        fit(tmp_path, Failing(2, error), monitor, logger=loggers[0])
    assert [name for name in open_files(tmp_path) if "tfevents" in name] == []
    fit(tmp_path, Classifier(), monitor, logger=loggers[1])
    assert steps_in(tmp_path / "one" / "version_0") == [0, 1, 2]
    assert steps_in(tmp_path / "two" / "version_0") == [0, 1, 2, 3, 4]


def test_a_run_that_is_resumed_by_the_same_monitor_marks_where(tmp_path: Path) -> None:
    """Samples 3 and 4 of before the crash are void, though none is taken at these steps any more."""
    monitor = GeometryMonitor(schedule=lambda step: step > 2, metrics="entropy", strict=True)
    logger = TensorBoardLogger(tmp_path, version=0)
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError):
        fit(tmp_path, Failing(5, RuntimeError()), monitor, checkpoints, steps=8, logger=logger,
            enable_checkpointing=True)  # fmt: skip
    assert steps_in(Path(logger.log_dir)) == [0, 3, 4, 5]
    again = trainer(tmp_path, monitor, steps=4, logger=TensorBoardLogger(tmp_path, version=0))
    monitor._settings.schedule._schedule = lambda step: False
    again.fit(Classifier(), loader(), ckpt_path=tmp_path / "step=3.ckpt")
    assert steps_in(Path(logger.log_dir)) == [0, 4]


# -- several Trainers


def test_trainers_that_take_turns_keep_their_probes_and_baselines(tmp_path: Path) -> None:
    data = {"one": loader(seed=1), "two": loader(seed=2)}

    def begin(name: str, monitor: GeometryMonitor) -> Any:
        runner = trainer(tmp_path, monitor, steps=2, logger=CSVLogger(tmp_path, name, version=0))
        torch.manual_seed(0)
        runner.fit(Classifier(dropout=0.0), data[name.partition("-")[0]])
        return runner

    def go_on(name: str, runner: Any) -> None:
        runner.fit_loop.epoch_loop.max_steps = 4
        runner.fit(runner.lightning_module, data[name.partition("-")[0]])

    shared = GeometryMonitor(1, metrics=["entropy", "drift"], strict=True)
    runners = {name: begin(name, shared) for name in ("one", "two")}
    for name, runner in runners.items():
        go_on(name, runner)
    for name in ("one", "two"):
        go_on(f"{name}-alone", begin(f"{name}-alone", GeometryMonitor(1, metrics=["entropy", "drift"])))
        history, alone = (load_history(tmp_path / n / "version_0") for n in (name, f"{name}-alone"))
        assert history.steps.tolist() == alone.steps.tolist() == [0, 1, 2, 3, 4]
        assert len(set(history.metadata["probe_fingerprint"])) == 1
        for key in alone:
            np.testing.assert_array_equal(history[key], alone[key], err_msg=key)


def test_a_trainer_keeps_its_run_when_the_one_that_fitted_last_is_gone(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics=["entropy", "drift"], strict=True)
    first = fit(tmp_path / "first", Classifier(dropout=0.0), monitor, steps=2)
    last = fit(tmp_path / "last", Classifier(seed=3), monitor, steps=3)
    died = weakref.ref(last)
    del last
    gc.collect()
    assert died() is None
    first.fit_loop.epoch_loop.max_steps = 4
    first.fit(first.lightning_module, loader())
    (place,) = (tmp_path / "first" / "lightning_geo").iterdir()
    history = load_history(place)
    assert history.steps.tolist() == [0, 1, 2, 3, 4]
    assert len(set(history.metadata["probe_fingerprint"])) == 1
    assert steps_in(tmp_path / "last" / "lightning_geo" / "version_0") == [0, 1, 2, 3]


class Nested(Callback):
    """Runs another fit within a step of the first."""

    def __init__(self, monitor: GeometryMonitor, directory: Path) -> None:
        self.monitor, self.directory = monitor, directory

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 1:
            fit(self.directory, Classifier(seed=3), self.monitor, steps=2)


def test_a_fit_within_a_fit_keeps_apart(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics="entropy", strict=True)
    fit(tmp_path / "outer", Classifier(), monitor, Nested(monitor, tmp_path / "inner"), steps=3)
    fit(tmp_path / "alone", Classifier(), GeometryMonitor(1, metrics="entropy"), steps=1)
    outer, inner, alone = (
        load_history(tmp_path / n / "lightning_geo" / "version_0") for n in ("outer", "inner", "alone")
    )
    assert outer.steps.tolist() == [0, 1, 2, 3]
    assert inner.steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(outer["entropy"][0], alone["entropy"][0])
    assert not np.array_equal(inner["entropy"][0], alone["entropy"][0])


def test_a_copied_monitor_belongs_to_no_trainer(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics="entropy", strict=True)
    fit(tmp_path, Classifier(), monitor, steps=1)
    for number, other in enumerate((copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor)))):
        fit(tmp_path, Classifier(), other, steps=2)
        assert steps_in(tmp_path / "lightning_geo" / f"version_{number + 1}") == [0, 1, 2]


# -- checkpoints of others


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("format"),
        lambda state: state.update(format=99),
        lambda state: state.update(probe={"calls": [{"inputs": "of a newer version"}]}),
        lambda state: state.pop("fingerprint"),
        lambda state: state.pop("summaries"),
    ],
)
def test_a_checkpoint_of_another_version_is_a_warning_and_a_new_probe(change: Any, tmp_path: Path) -> None:
    runner = fit(tmp_path, Classifier(), GeometryMonitor(1, metrics=["entropy", "drift"]), steps=2)
    runner.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    (state,) = (s for key, s in checkpoint["callbacks"].items() if "GeometryMonitor" in key)
    change(state)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    logger = CSVLogger(tmp_path, "new", version=0)
    resumed = trainer(tmp_path, GeometryMonitor(1, metrics=["entropy", "drift"]), steps=4, logger=logger)
    with pytest.warns(UserWarning, match="the checkpoint's state of the monitor cannot be used"):
        resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "old.ckpt")
    history = load_history(tmp_path / "new" / "version_0")
    assert history.steps.tolist() == [2, 3, 4]
    assert np.nanmax(history["drift"][0]) < 1e-3


# -- layers


def test_wrong_layers_are_found_though_the_first_sample_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "conclude", lambda *args: 1 / 0)
    for validation in (loader(8), None):
        with pytest.raises(ValueError, match="Expected `layers` to match at least one layer"):
            fit(tmp_path, Classifier(), GeometryMonitor(1, layers=[7]), steps=2, validation=validation)


def test_wrong_layers_that_are_found_late_do_not_stop_training(tmp_path: Path) -> None:
    """The model attends from step 2 on."""

    class Late(Lit):
        def loss(self, batch: dict[str, Tensor]) -> Tensor:
            if self.global_step < 2:
                return self.model.classifier.weight.square().sum()  # type: ignore[union-attr,operator,return-value]
            return super().loss(batch)

    with pytest.warns(UserWarning, match="Expected `layers` to match at least one layer"):
        runner = fit(
            tmp_path, Late(bert), GeometryMonitor(1, source="batch", layers=[7], metrics="entropy"), steps=4
        )
    assert runner.global_step == 4
