"""Two processes in each loop but Lightning's: one record, that of one process with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_geo import GeometryHistory, load_history
from programs import loop_ranks

LOOPS = ["plain", "fabric", "accelerate", "transformers"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def together(directory: Path, name: str) -> None:
    """Run both processes."""
    shared = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        "NODE_RANK": "0", "GROUP_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "programs.loop_ranks", str(directory), name]
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **output)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(text[-3000:] for text in said)


def record(directory: Path) -> GeometryHistory:
    """The one record below a directory."""
    files = list(directory.rglob("events.out.tfevents.*"))
    (folder,) = {path.parent for path in files}
    return load_history(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_two_processes_record_what_one_does(name: str, tmp_path: Path) -> None:
    loop_ranks.run(tmp_path / "one", name)
    together(tmp_path / "two", name)
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one.steps.tolist() == two.steps.tolist() == [0, 2, 3]
    assert {*one.metadata["probe_fingerprint"]} == {*two.metadata["probe_fingerprint"]}
    assert set(one) == set(two)
    alike = slice(1 if name == "transformers" else None)  # it trains on other batches with two processes
    for key in one:
        np.testing.assert_allclose(two[key][alike], one[key][alike], rtol=1e-4, atol=1e-4, err_msg=key)
