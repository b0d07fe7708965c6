"""What users install has every file of the package: tables, templates and the dashboard's page, too."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_geo

ROOT = Path(lightning_geo.__file__).parents[1]

pytest.importorskip("hatchling", reason="the wheel is built with hatchling: pip install hatchling")


@pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the package is installed, not checked out"
)
def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lightning_geo/")}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lightning_geo").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped == there
    assert {"lightning_geo/metrics/METRICS.md", "lightning_geo/py.typed"} <= shipped
