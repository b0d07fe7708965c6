"""Every benchmark, as tables: ``python tests/benchmarks``. Nothing else should run meanwhile."""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run those that this machine can."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--plot", help="picture of how the cost grows")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    import attention_cost
    import families_cost
    import sampled_step

    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    attention_cost.main(5 if args.quick else 15, args.plot)
    sampled_step.main(9 if args.quick else 25)
    families_cost.main(5 if args.quick else 15)


if __name__ == "__main__":
    main()
