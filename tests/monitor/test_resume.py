"""Runs that go on from a checkpoint, after an end of whatever kind, are those that were never interrupted."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_geo import GeometryHistory, GeometryMonitor, load_history
from programs.killed import STOPPED, session
from support.forks import Forks
from support.lit import Classifier, loader
from support.lit import trainer as fit_trainer

pytestmark = pytest.mark.slow

#: Steps of the samples of a run that was never interrupted, by scenario.
STEPS = {
    "default": [0, 33, 66, 99, STOPPED],  # step 99 is the last one before the checkpoint
    "early_stopping": [0, 40, 80, STOPPED],  # validation asks for the metric before there is a new sample
    "at_validation": [0, 33, 66, 99, STOPPED],  # the checkpoint is written inside a validation
    "unsaved": [0, 33, 66, 99, STOPPED],
    "manual": [*range(0, 2 * STOPPED, 33), 2 * STOPPED],  # two batches an update, and a batch is a step
    "batch": [0, 40, 80],
    "csv": [0, 33, 66, 99, STOPPED],  # the record has files of its own
}
DIFFERS = "the checkpoint's probe differs from this run's, so that drift starts anew"

#: Resumed from a checkpoint at a batch's end, Lightning 2.4 logs at steps that are one too small.
LAGS = pl.__version__.startswith("2.4")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Directories of runs that were killed at step 160, by scenario."""
    directory = tmp_path_factory.mktemp("killed")
    command = ["-m", "programs.killed", str(directory), *STEPS, "unsaved_other", "two"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    [status], _, [stderr] = forks.run(command, folder=directory, environments=[environment])
    assert status == 0, stderr[-3000:]
    return directory


@pytest.fixture
def run(killed: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one of them, for a test to go on from."""
    return Path(shutil.copytree(killed / request.param, tmp_path / "run"))


def resume(directory: Path, scenario: str, **options: Any) -> tuple[Any, list[GeometryMonitor], list[str]]:
    """Go on from step 100 to step 120; the Trainer, the monitors and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, monitors = session(directory, scenario, steps=STOPPED, resume=True, **options)
    return trainer, monitors, [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]


def assert_same(history: GeometryHistory, expected: GeometryHistory) -> None:
    assert history.steps.tolist() == expected.steps.tolist()
    assert history.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(history[key], expected[key], err_msg=key)
    for field in ("probe_fingerprint", "epoch", "batches_seen"):
        np.testing.assert_array_equal(history.metadata[field], expected.metadata[field], err_msg=field)
    for sample in range(len(expected)):
        ours, theirs = history.record(sample).matrices, expected.record(sample).matrices
        assert {stack: set(found) for stack, found in ours.items()} == {s: set(f) for s, f in theirs.items()}


def scalars(directory: Path, tag: str) -> list[int]:
    """Steps at which TensorBoard has a scalar, those of what was replaced among them."""
    events = EventAccumulator(str(directory), {"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)]


@pytest.mark.parametrize(("run", "scenario"), [(s, s) for s in STEPS], indirect=["run"])
def test_killed_at_160_resumed_at_100_stopped_at_120(run: Path, scenario: str, tmp_path: Path) -> None:
    if LAGS and scenario == "manual":
        pytest.skip("a step is a batch here, of which Lightning 2.4 counts one too few after a resume")
    assert load_history(run / "version_0").steps[-1] >= STOPPED  # what is to go
    losses = [] if scenario == "csv" else scalars(run / "version_0", "loss")
    trainer, _, messages = resume(run, scenario)
    assert messages == []
    session(tmp_path / "whole", scenario, steps=STOPPED)
    history, expected = load_history(run / "version_0"), load_history(tmp_path / "whole" / "version_0")
    assert expected.steps.tolist() == STEPS[scenario]
    assert_same(history, expected)
    if scenario != "csv":
        batches = 2 * STOPPED if scenario == "manual" else STOPPED
        assert set(STEPS[scenario]) <= set(scalars(run / "version_0", "geometry/entropy"))
        # nothing that the user logged before is void
        assert losses[-1] > batches
        lag = int(LAGS and scenario != "at_validation")
        added = range(batches * 100 // STOPPED - lag, batches - lag)
        assert scalars(run / "version_0", "loss") == [*losses, *added]
    for name, value in history.record(-1).summaries().items():
        assert float(trainer.callback_metrics[f"geometry/{name}"]) == pytest.approx(value)


@pytest.mark.parametrize("run", ["default"], indirect=True)
def test_in_a_new_version_directory(run: Path, tmp_path: Path) -> None:
    before = load_history(run / "version_0")
    resume(run, "default", version=1)
    session(tmp_path / "whole", "default", steps=STOPPED)
    expected = load_history(tmp_path / "whole" / "version_0")
    after = load_history(run / "version_1")
    assert load_history(run / "version_0").steps.tolist() == before.steps.tolist()
    assert after.steps.tolist() == [STOPPED]
    for key in expected:
        np.testing.assert_array_equal(after[key][-1], expected[key][-1], err_msg=key)


@pytest.mark.parametrize("run", ["unsaved_other"], indirect=True)
def test_drift_starts_anew_where_the_recorded_probe_is_another(run: Path) -> None:
    """The first session had it from the sanity check, which a resumed run leaves out."""
    *_, messages = resume(run, "unsaved_other")
    assert [DIFFERS in text for text in messages] == [True]
    history = load_history(run / "version_0")
    assert history.steps.tolist() == [0, 33, 66, 99, STOPPED]
    assert len(set(history.metadata["probe_fingerprint"])) == 2
    assert (history["drift"][1:-1] > 0).all()
    assert np.nanmax(history["drift"][-1]) == 0.0
    assert np.isnan(history["velocity"][-1]).all()
    assert set(history.matrices("basis.query")) == {0, STOPPED}


@pytest.mark.parametrize(("run", "scenario"), [("default", "default"), ("two", "two")], indirect=["run"])
def test_checkpoints_load_in_the_weights_only_way(run: Path, scenario: str) -> None:
    path = run / "checkpoints" / "step=100.ckpt"
    state = torch.load(path, weights_only=True)
    held = [key for key in state["callbacks"] if key.startswith("GeometryMonitor")]
    assert len(held) == (2 if scenario == "two" else 1)
    trainer, _ = session(run, scenario, steps=101, checkpoint=path, weights_only=True, version=1)
    assert trainer.global_step == 101


@pytest.mark.parametrize("run", ["two"], indirect=True)
def test_two_monitors_keep_apart(run: Path, tmp_path: Path) -> None:
    _, monitors, messages = resume(run, "two")
    assert messages == []
    assert len({monitor.state_key for monitor in monitors}) == 2
    session(tmp_path / "whole", "two", steps=STOPPED)
    for name, steps in (("geometry", [0, 33, 66, 99, STOPPED]), ("slow", [0, 70])):
        history = load_history(run / "version_0", name)
        assert history.steps.tolist() == steps
        assert_same(history, load_history(tmp_path / "whole" / "version_0", name))
    assert {0, 33, 66, 99, STOPPED} <= set(scalars(run / "version_0", "geometry/entropy"))


@pytest.mark.parametrize(
    ("scenario", "when"),
    [
        ("default", "at its last step"),
        ("default", "afterwards"),
        ("default", "by the same Trainer"),
        ("two", "afterwards"),  # of the other monitor no sample is due at the end
    ],
)
def test_a_finished_run_goes_on(tmp_path: Path, scenario: str, when: str) -> None:
    """To step 50, where no sample is due, and on to 70.

    The sample of its final weights stays where the checkpoint knows it.
    """
    trainer, _ = session(tmp_path, scenario, steps=50, save_every=50)
    path = tmp_path / "checkpoints" / "step=50.ckpt"
    if when == "by the same Trainer":
        trainer.fit_loop.epoch_loop.max_steps = 70
        trainer.fit(trainer.lightning_module, trainer.train_dataloader, trainer.val_dataloaders)
    else:
        if when == "afterwards":
            path = tmp_path / "after.ckpt"
            trainer.save_checkpoint(path)
        session(tmp_path, scenario, steps=70, checkpoint=path)
    kept = [] if when == "at its last step" else [50]
    expected = [0, 33, *kept, 66, 70]
    assert load_history(tmp_path / "version_0", "geometry").steps.tolist() == expected


def test_a_checkpoint_holds_plain_containers_and_tensors_alone(tmp_path: Path) -> None:
    _, (monitor,) = session(tmp_path, "default", steps=2)

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert type(value) is dict
            assert all(type(key) is str for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor)

    state = monitor.state_dict()
    check(state)
    assert state["probe"] is not None


class Counting(torch.nn.Module):
    """Attention of what grows with each call, as a buffer of the model's counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        q, k, v = (self.qkv(x) * (1 + self.calls)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return attended


class Counts(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Counting()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_sample_after_a_resume_is_of_its_own_step(tmp_path: Path) -> None:
    """The first step's state, in which a resumed run records its probe anew, is not the next sample's."""
    torch.manual_seed(0)
    batches = torch.randn(1, 2, 5, 8)

    def made() -> list[GeometryMonitor]:
        recorded = GeometryMonitor(2, metrics=["entropy"], probe_in_checkpoint=False, name="recorded")
        return [recorded, GeometryMonitor(2, metrics=["entropy"], probe=batches[0], name="given")]

    module = Counts()
    first = fit_trainer(tmp_path / "first", *made(), steps=2)
    first.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    first.save_checkpoint(tmp_path / "end.ckpt")
    monitors = made()
    second = fit_trainer(tmp_path / "second", *monitors, steps=3)
    second.fit(Counts(), DataLoader(batches, batch_size=None), ckpt_path=tmp_path / "end.ckpt")  # type: ignore[arg-type]
    ours, expected = (monitor.last_record for monitor in monitors)
    assert ours is not None
    assert expected is not None
    assert ours.step == expected.step == 3
    np.testing.assert_allclose(ours["entropy"], expected["entropy"], rtol=1e-6)


class Late(SingleDeviceStrategy):
    """Restores checkpoints after ``on_fit_start``, as strategies that shard the model do."""

    restore_checkpoint_after_setup = True  # type: ignore[assignment]


def test_a_strategy_that_restores_late_goes_on_as_any_other(tmp_path: Path) -> None:
    module, metrics = Classifier(), ["entropy", "drift", "weight_drift"]
    first = fit_trainer(tmp_path, GeometryMonitor(1, metrics=metrics, weights_every_n_samples=1), steps=3)
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "end.ckpt")
    records = []
    for strategy in (SingleDeviceStrategy, Late):
        monitor = GeometryMonitor(1, metrics=metrics, weights_every_n_samples=1, strict=True)
        options = {"strategy": strategy(torch.device("cpu")), "accelerator": "auto"}
        resumed = fit_trainer(tmp_path / strategy.__name__, monitor, steps=5, **options)
        resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "end.ckpt")
        assert monitor.last_record is not None
        records.append(monitor.last_record)
    expected, late = records
    assert expected["drift.query"].max() > 0
    assert expected["weight_drift.query"].min() > 0
    for name in expected:
        np.testing.assert_array_equal(late[name], expected[name])
