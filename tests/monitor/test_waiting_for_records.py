"""Who waits for a sample that is finished outside the training thread, and who does not."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from lightning_geo import GeometryHistory, GeometryMonitor, load_history
from lightning_geo.measurement.assemble import SampleDerivation
from lightning_geo.monitor.delivery import Delivery
from lightning_geo.monitor.pending_sample import PendingSample
from support.lit import Classifier, fit, loader
from support.outside import finished
from support.registry import nothing_registered, register


def history_of(directory: Path) -> GeometryHistory:
    return load_history(directory / "lightning_geo" / "version_0")


def slowed(go: threading.Event) -> Callable[[SampleDerivation], Any]:
    """Metrics that are not there before somebody says so."""
    finish = SampleDerivation.finish

    def waits(self: SampleDerivation) -> Any:
        assert go.wait(20)
        return finish(self)

    return waits


class Steps(Callback):
    """Lets the metrics come at a step, and notes which records are there after each."""

    def __init__(self, monitor: GeometryMonitor, go: threading.Event, at: int) -> None:
        self.monitor, self.go, self.at = monitor, go, at
        self.there: list[int | None] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            self.go.set()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        record = self.monitor._run.samples.delivery.record
        self.there.append(None if record is None else record.step)


def test_training_goes_on_without_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(SampleDerivation, "finish", slowed(go))
    monitor = GeometryMonitor(4, metrics=["subspace"], strict=True)
    steps = Steps(monitor, go, at=2)
    with finished("as it comes"):
        fit(tmp_path, Classifier(), monitor, steps, steps=5)
    assert steps.there[:2] == [None, None]
    assert steps.there[3] == 0  # at the latest before the sample of step 4
    assert history_of(tmp_path).steps.tolist() == [0, 4, 5]


@pytest.mark.parametrize("reader", [EarlyStopping, ModelCheckpoint])
def test_who_decides_by_a_number_at_a_step_has_it_there(tmp_path: Path, reader: Any) -> None:
    monitor, seen = GeometryMonitor(2, metrics=["subspace"]), []

    class Reads(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(monitor._run.samples.delivery.record.step)

    decides = reader(monitor="geometry/effective_rank.query")
    with finished("asked for"):
        fit(tmp_path, Classifier(), monitor, Reads(), decides, steps=4, enable_checkpointing=True)
    assert seen == [0, 0, 2, 2]


def test_who_reads_the_last_record_waits_for_it(tmp_path: Path) -> None:
    monitor, seen = GeometryMonitor(2, metrics=["subspace"]), []

    class Reads(Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            seen.append(monitor.last_record.step)
            seen.append(copy.deepcopy(monitor)._run.samples.state.samples)

    with finished("asked for"):
        fit(tmp_path, Classifier(), monitor, Reads(), steps=3, validation=loader(4))
    assert seen == [0, 1, 0, 1, 2, 2]


def test_what_fails_in_the_thread_costs_the_sample_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, calls = SampleDerivation.finish, iter(range(99))

    def fails(self: SampleDerivation) -> Any:
        if next(calls) in (1, 2):
            raise ArithmeticError("no")
        return finish(self)

    monkeypatch.setattr(SampleDerivation, "finish", fails)
    with finished("asked for"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = fit(tmp_path, Classifier(), GeometryMonitor(1, metrics="entropy"), steps=4)
        monkeypatch.setattr(SampleDerivation, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path / "strict", Classifier(), GeometryMonitor(1, metrics="entropy", strict=True))
    [said] = [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]
    assert said == (
        "GeometryMonitor: a sample was dropped: ArithmeticError: no (first at step 1, training goes on, "
        "warned once)"
    )
    assert history_of(tmp_path).steps.tolist() == [0, 3, 4]
    gone = weakref.ref(runner)
    del runner
    gc.collect()
    assert gone() is None


def test_ctrl_c_while_somebody_waits_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, interrupts = PendingSample.wait, iter([KeyboardInterrupt])

    def interrupted(self: PendingSample) -> float:
        for interrupt in interrupts:
            raise interrupt
        return wait(self)

    monkeypatch.setattr(PendingSample, "wait", interrupted)
    monitor = GeometryMonitor(2, metrics="entropy")
    with finished("asked for"), pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Classifier(), monitor, steps=4)
    assert history_of(tmp_path).steps.tolist() == [0]
    assert monitor._run.samples.state.samples == 1


def test_functions_of_others_stay_in_the_training_thread(tmp_path: Path) -> None:
    threads = set()

    def draws(eigenvalues: Tensor) -> Tensor:
        threads.add(threading.current_thread())
        return eigenvalues.sum(-1) + torch.rand(())

    with nothing_registered(), finished("asked for"):
        register("draws", draws, reads=("eigenvalues",), parts=("query",))
        fit(tmp_path, Classifier(), GeometryMonitor(2, metrics=["draws", "subspace"]), steps=3)
        assert history_of(tmp_path)["draws.query"].shape[0] == 3
    assert threads == {threading.current_thread()}


def test_a_budget_knows_what_samples_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[float] = []
    flush = Delivery.flush

    def notes(self: Delivery) -> None:
        flush(self)
        costs.append(self.state.cost)

    monkeypatch.setattr(PendingSample, "wait", lambda self: 100.0)
    monkeypatch.setattr(Delivery, "flush", notes)
    with finished("asked for"):
        fit(tmp_path, Classifier(), GeometryMonitor(max_overhead=0.5, metrics="entropy"), steps=20)
    assert round(costs[-1]) == 200
    history = history_of(tmp_path)
    assert history.steps.tolist() == [0, 20]  # one of 100 seconds leaves none in its half for a second one
    assert history.metadata["cost_seconds"].round().tolist() == [100.0, 100.0]
