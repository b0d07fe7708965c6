"""All small fits whose models are split over processes; a program for each process, as :mod:`programs.ranks`.

``python -m programs.sharding <directory> <scenario>...``.
"""

from __future__ import annotations

from functools import partial

from programs import ranks, sharded_loops, sharded_ranks, split_heads

SCENARIOS = sharded_ranks.SCENARIOS | sharded_loops.SCENARIOS | split_heads.SCENARIOS


def main() -> None:
    """A process with the environment of its rank."""
    ranks.main(SCENARIOS)


run = partial(ranks.run, scenarios=SCENARIOS)

if __name__ == "__main__":
    main()
