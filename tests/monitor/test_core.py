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


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Which packages a fresh interpreter has loaded after each of some statements, one after the other.

    The core comes first: what it loaded would be found after each statement.
    """
    core = ", ".join(f"lightning_geo.monitor.{name}" for name in CORE if name != "__init__")
    statements = {
        "the core": f"import {core}",
        "a loop": "from lightning_geo import watch",
        "transformers": "from transformers import Trainer\nfrom lightning_geo import GeometryCallback",
        "Lightning": "from lightning_geo import GeometryMonitor",
    }
    found = f"print(*(name for name in {LIGHTNING + OTHERS!r} if name in sys.modules))"
    code = "\n".join(["import sys", *(f"{statement}\n{found}" for statement in statements.values())])
    path = os.pathsep.join(filter(None, [str(ROOM.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return {name: set(line.split()) for name, line in zip(statements, done.stdout.split("\n"), strict=False)}


def test_the_files_of_trainers_are_there() -> None:
    assert {path.stem for path in ROOM.glob("*.py")} >= TRAINERS
    assert {"run", "samples", "host", "delivery", "alerting"} <= set(CORE)


@pytest.mark.slow
def test_the_core_loads_no_trainer(loaded: dict[str, set[str]]) -> None:
    assert loaded["the core"] == set()


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


@pytest.mark.slow
def test_a_user_of_another_trainer_loads_no_lightning(loaded: dict[str, set[str]]) -> None:
    assert loaded["a loop"] == set()
    assert {"transformers"} <= loaded["transformers"] <= set(OTHERS)
    # which shows that this can fail
    assert loaded["Lightning"] - set(OTHERS) == {"pytorch_lightning", "lightning_fabric"}


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
