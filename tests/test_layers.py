"""Rooms import in one direction, without circles, and no file or function is too long to be read at once."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The most lines of a file, by its kind, and of a function without its docstring.
LINES = {".py": 300, ".css": 300, ".js": 200}
LINES_OF_A_FUNCTION = 60
#: Files that are longer, each with the reason.
LONGER = {
    "tests/families/models.py": "one table, of models",
    "tests/kernels/cases.py": "one table, of attention calls",
}


def sources() -> list[Path]:
    """All files that are read as code."""
    rooms = (ROOT / room for room in ("lightning_geo", "tests", "examples"))
    return [path for room in rooms for path in sorted(room.rglob("*")) if path.suffix in LINES]


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


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources()}
    assert {".py", ".css", ".js"} == {path.suffix for path in lengths}
    too_long = {path.relative_to(ROOT).as_posix() for path, n in lengths.items() if n > LINES[path.suffix]}
    assert too_long == LONGER.keys()


def test_no_function_is_too_long_to_be_read_at_once() -> None:
    functions = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node
        for path in sources()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert functions
    too_long = {name: n for name, node in functions.items() if (n := lines_of(node)) > LINES_OF_A_FUNCTION}
    assert not too_long


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has without its docstring."""
    first, end = function.body[0], function.end_lineno or 0
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return end - function.lineno + 1 - docstring
