"""The core of the monitor knows no trainer; each trainer has files of its own, and loads no other."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo import GeometryCallback, GeometryMonitor, watch
from lightning_geo.monitor.arguments import MonitorArguments

ROOM = Path(lightning_geo.__file__).parent / "monitor"
#: What belongs to one trainer.
TRAINERS = {
    "_lightning", "axolotl_plugin", "hooks", "lightning", "lightning_host", "loop_host", "plain_loop",
    "runs_by_trainer", "trainer_checkpoint", "trainer_guard", "trainer_host", "transformers_trainer",
}  # fmt: skip
CORE = sorted(path.stem for path in ROOM.glob("*.py") if path.stem not in TRAINERS)
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
OTHERS = ("transformers", "accelerate", "trl")


def loaded_by(statement: str, packages: tuple[str, ...]) -> set[str]:
    """Those of some packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {packages!r} if name in sys.modules))"
    path = os.pathsep.join(filter(None, [str(ROOM.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_the_files_of_trainers_are_there() -> None:
    assert {path.stem for path in ROOM.glob("*.py")} >= TRAINERS
    assert {"run", "samples", "host", "delivery", "alerting"} <= set(CORE)


def test_the_core_loads_no_trainer() -> None:
    modules = ", ".join(f"lightning_geo.monitor.{name}" for name in CORE if name != "__init__")
    assert loaded_by(f"import {modules}", LIGHTNING + OTHERS) == set()


def imports_and_names(source: str) -> set[str]:
    """Modules that a file imports, and its names and attributes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


@pytest.mark.parametrize("name", CORE)
def test_the_core_touches_no_trainer(name: str) -> None:
    found = imports_and_names((ROOM / f"{name}.py").read_text(encoding="utf-8"))
    of_trainers = {f"lightning_geo.monitor.{trainer}" for trainer in TRAINERS}
    assert found & (of_trainers | {"trainer", "pl_module", "lightning_geo.utils._lightning"}) <= (
        {"lightning_geo.utils._lightning"} if name == "wrappers" else set()
    )


def test_the_test_above_can_fail() -> None:
    assert "trainer" in imports_and_names("def f(trainer): trainer.step")
    assert "lightning_geo.monitor.hooks" in imports_and_names("from lightning_geo.monitor.hooks import x")


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("from transformers import Trainer\nfrom lightning_geo import GeometryCallback", set()),
        ("from lightning_geo import watch", set()),
        ("from lightning_geo import GeometryMonitor", {"pytorch_lightning", "lightning_fabric"}),
    ],
    ids=["transformers", "a loop", "Lightning, which shows that this can fail"],
)
def test_a_user_of_another_trainer_loads_no_lightning(statement: str, loaded: set[str]) -> None:
    assert loaded_by(statement, LIGHTNING) == loaded


@pytest.mark.parametrize("taken_by", [GeometryMonitor, GeometryCallback, watch])
def test_all_take_the_same_arguments(taken_by: object) -> None:
    expected = inspect.signature(MonitorArguments).parameters
    own = {"model", "logdir", "logger"} if taken_by is watch else set()
    theirs = inspect.signature(taken_by).parameters  # type: ignore[arg-type]
    assert {name: p.default for name, p in theirs.items() if name not in own} == {
        name: p.default for name, p in expected.items()
    }


def test_they_are_checked_by_all() -> None:
    import torch

    for make in (GeometryMonitor, GeometryCallback, lambda **given: watch(torch.nn.Linear(1, 1), **given)):
        with pytest.raises(ValueError, match="`every_n_steps` to be an integer of at least 1"):
            make(every_n_steps=0)
        with pytest.raises(TypeError, match="every"):
            make(every=5)
