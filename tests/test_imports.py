"""What importing costs: reading a run, or TensorBoard's start, must not load torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record

HEAVY = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "transformers", "wandb")
#: Rooms that load nothing heavy, but for the modules below.
LIGHT_ROOMS = ("analysis", "cli", "dashboard", "loggers", "metrics", "report", "storage", "utils")
#: What computes with tensors, runs a model, or asks for this process's rank.
HEAVY_MODULES = {
    "lightning_geo.loggers.logger_sinks",
    "lightning_geo.utils._deepspeed",
    "lightning_geo.utils._torch",
    "lightning_geo.utils.background",
    "lightning_geo.utils.cuda_graphs",
    "lightning_geo.utils.device_copy",
    "lightning_geo.utils.device_time",
    "lightning_geo.utils.ranks",
    "lightning_geo.utils.warn_once",
}
FOLDER = Path(lightning_geo.__file__).parent
LIGHT = [
    module
    for room in LIGHT_ROOMS
    for path in sorted((FOLDER / room).rglob("*.py"))
    if (module := ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__"))
    not in HEAVY_MODULES
    and module.rpartition(".")[0] not in HEAVY_MODULES
]


def loaded_by(statement: str, packages: tuple[str, ...] = HEAVY) -> set[str]:
    """Those of some packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {packages!r} if name in sys.modules))"
    root = str(Path(lightning_geo.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_reading_and_writing_runs_loads_nothing_heavy() -> None:
    names = "GeometryHistory, GeometryRecord, load_history"
    assert loaded_by(f"import {', '.join(LIGHT)}\nfrom lightning_geo import {names}") == set()


def test_the_modules_named_heavy_are_there() -> None:
    paths = [FOLDER.parent / module.replace(".", "/") for module in HEAVY_MODULES]
    assert all(path.with_suffix(".py").exists() or path.is_dir() for path in paths)


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
        run = "import io, sys; from lightning_geo.cli import main; o, sys.stdout = sys.stdout, io.StringIO()"
        assert loaded_by(f"{run}; assert main.main({command!r}) == 0; sys.stdout = o") == set()


def test_only_a_page_that_is_written_loads_the_templates(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.write(make_record(0))
    sink.close()
    run = "import io, sys; from lightning_geo.cli import main; o, sys.stdout = sys.stdout, io.StringIO()"
    show, report = ["show", str(tmp_path)], ["report", str(tmp_path), "-o", str(tmp_path / "report.html")]
    for command, expected in ((show, set()), (report, {"jinja2"})):
        statement = f"{run}; assert main.main({command!r}) == 0; sys.stdout = o"
        assert loaded_by(statement, ("jinja2",)) == expected


def test_only_a_drawing_loads_what_draws(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.write(make_record(0))
    sink.close()
    read = f"from lightning_geo import load_history; history = load_history({str(tmp_path)!r}); repr(history)"
    rooms = ("lightning_geo.report", "jinja2", "torch")
    assert loaded_by(read, rooms) == set()
    assert loaded_by(f"{read}; history._repr_html_()", rooms) == {"lightning_geo.report", "jinja2"}


@pytest.mark.parametrize(
    ("statement", "package"),
    [("import torch", "torch"), ("from lightning_geo import functional", "torch")],
)
def test_the_test_above_can_fail(statement: str, package: str) -> None:
    assert package in loaded_by(statement)


@pytest.mark.parametrize("name", lightning_geo.__all__)
def test_public_names_resolve_and_are_listed(name: str) -> None:
    assert name in dir(lightning_geo)
    found = getattr(lightning_geo, name)
    assert name == "__version__" or found.__name__ in (name, f"lightning_geo.{name}")


def test_only_public_names_are_listed() -> None:
    assert dir(lightning_geo) == sorted(lightning_geo.__all__)


def test_no_module_is_named_like_a_public_function() -> None:
    public = {name for name in lightning_geo.__all__ if name != "functional"}
    assert not public & {path.stem for path in FOLDER.iterdir()}


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GeometryMonitors'"):
        lightning_geo.GeometryMonitors  # noqa: B018
    assert lightning_geo.__version__.count(".") == 2
