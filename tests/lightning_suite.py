"""Run Lightning's own tests with a monitor in every Trainer.

``python tests/lightning_suite.py [SUITE] [what …]``.
SUITE is a checkout of Lightning, or its ``tests/tests_pytorch``; without it, the environment's
``LIGHTNING_TESTS``. The checkout should be of the version that is installed. Its tests import
``lightning.pytorch``, or ``pytorch_lightning`` where the checkout's own assistant has rewritten them; that
package has to be installed, and what the tests themselves need. Nothing is fetched. Each test runs three
times, in an empty working directory: twice beside a callback that only has a state, then beside a monitor. A
fault is a test that passes beside the former alone, or whose fits end with other weights, optimizer states or
random numbers although the first two runs agree. Exit code 1 where there is one, 2 without a suite.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
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

from lightning_geo import GeometryMonitor
from lightning_geo.monitor._lightning import CallbackBase

#: Parts of the suite that are about the course of a run.
PARTS = ("callbacks", "checkpointing", "core", "loggers", "loops", "trainer", "tuner")
_NAMES = ("pytorch_lightning", "lightning.pytorch")
_WHO, _LOG, _NAME = "LIGHTNING_SUITE_BESIDE", "LIGHTNING_SUITE_LOG", "LIGHTNING_SUITE_PACKAGE"


@dataclass
class Outcome:
    """What became of one test: how it ended, and a digest of every fit in it."""

    result: str = "passed"
    fits: list[str] = field(default_factory=list)


# -- inside of the suite's pytest, as a plugin

#: Read once: many tests run with an environment of their own.
_who, _log = os.environ.get(_WHO), os.environ.get(_LOG)
_fits: list[str] = []


class Bystander(CallbackBase):
    """Does nothing, but has a state, as a monitor has: checkpoints hold both."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 0}


def pytest_configure(config: pytest.Config) -> None:
    """Give every Trainer the callback, and note how its fits end."""
    if _who is None:
        return
    package: Any = importlib.import_module(os.environ[_NAME])
    package.Trainer.__init__ = _accompanied(package.Trainer.__init__)
    package.Trainer.fit = _noted(package.Trainer.fit)


def _accompanied(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        beside = GeometryMonitor(every_n_steps=1) if _who == "monitor" else Bystander()
        # in front: Lightning keeps those that write checkpoints last
        self.callbacks.insert(0, beside)

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
    """Every test starts from the same random numbers, in an empty working directory.

    Where a Trainer has no other place the monitor writes below the working directory: Lightning's tests fail
    if they leave a file in the suite.
    """
    if _who is None:
        return (yield)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    _fits.clear()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down how each phase of a test ended."""
    if _log is not None:
        line = {"test": report.nodeid, "result": report.outcome, "fits": list(_fits)}
        with Path(_log).open("a") as log:
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
        environment = {
            **os.environ, _WHO: beside, _LOG: str(log), _NAME: package_of(suite), "PYTHONPATH": path
        }  # fmt: skip
        options = ["-q", "-p", "lightning_suite", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *what]
        done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True)
        found: dict[str, Outcome] = {}
        for line in map(json.loads, log.read_text().splitlines()):
            outcome = found.setdefault(line["test"], Outcome())
            outcome.fits = line["fits"]
            if line["result"] != "passed":
                outcome.result = line["result"]
    if not found or (beside == "nothing" and done.returncode not in (0, 1)):
        raise RuntimeError(f"the tests of {suite} did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found


def package_of(suite: Path) -> str:
    """The package whose Trainer the suite's tests use."""
    text = (suite / "conftest.py").read_text() if (suite / "conftest.py").is_file() else ""
    found = [name for name in _NAMES if f"import {name}" in text or f"from {name}" in text]
    return found[0] if found else _NAMES[1]


def other_version(suite: Path) -> str:
    """What to say of a checkout of another version than the installed package; empty where it fits."""
    file = suite.parent.parent / "src" / "version.info"
    name = package_of(suite)
    installed = importlib.metadata.version(name.partition(".")[0].replace("_", "-"))
    there = file.read_text().strip() if file.is_file() else installed
    return "" if there == installed else f"{name} is {installed}, its tests are of {there}"


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
    """The suite of the checkout that was named, here or in the environment; None without one."""
    named = given or os.environ.get("LIGHTNING_TESTS")
    if not named or not Path(named).is_dir():
        return None
    root = Path(named).resolve()
    inner = root / "tests" / "tests_pytorch"
    return inner if inner.is_dir() else root


def main(arguments: list[str]) -> int:
    """Judge and print."""
    named = bool(arguments) and Path(arguments[0]).is_dir()
    suite = suite_there_is(arguments[0] if named else None)
    if suite is None:
        print("Lightning's tests were not found: name its checkout, or `tests/tests_pytorch` in it")
        return 2
    if other := other_version(suite):
        print(other)
    what = arguments[named:] or [part for part in PARTS if (suite / part).is_dir()]
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
