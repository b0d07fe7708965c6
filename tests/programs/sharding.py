"""All small fits whose models are split over processes; a program for each process, as :mod:`programs.ranks`.

``python -m programs.sharding <directory> <scenario>...``.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from programs import ranks, sharded_loops, sharded_ranks, split_heads

SCENARIOS = sharded_ranks.SCENARIOS | sharded_loops.SCENARIOS | split_heads.SCENARIOS


def main() -> None:
    """A process with the environment of its rank."""
    ranks.SCENARIOS = SCENARIOS
    ranks.main()


def run(scenario: str, directory: Path) -> dict[str, Any]:
    """Run one scenario on this rank."""
    torch.manual_seed(0)
    return SCENARIOS[scenario](directory / scenario)


def start(directory: Path, world: int, scenarios: list[str]) -> None:
    """Run scenarios in several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "programs.sharding", str(directory), *scenarios]
    processes = []
    for rank in range(world):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        with (directory / f"output.{rank}").open("wb") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * world, "\n".join(path.read_text()[-3000:] for path in directory.glob("output.*"))


def results(directory: Path, scenario: str) -> list[dict[str, Any]]:
    """What each rank made of a scenario."""
    paths = sorted(directory.glob(f"{scenario}.*.pickle"))
    return [pickle.loads(path.read_bytes()) for path in paths]


if __name__ == "__main__":
    main()
