"""The monitor belongs to ``pytorch_lightning``, to ``lightning.pytorch``, or both: whichever is imported."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_geo import GeometryMonitor, load_history
from programs import packages
from support.lit import Classifier, fit

Elsewhere: TypeAlias = Callable[[str], dict[str, Any]]

#: Every argument of the monitor, as a YAML file may give it, but those that exclude others and ``baseline``.
ARGUMENTS: dict[str, Any] = {
    "every_n_steps": 2, "metrics": ["entropy", "metric:cone", "drift", "importance"],
    "layers": "layers", "rank": 2,
    "source": "probe", "probe": {"class_path": "programs.packages.Inputs"}, "probe_size": 2,
    "probe_tokens": 64, "probe_in_checkpoint": False, "patterns": False, "module": "encoder",
    "special_token_ids": [0, 1],
    "max_queries": 4,
    "weights_every_n_samples": 2, "importance_every_n_samples": 3, "loss_fn": "programs.packages.loss",
    "scalars": "head", "strict": True, "name": "yaml",
    "alerts": {
        "class_path": "lightning_geo.Alerts", "init_args": {"silence": ["departure"], "stop": "critical"}
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """What functions of ``programs.packages`` returned where nothing was imported before."""
    directory, functions = tmp_path_factory.mktemp("elsewhere"), ["neither", "both", "geometry_first"]
    (directory / "monitor.pickle").write_bytes(pickle.dumps(GeometryMonitor(2)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for group in [functions] if hasattr(os, "fork") else [[function] for function in functions]:
        command = [sys.executable, "-m", "programs.packages", str(directory), *group]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return lambda function: json.loads((directory / f"{function}.json").read_text())  # type: ignore[no-any-return]


def entry(**arguments: Any) -> dict[str, Any]:
    """A monitor in a YAML file."""
    return {"class_path": "lightning_geo.GeometryMonitor", "init_args": arguments}


def test_the_signature_is_that_of_init() -> None:
    parameters = list(inspect.signature(GeometryMonitor).parameters)
    assert parameters == [
        name for name in inspect.signature(GeometryMonitor.__init__).parameters if name != "self"
    ]
    assert set(parameters) == {*ARGUMENTS, "schedule", "max_overhead", "baseline"}


@pytest.mark.parametrize(
    "wrap", [lambda monitor: monitor, lambda monitor: [monitor]], ids=["bare", "in a list"]
)
def test_a_trainer_takes_it(tmp_path: Path, wrap: Any) -> None:
    trainer = packages.fit("pytorch_lightning", tmp_path, wrap(GeometryMonitor(2)))
    assert packages.samples(trainer) == [4]


@pytest.mark.parametrize(
    "wrap", [lambda monitor: monitor, lambda monitor: [monitor]], ids=["bare", "in a list"]
)
def test_a_command_line_takes_every_argument(tmp_path: Path, wrap: Any) -> None:
    packages.fit("pytorch_lightning", tmp_path / "baseline", GeometryMonitor(2, rank=2, module="encoder"))
    baseline = tmp_path / "baseline" / "lightning_geo" / "version_0"
    given = wrap(entry(**ARGUMENTS, baseline=str(baseline)))
    trainer = packages.command_line("pytorch_lightning", tmp_path, given)
    (monitor,) = (c for c in trainer.callbacks if isinstance(c, GeometryMonitor))
    history = load_history(tmp_path / "lightning_geo" / "version_0", "yaml")
    assert history.steps.tolist() == [0, 2, 4]
    assert {"entropy", "cone", "drift", "importance"} <= {key.partition(".")[0] for key in history}
    assert "yaml/entropy" in trainer.callback_metrics
    assert monitor.state_dict()["probe"] is None


@pytest.mark.parametrize(
    "schedule",
    [
        "programs.packages.every_third",
        {"class_path": "lightning_geo.monitor.schedule.Schedule", "init_args": {"every_n_steps": 3}},
    ],
    ids=["a function", "an object"],
)
def test_a_command_line_takes_a_schedule(tmp_path: Path, schedule: Any) -> None:
    packages.command_line("pytorch_lightning", tmp_path, entry(schedule=schedule))
    assert load_history(tmp_path / "lightning_geo" / "version_0").steps.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("every_n_steps", "often", "every_n_steps"),
        ("every_n_steps", 0, "at least 1"),
        ("source", "guess", "source"),
        ("metrics", ["entropi"], "entropy"),
        ("every", 5, "every"),
    ],
)
def test_a_command_line_refuses_what_does_not_fit(
    tmp_path: Path, argument: str, value: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as raised:
        packages.command_line("pytorch_lightning", tmp_path, entry(**{argument: value}))
    assert said in capsys.readouterr().err + str(raised.value)


@pytest.mark.slow
def test_all_loggers_hold_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = packages.all_loggers("pytorch_lightning", tmp_path)
    monitor = GeometryMonitor(2)
    trainer = packages.fit("pytorch_lightning", tmp_path, monitor, logger=loggers, log_every_n_steps=1)
    values = packages.where(trainer)
    history = load_history(trainer.loggers[2].log_dir)
    for found in values.values():
        assert found == pytest.approx(history["entropy"].mean((1, 2)).tolist())


@pytest.mark.slow
@pytest.mark.skipif(
    pl.__version__.startswith("2.4"), reason="Lightning 2.4 takes no callback of its other package"
)
def test_a_monitor_before_any_package_is_imported_loads_one(elsewhere: Elsewhere) -> None:
    assert elsewhere("neither") == {
        "unpickled": ["pytorch_lightning"],
        "pytorch_lightning": True,
        "lightning.pytorch": False,
        "fit pytorch_lightning": [4],
        "fit lightning.pytorch": [4],
    }


@pytest.mark.slow
def test_a_monitor_after_both_packages_were_imported_belongs_to_both(elsewhere: Elsewhere) -> None:
    assert elsewhere("both") == {"callback": [True, True], "bare": [[4], [4]]}


@pytest.mark.slow
def test_lightning_alone(elsewhere: Elsewhere) -> None:
    """``lightning_geo`` imported first; the other package is never loaded."""
    result = elsewhere("geometry_first")
    assert result.pop("before") == []
    assert result.pop("after") == ["lightning.pytorch"]
    values = result.pop("where")
    assert len(values["tensorboard"]) == 3
    for found in values.values():
        assert found == pytest.approx(values["tensorboard"])
    assert result == {"cli": [[4], [4]], "bare": [4], "list": [4]}


def test_in_the_state_and_out_of_it(tmp_path: Path) -> None:
    """Deep copies, as sweeps make of callbacks, share nothing."""
    import copy

    first = GeometryMonitor(2)
    second = copy.deepcopy(first)
    fit(tmp_path, Classifier(layers=1), first, logger=TensorBoardLogger(tmp_path))
    assert isinstance(second, pl.Callback)
    assert second.last_record is None
