"""Runs the examples as a user does: as programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCURACY = re.compile(r"^Validation accuracy: ([01]\.\d{3}) on (\d+) examples never trained on$", re.M)

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("finetune_vit.py", "--max-steps", 3)``: what it printed; its runs are in ``tmp_path``."""

    def run(script: str, *options: object) -> str:
        command = [sys.executable, str(EXAMPLES / script), *map(str, options), "--output", str(tmp_path)]
        # nothing may be downloaded, and no account is there to log in to
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_API_KEY": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
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
