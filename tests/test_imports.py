"""What importing costs: reading a run, or TensorBoard's start, must not load torch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record

HEAVY = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "transformers", "wandb")
LIGHT = [
    "lightning_geo",
    "lightning_geo.metrics.spec",
    "lightning_geo.metrics.catalog",
    "lightning_geo.dashboard",
    "lightning_geo.dashboard.loader",
    "lightning_geo.dashboard.metadata",
    "lightning_geo.dashboard.plugin",
    "lightning_geo.dashboard.samples",
    "lightning_geo.analysis.alignment",
    "lightning_geo.cli.main",
    "lightning_geo.cli",
    "lightning_geo.cli.compare",
    "lightning_geo.cli.groups",
    "lightning_geo.cli.heads",
    "lightning_geo.cli.show",
    "lightning_geo.cli.tail",
    "lightning_geo.analysis.comparison",
    "lightning_geo.report.figures",
    "lightning_geo.analysis.changes",
    "lightning_geo.storage.follow",
    "lightning_geo.analysis.gate_changes",
    "lightning_geo.storage.history",
    "lightning_geo.analysis.pruning",
    "lightning_geo.report.page",
    "lightning_geo.report.style",
    "lightning_geo.analysis.runs",
    "lightning_geo.analysis.seed_groups",
    "lightning_geo.storage.tables",
    "lightning_geo.utils.formatting",
    "lightning_geo.loggers",
    "lightning_geo.storage.events",
    "lightning_geo.storage.tfrecord",
    "lightning_geo.loggers.custom_scalars",
    "lightning_geo.loggers.pictures",
    "lightning_geo.storage.record_file",
    "lightning_geo.loggers.scalars",
    "lightning_geo.loggers.tags",
    "lightning_geo.loggers.tensorboard",
    "lightning_geo.loggers.wandb",
]


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    root = str(Path(lightning_geo.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_reading_and_writing_runs_loads_nothing_heavy() -> None:
    names = "GeometryHistory, GeometryRecord, load_history"
    assert loaded_by(f"import {', '.join(LIGHT)}\nfrom lightning_geo import {names}") == set()


def test_the_list_of_light_modules_is_complete() -> None:
    folder = Path(lightning_geo.__file__).parent
    for package in ("sinks", "commands", "dashboard"):
        modules = {f"lightning_geo.{package}.{path.stem}" for path in (folder / package).glob("[!_]*.py")}
        # to explain a prediction is to run a model
        assert modules <= {*LIGHT, "lightning_geo.cli.explain"}


def test_the_commands_load_nothing_heavy_when_they_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sink = RecordFile(tmp_path / name, "geometry")
        for step in (0, 50):
            sink.write(make_record(step))
        sink.close()
    for command in (
        ["compare", str(tmp_path)],
        ["compare", "--group", str(tmp_path)],
        ["report", str(tmp_path), "-o", str(tmp_path / "report.html")],
        ["show", str(tmp_path)],
    ):
        run = (
            "import io, sys; from lightning_geo.cli import main; out, sys.stdout = sys.stdout, io.StringIO()"
        )
        assert loaded_by(f"{run}; assert main.main({command!r}) == 0; sys.stdout = o") == set()


@pytest.mark.parametrize(
    ("statement", "package"),
    [("import torch", "torch"), ("from lightning_geo import functional", "torch")],
)
def test_the_test_above_can_fail(statement: str, package: str) -> None:
    assert package in loaded_by(statement)


@pytest.mark.parametrize("name", lightning_geo.__all__)
def test_public_names_resolve_and_are_listed(name: str) -> None:
    assert name in dir(lightning_geo)
    assert getattr(lightning_geo, name).__name__ in (name, f"lightning_geo.{name}")


def test_measure_is_the_function_also_after_its_module_was_imported() -> None:
    module = importlib.import_module("lightning_geo.measurement.sample")
    assert lightning_geo.measure is module.measure
    assert callable(lightning_geo.measure)
    from lightning_geo import measure

    assert measure is module.measure


def test_the_monitor_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # its module decides anew which Lightning it belongs to
    module = importlib.import_module("lightning_geo.monitor.lightning")
    assert lightning_geo.GeometryMonitor is module.GeometryMonitor
    monkeypatch.setattr(module, "GeometryMonitor", int)
    assert lightning_geo.GeometryMonitor is int


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GeometryMonitors'"):
        lightning_geo.GeometryMonitors  # noqa: B018
    assert lightning_geo.__version__.count(".") == 2
