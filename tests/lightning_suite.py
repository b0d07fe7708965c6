"""Run Lightning's own tests with a monitor in every Trainer.

``python tests/lightning_suite.py SUITE [what …]``.
SUITE is ``tests/tests_pytorch`` of a checkout of Lightning that fits the installed one; without it, the
environment's ``LIGHTNING_TESTS``. Nothing is fetched. Each test runs three times: twice beside a callback
that does nothing, then beside a monitor. A fault is a test that passes beside the former alone, or whose
fits end with other weights, optimizer states or random numbers although the first two runs agree. Exit
code 1 where there is one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

#: Parts of the suite that are about the course of a run.
PARTS = ("callbacks", "checkpointing", "core", "loggers", "loops", "trainer", "tuner")
_WHO, _LOG = "LIGHTNING_SUITE_BESIDE", "LIGHTNING_SUITE_LOG"


@dataclass
class Outcome:
    """What became of one test: how it ended, and a digest of every fit in it."""

    result: str = "passed"
    fits: list[str] = field(default_factory=list)


# -- inside of the suite's pytest, as a plugin

_fits: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Give every Trainer the callback, and note how its fits end."""
    if _WHO not in os.environ:
        return
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            package: Any = importlib.import_module(name)
        except ImportError:
            continue
        package.Trainer.__init__ = _accompanied(package.Trainer.__init__, package.Callback)
        package.Trainer.fit = _noted(package.Trainer.fit)


def _accompanied(original: Any, inert: type) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        from lightning_geo import GeometryMonitor

        original(self, *args, **options)
        watched = os.environ[_WHO] == "monitor"
        # in front: Lightning keeps those that write checkpoints last
        self.callbacks.insert(0, GeometryMonitor(every_n_steps=1) if watched else inert())

    return init


def _noted(original: Any) -> Any:
    @functools.wraps(original)
    def fit(self: Any, model: Any, *args: Any, **options: Any) -> Any:
        try:
            return original(self, model, *args, **options)
        finally:
            _fits.append(_digest(self, model))

    return fit


def _digest(trainer: Any, model: Any) -> str:
    """Weights, optimizer states and the generators that training draws from."""
    digest = hashlib.sha256()
    try:
        states = [model.state_dict(), *(optimizer.state_dict() for optimizer in trainer.optimizers)]
        _update(digest, [*states, torch.get_rng_state(), random.getstate(), np.random.get_state()])
    except Exception as error:  # a model that a test has broken on purpose
        digest.update(type(error).__name__.encode())
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(repr((value.dtype, value.shape)).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(value.tobytes())
    elif isinstance(value, dict):
        for key in value:
            digest.update(repr(key).encode())
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _update(digest, item)
    elif isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Every test starts from the same random numbers, whatever ran before it."""
    if _WHO in os.environ:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        _fits.clear()
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down how each phase of a test ended."""
    if _LOG in os.environ:
        line = {"test": report.nodeid, "result": report.outcome, "fits": list(_fits)}
        with Path(os.environ[_LOG]).open("a") as log:
            log.write(f"{json.dumps(line)}\n")


# -- around it


def outcomes(suite: Path, what: list[str], beside: str) -> dict[str, Outcome]:
    """Run the suite once.

    Args:
        suite: Its directory.
        what: Tests or directories in it, and options of pytest.
        beside: ``"nothing"`` or ``"monitor"``.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        path = os.pathsep.join(
            [str(Path(__file__).parent), str(suite.parent), os.environ.get("PYTHONPATH", "")]
        )
        environment = {**os.environ, _WHO: beside, _LOG: str(log), "PYTHONPATH": path}
        options = ["-q", "-p", "lightning_suite", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *what]
        done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True)
        found: dict[str, Outcome] = {}
        for line in map(json.loads, log.read_text().splitlines()):
            outcome = found.setdefault(line["test"], Outcome())
            outcome.fits = line["fits"]
            if line["result"] != "passed":
                outcome.result = line["result"]
    if not found:
        raise RuntimeError(f"no test of {suite} ran: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found


@dataclass
class Verdict:
    """What a monitor changes.

    Args:
        failed: Tests that pass without it alone.
        differing: Tests whose fits end differently with it.
        compared: How many fits were compared.
        passed: How many tests pass without it.
    """

    failed: list[str]
    differing: list[str]
    compared: int
    passed: int


def judge(suite: Path, what: list[str]) -> Verdict:
    """Run the suite three times and compare."""
    first, again, watched = (outcomes(suite, what, who) for who in ("nothing", "nothing", "monitor"))
    steady = [t for t, o in first.items() if o.result == "passed" == again.get(t, Outcome("missing")).result]
    failed = [t for t in steady if t not in watched or watched[t].result == "failed"]
    equal = [t for t in steady if t not in failed and first[t].fits == again[t].fits]
    differing = [t for t in equal if watched[t].fits != first[t].fits]
    return Verdict(failed, differing, sum(len(first[t].fits) for t in equal), len(steady))


def suite_there_is(given: str | None = None) -> Path | None:
    """The suite that was named, here or in the environment; None without one."""
    named = given or os.environ.get("LIGHTNING_TESTS")
    return Path(named).resolve() if named and Path(named).is_dir() else None


def main(arguments: list[str]) -> int:
    """Judge and print."""
    suite = suite_there_is(arguments[0] if arguments else None)
    if suite is None:
        print("Lightning's tests were not found: name `tests/tests_pytorch` of its checkout")
        return 2
    what = arguments[1:] or [part for part in PARTS if (suite / part).is_dir()]
    verdict = judge(suite, what)
    for said, tests in (("fails", verdict.failed), ("trains differently", verdict.differing)):
        for test in tests:
            print(f"{said} beside a monitor: {test}")
    print(
        f"{verdict.passed} tests pass beside a callback that does nothing. Beside a monitor "
        f"{len(verdict.failed)} of them fail; of {verdict.compared} fits those of {len(verdict.differing)} "
        "tests end differently"
    )
    return int(bool(verdict.failed or verdict.differing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
