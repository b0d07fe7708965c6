"""Runs the examples as a user does: as programs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forks import Forks

ROOT = Path(__file__).parents[2]
ACCURACY = re.compile(r"^Validation accuracy: ([01]\.\d{3}) on (\d+) examples never trained on$", re.M)

Run = Callable[..., str]


def environment() -> dict[str, str]:
    # this checkout, installed or not; nothing may be downloaded, and there is no account to log in to
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WANDB_API_KEY": "",
    }


@pytest.fixture
def run(tmp_path: Path, forks: Forks) -> Run:
    """``run("finetune_vit.py", "--max-steps", 3)``: what it printed; its runs are in ``tmp_path``.

    With ``alone=True`` in an interpreter of its own, which has imported nothing before.
    """

    def run(script: str, *options: object, alone: bool = False) -> str:
        command = [*map(str, (ROOT / "examples" / script, *options, "--output", tmp_path))]
        [status], [stdout], [stderr] = forks.run(
            command, folder=tmp_path, environments=[environment()], alone=alone
        )
        assert status == 0, stdout + stderr
        return stdout

    return run


@pytest.fixture
def accuracy() -> Callable[[str], tuple[float, int]]:
    """Reads the accuracy and the number of validation examples out of what an example printed."""

    def accuracy(printed: str) -> tuple[float, int]:
        [(value, examples)] = ACCURACY.findall(printed)
        return float(value), int(examples)

    return accuracy
