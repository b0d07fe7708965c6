"""What importing costs: reading a run, or TensorBoard's start, must not load torch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo.sinks.record_file import RecordFile
from sinks.records import make_record

HEAVY = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "transformers", "wandb")
LIGHT = [
    "lightning_geo",
    "lightning_geo.schema",
    "lightning_geo.catalog",
    "lightning_geo.dashboard",
    "lightning_geo.dashboard.loader",
    "lightning_geo.dashboard.metadata",
    "lightning_geo.dashboard.plugin",
    "lightning_geo.dashboard.samples",
    "lightning_geo.alignment",
    "lightning_geo.cli",
    "lightning_geo.commands",
    "lightning_geo.commands.compare",
    "lightning_geo.commands.groups",
    "lightning_geo.commands.heads",
    "lightning_geo.commands.show",
    "lightning_geo.commands.tail",
    "lightning_geo.compare",
    "lightning_geo.figures",
    "lightning_geo.findings",
    "lightning_geo.follow",
    "lightning_geo.gate_changes",
    "lightning_geo.history",
    "lightning_geo.pruning",
    "lightning_geo.report",
    "lightning_geo.report_style",
    "lightning_geo.runs",
    "lightning_geo.seeds",
    "lightning_geo.tables",
    "lightning_geo.text",
    "lightning_geo.sinks",
    "lightning_geo.sinks.events",
    "lightning_geo.sinks.frames",
    "lightning_geo.sinks.layout",
    "lightning_geo.sinks.pictures",
    "lightning_geo.sinks.record_file",
    "lightning_geo.sinks.scalars",
    "lightning_geo.sinks.tags",
    "lightning_geo.sinks.tensorboard",
    "lightning_geo.sinks.wandb",
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
        assert modules <= {*LIGHT, "lightning_geo.commands.explain"}


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
        assert loaded_by(f"{run}; assert main({command!r}) == 0; sys.stdout = out") == set()


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
    module = importlib.import_module("lightning_geo.measure")
    assert lightning_geo.measure is module.measure
    assert callable(lightning_geo.measure)
    from lightning_geo import measure

    assert measure is module.measure


def test_the_monitor_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # its module decides anew which Lightning it belongs to
    module = importlib.import_module("lightning_geo.monitor")
    assert lightning_geo.GeometryMonitor is module.GeometryMonitor
    monkeypatch.setattr(module, "GeometryMonitor", int)
    assert lightning_geo.GeometryMonitor is int


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GeometryMonitors'"):
        lightning_geo.GeometryMonitors  # noqa: B018
    assert lightning_geo.__version__.count(".") == 2
