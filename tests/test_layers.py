"""Rooms import in one direction, without circles: the contracts of pyproject.toml, and that they can fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a checkout, which need not be the installed one."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("utils/formatting", "import lightning_geo.metrics.spec", "A room imports only from rooms below it"),
        (
            "kernels/masks",
            "def f(): from lightning_geo.functional import cone",
            "A room imports only from rooms below it",
        ),
        ("dashboard/metadata", "import lightning_geo.report.style", "The dashboard reads files alone"),
        ("storage/stacking", "def f(): import lightning_geo.storage.history", "No circle"),
        ("utils/colours", "import lightning_geo", "A room imports only from rooms below it"),
    ],
)
def test_a_contract_can_fail(tmp_path: Path, module: str, line: str, said: str) -> None:
    shutil.copytree(ROOT / "lightning_geo", tmp_path / "lightning_geo")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "lightning_geo" / f"{module}.py").open("a") as file:
        file.write(f"\n\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert re.search(rf"{said}.* BROKEN", done.stdout)


def test_the_package_shows_rooms_alone() -> None:
    files = {path.name for path in (ROOT / "lightning_geo").iterdir() if path.is_file()}
    assert files == {"__init__.py", "_version.py", "py.typed"}
