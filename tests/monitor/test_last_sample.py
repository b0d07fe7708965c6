"""What other callbacks see of the monitor: metrics, and the last sample after they have ended."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    StochasticWeightAveraging,
)
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

from lightning_geo import GeometryMonitor, measure
from support.lit import Classifier, Lit, fit, loader, sequences, trainer, weight_averaging
from support.open_files import open_files
from support.same import steps_in


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
