"""Everything that needs a GPU, in one command: ``python tests/benchmarks/on_gpu.py --output DIR``.

Each stage runs in a process of its own and writes ``DIR/NN_stage.md``: what fails costs its own table alone.
All stages prepare side by side, which compiles the kernels on all cores; once all are ready, they measure one
after the other. Last come the tests of ``tests/gpu`` in as many processes as there are cores.

``--tiny`` runs every line of it with small sizes on a CPU, in Triton's interpreter: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

TESTS = Path(__file__).parents[1]

#: Modules of ``on_device``, in the order in which they measure.
STAGES = (
    "machine", "errors", "attention", "decompositions", "samples", "choices", "training", "vectors", "growth",
    "widths", "families",
)  # fmt: skip

#: Seconds that a stage may take from its turn on, and that all may take until they are ready.
LIMIT, PREPARATION = 100, 150

READY = "ready after"


class Stage(NamedTuple):
    """A stage that prepares, or waits for its turn."""

    name: str
    file: Path
    process: subprocess.Popen[str]
    log: IO[str]


def started(name: str, file: Path, *, tiny: bool) -> Stage:
    """Let a stage prepare."""
    log = file.open("w")
    command = [sys.executable, __file__, "--stage", name, *(["--tiny"] if tiny else [])]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if tiny else {})
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
    )
    return Stage(name, file, process, log)


def await_all(stages: list[Stage], seconds: float) -> None:
    """Wait until every stage is ready or has failed: preparing would disturb what another measures."""
    start = time.perf_counter()
    waiting = list(stages)
    while waiting and time.perf_counter() - start < seconds:
        time.sleep(0.2)
        waiting = [s for s in waiting if s.process.poll() is None and READY not in s.file.read_text()]
    late = ", ".join(stage.name for stage in waiting)
    print(f"prepared in {time.perf_counter() - start:.0f} s{f', but {late}' if late else ''}", flush=True)
    for stage in waiting:
        stage.process.kill()


def measured(stage: Stage, limit: float) -> None:
    """Give a stage its turn and print what it wrote."""
    start = time.perf_counter()
    outcome = ""
    try:
        stage.process.communicate("go\n", timeout=limit)
        if stage.process.returncode:
            outcome = f"failed with {stage.process.returncode}"
    except subprocess.TimeoutExpired:
        stage.process.kill()
        stage.process.wait()
        outcome = f"killed after {limit:.0f} s"
    stage.log.close()
    print(f"\n## {stage.name}: {time.perf_counter() - start:.1f} s {outcome}\n", flush=True)
    print(stage.file.read_text(), flush=True)


def take_turn(name: str, *, tiny: bool) -> None:
    """Prepare one stage, wait for its turn, and measure."""
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(Path(__file__).parent)]
    start = time.perf_counter()
    module = importlib.import_module(f"on_device.{name}")
    import torch
    from on_device.bench import Bench

    imported = time.perf_counter() - start
    torch.manual_seed(0)
    run = module.prepare(Bench(tiny=tiny))
    print(f"{READY} {time.perf_counter() - start:.1f} s, {imported:.1f} s of them imports", flush=True)
    sys.stdin.readline()
    run()


def main() -> None:
    """Run every stage, then the tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for the tables")
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing new is begun")
    parser.add_argument("--stages", default=",".join((*STAGES, "tests")), help="those to run, with commas")
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU, to see that it runs")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage is not None:
        take_turn(args.stage, tiny=args.tiny)
        return
    if args.output is None:
        parser.error("the following argument is required: --output")
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + 60 * args.minutes
    requested = args.stages.split(",")
    stages = [
        started(name, args.output / f"{number:02}_{name}.md", tiny=args.tiny)
        for number, name in enumerate(STAGES)
        if name in requested
    ]
    try:
        await_all(stages, PREPARATION)
        for stage in stages:
            measured(stage, min(LIMIT, max(1.0, end - time.perf_counter())))
    finally:
        for stage in stages:
            stage.process.kill()
    if "tests" in requested and not args.tiny:
        tests(args.output / "tests.txt", end - time.perf_counter())


def tests(file: Path, seconds: float) -> None:
    """Run the tests that need a device in what time is left."""
    if seconds < 10:
        print("no time is left for the tests")
        return
    workers = str(os.cpu_count() or 1)
    # Whole samples first, then kernels in hundreds of variants; the sanitizer alone would take all the time.
    # Interrupted rather than killed, pytest still says what failed.
    command = [
        "timeout", "-s", "INT", str(int(seconds)), sys.executable, "-m", "pytest", "-q", "-n", workers,
        "--dist", "load", "-p", "no:cacheprovider", "-k", "not sanitizer",
        str(TESTS / "gpu" / "test_samples.py"), str(TESTS / "gpu" / "test_device.py"),
    ]  # fmt: skip
    with file.open("w") as log:
        subprocess.run(command, check=False, cwd=TESTS.parent, stdout=log, stderr=subprocess.STDOUT)
    print("\n## tests\n\n", file.read_text()[-3000:], flush=True)


if __name__ == "__main__":
    main()
