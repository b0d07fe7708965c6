"""Runs the examples as a user does: as programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported what examples import, which takes longer than most of them run."""
    program = [sys.executable, str(ROOT / "tests" / "programs" / "example_runs.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=environment()) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """``run("finetune_vit.py", "--max-steps", 3)``: what it printed; its runs are in ``tmp_path``.

    With ``alone=True`` in an interpreter of its own, which has imported nothing before.
    """

    def run(script: str, *options: object, alone: bool = False) -> str:
        command = [*map(str, (ROOT / "examples" / script, *options, "--output", tmp_path))]
        if alone or not hasattr(os, "fork"):
            done = subprocess.run(
                [sys.executable, *command], env=environment(), capture_output=True, text=True, cwd=tmp_path
            )
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        else:
            process = request.getfixturevalue("forks")
            process.stdin.write(json.dumps({"command": command, "folder": str(tmp_path)}) + "\n")
            process.stdin.flush()
            status, stdout, stderr = json.loads(process.stdout.readline())
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
