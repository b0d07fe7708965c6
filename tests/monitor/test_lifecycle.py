"""Runs do not mix, and nothing is lost: crashes, several Trainers, other versions, weight averaging."""

from __future__ import annotations

import contextlib
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
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_geo import GeometryMonitor, GeometryRecord, load_history, measure
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.observe.replay.call_hooks import _take_off
from support.lit import Classifier, Lit, bert, fit, loader, sequences, trainer, weight_averaging
from support.open_files import open_files
from support.same import assert_same, assert_same_records, outcome, traces


def steps_in(directory: Path) -> list[int]:
    return load_history(directory).steps.tolist()


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


class Failing(Classifier):
    """Stops at a step."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


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


# -- copies of a Trainer


class Copying(Callback):
    """Copies the Trainer once, in one of its hooks, at a step.

    Args:
        hook: Which.
        step: Of the Trainer; None for the first time that the hook is called.
        how: What copies.
    """

    def __init__(self, hook: str, step: int | None, how: Any) -> None:
        self.step, self.how = step, how
        self.trainer: Any = None
        self.module: Any = None
        setattr(self, hook, self._copy)

    def _copy(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        if self.trainer is None and self.step in (None, trainer.global_step):
            self.trainer = True  # not for the copy to do it again
            self.module = copy.deepcopy(pl_module)
            self.trainer = self.how(trainer)

    def __getstate__(self) -> dict[str, Any]:
        return {"step": None, "how": None, "trainer": True, "module": None}


class Steps(Callback):
    """Losses of the steps that a Trainer takes."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.losses.append((trainer.global_step, float(pl_module.losses[-1])))


def pickled(trainer: Any) -> Any:
    return pickle.loads(pickle.dumps(trainer))


def copied_fit(directory: Path, logger: Any, copying: Copying, *monitors: Any) -> tuple[Any, ...]:
    """Fit, then go on with the copy of the Trainer; losses of both, and what the first one's record holds."""
    steps = Steps()
    loggers = logger(directory) if logger else False
    runner = fit(directory, Classifier(), *monitors, copying, steps, validation=loader(8), logger=loggers)
    place = runner.log_dir if logger else directory / "lightning_geo" / "version_0"
    name = monitors[0]._settings.name if monitors else None
    first = records_in(place, name) if monitors else None
    other = copying.trainer
    other.fit_loop.epoch_loop.max_steps = 6
    (again,) = (callback for callback in other.callbacks if isinstance(callback, Steps))
    again.losses.clear()
    torch.manual_seed(2)
    other.fit(copying.module, loader(), loader(8))
    if monitors:
        assert_same_records(records_in(place, name), first)
    return steps.losses, again.losses, first, other


def records_in(place: Any, name: str | None) -> list[GeometryRecord]:
    history = load_history(place, name)
    return [history.record(index) for index in range(len(history))]


#: Hooks of the user's in which a Trainer is copied, and at which step.
EVERYWHERE = [
    ("on_fit_start", None), ("on_sanity_check_start", None), ("on_validation_batch_end", None),
    ("on_train_start", None), ("on_train_batch_start", 0), ("on_before_backward", 2),
    ("on_before_optimizer_step", 0), ("on_train_batch_end", 2), ("on_train_end", None), ("on_fit_end", None),
    ("teardown", None),
]  # fmt: skip
WITHIN = [("on_train_batch_start", 0), ("on_before_backward", 2), ("on_train_end", None)]
COPIED = [
    *(("probe", copy.deepcopy, *when) for when in EVERYWHERE),
    *(("probe", pickled, *when) for when in WITHIN),
    *(("batch", how, *when) for how in (copy.deepcopy, pickled) for when in WITHIN),
]


@pytest.mark.parametrize(
    ("source", "how", "hook", "step"),
    COPIED,
    ids=[f"{s} {how.__name__} {hook}" for s, how, hook, _ in COPIED],
)
def test_a_copied_trainer_trains_as_without_a_monitor_and_records_elsewhere(
    source: Any, how: Any, hook: str, step: int | None, tmp_path: Path
) -> None:
    logger = TensorBoardLogger if source == "probe" else CSVLogger
    monitor = GeometryMonitor(1, source=source, metrics=["entropy", "stream"], strict=True)
    bare = copied_fit(tmp_path / "bare", logger, Copying(hook, step, how))
    copying = Copying(hook, step, how)
    losses, again, first, other = copied_fit(tmp_path, logger, copying, monitor)
    assert (losses, again) == bare[:2]
    last = source == "probe"
    assert [record.step for record in first] == [0, 1, 2, 3, 4][: 4 + last]
    (copied,) = (c for c in other.callbacks if isinstance(c, GeometryMonitor))
    assert copied.last_record.step == 5 + last
    steps = steps_in(tmp_path / "lightning_geo" / "version_0")
    expected = [*range(again[0][0] - 1, 6 + last)]
    assert steps in (expected, expected[1:])  # the original may have taken the first one before
    # modules that were never called keep stand-ins of hooks, which go when they are
    hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in copying.module.modules()]
    assert {hook for pair in hooks for kind in pair for hook in kind.values()} <= {_take_off}


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_without_a_logger_a_copied_trainer_has_a_directory_of_its_own(how: Any, tmp_path: Path) -> None:
    monitors = [GeometryMonitor(1, metrics="entropy", strict=True, name=name) for name in ("one", "two")]
    copied_fit(tmp_path, None, Copying("on_train_batch_end", 2, how), *monitors)
    root = tmp_path / "lightning_geo"
    assert sorted(path.name for path in root.iterdir()) == ["version_0", "version_1"]
    for name in ("one", "two"):
        assert load_history(root / "version_0", name).steps.tolist() == [0, 1, 2, 3, 4]
        assert load_history(root / "version_1", name).steps.tolist() == [2, 3, 4, 5, 6]


def test_a_copied_monitor_in_a_trainer_of_its_own_records_where_that_logs(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics="entropy", strict=True)
    fit(tmp_path, Classifier(), monitor, steps=1, logger=CSVLogger(tmp_path, version=0))
    logger = CSVLogger(tmp_path, version=1)
    fit(tmp_path, Classifier(), copy.deepcopy(monitor), steps=2, logger=logger)
    assert steps_in(Path(logger.log_dir)) == [0, 1, 2]
    assert not (tmp_path / "lightning_geo").exists()


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_monitor_that_lives_on_keeps_no_finished_run_alive(source: Any, tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, source=source, metrics="entropy", strict=True)
    left = []
    for fails in (False, False, True, False):
        module = Failing(2, RuntimeError("boom")) if fails else Classifier()
        runner = trainer(tmp_path, monitor, steps=3)
        with contextlib.suppress(RuntimeError):
            runner.fit(module, loader())
        left += [weakref.ref(module), weakref.ref(runner)]
        del module, runner
        gc.collect()
    assert [ref() for ref in left] == [None] * 8
    assert monitor.last_record is not None


def test_parametrised_models_are_let_go(tmp_path: Path) -> None:
    """Each of their modules has a class of its own, which holds the module."""
    module = Classifier()
    parametrizations.weight_norm(module.model.bert.encoder.layer[0].output.dense)  # type: ignore[union-attr]
    left = [weakref.ref(p) for p in module.parameters()]
    fit(tmp_path, module, GeometryMonitor(1, source="batch", metrics="entropy"), steps=1)
    del module
    gc.collect()
    assert not any(ref() is not None for ref in left)


# -- where the record goes


def test_runs_without_a_logger_have_a_directory_each_and_their_monitors_share_it(tmp_path: Path) -> None:
    root = tmp_path / "lightning_geo"
    for steps in (1, 2):
        monitors = [GeometryMonitor(1, metrics="entropy", name=name, strict=True) for name in ("one", "two")]
        runner = fit(tmp_path, Classifier(), *monitors, steps=steps)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    monitors = [GeometryMonitor(1, metrics="entropy", name=name, strict=True) for name in ("one", "two")]
    resumed = trainer(tmp_path, *monitors, steps=3)
    resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert sorted(path.name for path in root.iterdir()) == ["version_0", "version_1"]
    for name in ("one", "two"):
        assert load_history(root / "version_0", name).steps.tolist() == [0, 1]
        assert load_history(root / "version_1", name).steps.tolist() == [0, 1, 2, 3]


class Plain(Logger):
    """Keeps what it gets, and has no directory."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    @property
    def name(self) -> str:
        return "plain"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)


class Homeless(Plain):
    """Fails when it is asked for its directory."""

    @property
    def log_dir(self) -> str:
        raise ConnectionError("the server is down")


class Closed(Plain):
    """Has an experiment that cannot be written to."""

    @property
    def experiment(self) -> Any:
        class Experiment:
            def _get_file_writer(self) -> Any:
                raise ConnectionError("the server is down")

        return Experiment()


@pytest.mark.parametrize("first", [True, False])
def test_a_logger_that_fails_takes_no_other_and_not_the_record(first: bool, tmp_path: Path) -> None:
    plain, homeless, csv = Plain(), Homeless(), CSVLogger(tmp_path, "csv", version=0)
    failing = [homeless, Closed()]
    with pytest.warns(UserWarning, match="the logger Closed could not be opened: ConnectionError"):
        fit(
            tmp_path, Classifier(), GeometryMonitor(1, metrics="entropy"), steps=2,
            logger=[plain, *failing, csv] if first else [csv, *failing, plain],
        )  # fmt: skip
    assert steps_in(tmp_path / "csv" / "version_0") == [0, 1, 2]
    assert plain.steps == homeless.steps == [0, 1, 2]


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


# -- what other callbacks see


class Poison(Callback):
    """From a step on the values of attention are NaN."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                for layer in pl_module.model.bert.encoder.layer:
                    layer.attention.self.value.weight.fill_(torch.nan)


def test_early_stopping_notices_a_metric_that_became_nan(tmp_path: Path) -> None:
    stopping = EarlyStopping("geometry/effective_rank.value", patience=99, check_finite=True)
    monitor = GeometryMonitor(1, metrics=["subspace"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = fit(tmp_path, Classifier(), monitor, Poison(), stopping, steps=-1, max_epochs=3,
                     data=loader(12), validation=loader(4), num_sanity_val_steps=0)  # fmt: skip
    assert stopping.stopped_epoch == 0
    assert runner.current_epoch == 1
    assert np.isnan(float(runner.callback_metrics["geometry/effective_rank.value"]))


def test_metrics_on_a_slower_clock_keep_their_value(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics=["entropy", "symmetry"], weights_every_n_samples=3, strict=True)

    class Seen(Callback):
        values: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.values.append(float(trainer.callback_metrics["geometry/symmetry"]))

    fit(tmp_path, Classifier(), monitor, Seen(), steps=3)
    assert len(Seen.values) == 3
    assert len(set(Seen.values)) == 1
    assert np.isfinite(Seen.values).all()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "averaging",
    [
        lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
        lambda: weight_averaging("EMAWeightAveraging", decay=0.8),
        lambda: weight_averaging(
            "WeightAveraging", avg_fn=lambda average, current, _: 0.5 * (average + current)
        ),
    ],
    ids=["SWA", "EMA", "own average"],
)
def test_the_last_sample_is_of_the_averaged_weights(averaging: Any, first: bool, tmp_path: Path) -> None:
    monitor = GeometryMonitor(2, probe=some_inputs(), metrics=AT_THE_END, strict=True)
    module, other = Classifier(), averaging()
    callbacks = [monitor, other] if first else [other, monitor]
    runner = fit(tmp_path, module, *callbacks, steps=-1, max_epochs=3, data=loader(12))
    assert runner.global_step == 9
    assert_last_record(monitor, 9, module)
    assert runner.callbacks == callbacks  # as the user listed them


#: Families whose every metric tells other weights.
AT_THE_END = ["entropy", "cone", "subspace", "weights"]


def some_inputs() -> dict[str, Tensor]:
    data = sequences(4)
    return {name: torch.stack([item[name] for item in data]) for name in ("input_ids", "attention_mask")}


def assert_last_record(monitor: GeometryMonitor, step: int, module: Lit) -> None:
    """The last record is of the weights that a module has now."""
    record = monitor.last_record
    assert record is not None
    assert record.step == step
    expected = measure(module.model, some_inputs(), metrics=AT_THE_END)
    compared = [name for name in expected.keys() if name in record]  # noqa: SIM118 (a record is no mapping)
    assert {"entropy", "cone.head", "effective_rank.value", "symmetry"} <= {*compared}
    for name in compared:
        np.testing.assert_allclose(record[name], expected[name], 1e-5, 1e-5, err_msg=name)


class Averaged(Classifier):
    """Takes its final weights in its own `on_train_end`, which comes after those of all callbacks."""

    def on_train_end(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.5)


class AveragingStrategy(SingleDeviceStrategy):
    """Takes the final weights after the module's `on_train_end`."""

    def on_train_end(self) -> None:
        with torch.no_grad():
            for parameter in self.lightning_module.parameters():
                parameter.add_(0.01)


@pytest.mark.parametrize("strategy", ["auto", AveragingStrategy])
def test_the_last_sample_comes_after_the_modules_and_the_strategys_end(strategy: Any, tmp_path: Path) -> None:
    strategy = strategy if isinstance(strategy, str) else strategy(torch.device("cpu"))
    monitors = [
        GeometryMonitor(2, probe=some_inputs(), metrics=AT_THE_END, strict=True, name=name)
        for name in ("one", "two")
    ]
    module = Averaged()
    runner = fit(tmp_path, module, *monitors, steps=3, strategy=strategy)
    for monitor in monitors:
        assert_last_record(monitor, 3, module)
    assert "on_train_end" not in vars(runner.strategy)
    assert runner.callbacks == monitors


@pytest.mark.parametrize("by", ["module", "strategy", "callback"])
def test_an_end_that_raises_leaves_no_trace_of_the_last_sample(by: str, tmp_path: Path) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("boom")

    strategy, module, other = SingleDeviceStrategy(torch.device("cpu")), Classifier(), Callback()
    {"module": module, "strategy": strategy, "callback": other}[by].on_train_end = fail  # type: ignore[attr-defined]
    monitor = GeometryMonitor(1, metrics="entropy", strict=True)
    runner = trainer(tmp_path, monitor, other, steps=2, strategy=strategy)
    with pytest.raises(RuntimeError, match="boom"):
        runner.fit(module, loader())
    assert vars(strategy).get("on_train_end") is (fail if by == "strategy" else None)
    assert runner.callbacks == [monitor, other]
    assert [name for name in open_files(tmp_path) if "tfevents" in name] == []
    assert steps_in(tmp_path / "lightning_geo" / "version_0") == [0, 1]


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
