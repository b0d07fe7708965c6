"""Copies of a Trainer, and runs that are over: each monitor belongs to one, and keeps none alive."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.nn.utils import parametrizations

from lightning_geo import GeometryMonitor, GeometryRecord, load_history
from lightning_geo.observe.replay.call_hooks import _take_off
from support.lit import Classifier, Failing, fit, loader, trainer
from support.same import assert_same_records, steps_in


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


#: Losses without a monitor, whatever its source.
BARE: dict[tuple[Any, str, int | None], tuple[Any, ...]] = {}


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
    if (how, hook, step) not in BARE:
        BARE[how, hook, step] = copied_fit(tmp_path / "bare", logger, Copying(hook, step, how))[:2]
    copying = Copying(hook, step, how)
    losses, again, first, other = copied_fit(tmp_path, logger, copying, monitor)
    assert (losses, again) == BARE[how, hook, step]
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
