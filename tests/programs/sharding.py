"""All small fits whose models are split over processes; a program for each process, as :mod:`programs.ranks`.

``python -m programs.sharding <directory> <scenario>...``.
"""

from __future__ import annotations

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


if __name__ == "__main__":
    main()
