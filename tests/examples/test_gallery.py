"""The gallery: the script that makes its pictures still runs, small, and makes those that the guide shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures" / "gallery"

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_the_script_makes_every_picture(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "tests" / "programs" / "gallery.py"),
        "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "pictures"), "--steps", "8",
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "WANDB_API_KEY": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("GeometryMonitor: found BertForSequenceClassification") == 4
    made = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert made == {path.name for path in PICTURES.iterdir()}


def test_the_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PICTURES.iterdir()}
    assert {name: size for name, size in sizes.items() if size > 100_000} == {}
    assert sum(sizes.values()) < 1_500_000
