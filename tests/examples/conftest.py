"""Runs the examples as a user does: as programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACCURACY = re.compile(r"^Validation accuracy: ([01]\.\d{3}) on (\d+) examples never trained on$", re.M)

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("finetune_vit.py", "--max-steps", 3)``: what it printed; its runs are in ``tmp_path``."""

    def run(script: str, *options: object) -> str:
        command = map(str, (sys.executable, ROOT / "examples" / script, *options, "--output", tmp_path))
        # this checkout, installed or not; nothing may be downloaded, and there is no account to log in to
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        settings = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_API_KEY": ""}
        environment = {**os.environ, **settings}
        done = subprocess.run([*command], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def accuracy() -> Callable[[str], tuple[float, int]]:
    """Reads the accuracy and the number of validation examples out of what an example printed."""

    def accuracy(printed: str) -> tuple[float, int]:
        [(value, examples)] = ACCURACY.findall(printed)
        return float(value), int(examples)

    return accuracy
