"""The program that runs Lightning's own tests beside a monitor finds what a monitor would break."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import lightning_suite
from lightning_suite import Verdict, main, package_of, suite_there_is
from support.forks import Forks

#: As in Lightning's own: the suite is a package, and no test may leave a file or a variable behind.
CONFTEST = """
import os
from pathlib import Path
import pytest
import lightning.pytorch
from tests_pytorch import _PATH_DATASETS

@pytest.fixture(autouse=True)
def restore_env_variables():
    before = os.environ.copy()
    yield
    leaked = os.environ.keys() - before.keys()
    os.environ.clear()
    os.environ.update(before)
    assert not leaked

@pytest.fixture(autouse=True)
def leave_no_artifacts_behind():
    root = Path(__file__).parent.parent
    before = {p for p in root.rglob("*") if "__pycache__" not in p.parts}
    yield
    assert not {p for p in root.rglob("*") if "__pycache__" not in p.parts} - before
"""

SUITE = """
import os
from unittest import mock
import pytest
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

class Boring(pl.LightningModule):
    def __init__(self, meddles=False):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.meddles = meddles

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.1)

    def on_train_end(self):
        if self.meddles and watched(self.trainer):
            torch.rand(1)

def watched(trainer):
    return any(type(c).__name__ == "GeometryMonitor" for c in trainer.callbacks)

def trainer(path=None, **options):
    return pl.Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu", default_root_dir=path, **options)

def fit(path, module):
    runner = trainer(path)
    runner.fit(module, DataLoader(torch.randn(8, 4), batch_size=2))
    return runner

def test_trains(tmp_path):
    fit(tmp_path, Boring())

def test_trains_where_it_is():
    fit(None, Boring())

@mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}, clear=True)
def test_trains_in_a_bare_environment(tmp_path):
    fit(tmp_path, Boring())

def test_saves_a_state(tmp_path):
    runner = fit(tmp_path, Boring())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    assert len(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]) == 1

def test_fails_anyway():
    assert not os.environ

@pytest.mark.skip
def test_is_skipped():
    pass

def test_wants_no_monitor(tmp_path):
    assert not watched(trainer(tmp_path))

def test_wants_one_callback_in_front(tmp_path):
    assert len(trainer(tmp_path).callbacks) == 1

def test_is_trained_differently(tmp_path):
    fit(tmp_path, Boring(meddles=True))

def test_draws_from_elsewhere(tmp_path):
    module = Boring()
    module.layer.weight.data += int.from_bytes(os.urandom(4), "big")
    fit(tmp_path, module)
"""


def checkout(root: Path) -> Path:
    """The files around the tests in a checkout of Lightning; returns the suite."""
    suite = root / "tests" / "tests_pytorch"
    suite.mkdir(parents=True)
    (root / "src").mkdir()
    (root / "src" / "version.info").write_text("1.9.0dev\n")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["--strict-markers"]\n')
    (suite / "__init__.py").write_text('_PATH_DATASETS = ""\n')
    (suite / "conftest.py").write_text(CONFTEST)
    return suite


@pytest.mark.slow
def test_it_finds_what_fails_and_what_trains_differently(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forks: Forks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forked(command: list[str], cwd: Path, env: dict[str, str], **_: Any) -> Any:
        [status], [stdout], [stderr] = forks.run(command[1:], folder=cwd, environments=[env])
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    # an interpreter of its own would import Lightning anew for each of the three runs
    monkeypatch.setattr("lightning_suite.subprocess.run", forked)
    suite = checkout(tmp_path)
    (suite / "trainer").mkdir()
    (suite / "trainer" / "test_made_up.py").write_text(SUITE)
    assert main([str(tmp_path)]) == 1
    at = "tests/tests_pytorch/trainer/test_made_up.py::test_"
    assert capsys.readouterr().out.splitlines() == [
        f"lightning.pytorch is {importlib.metadata.version('lightning')}, its tests are of 1.9.0dev",
        f"fails beside a monitor: {at}wants_no_monitor",
        f"trains differently beside a monitor: {at}is_trained_differently",
        "8 tests pass beside a callback that does nothing. Beside a monitor 1 of them fail; of 5 fits those "
        "of 1 tests end differently",
    ]


def test_without_a_fault_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([Verdict([], [], 2, 3), Verdict(["a"], [], 2, 3), Verdict([], ["a"], 2, 3)])
    monkeypatch.setattr(lightning_suite, "judge", lambda *_: next(verdicts))
    assert [main([str(tmp_path)]) for _ in range(3)] == [0, 1, 1]


def test_a_checkout_or_its_suite_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, asked = checkout(tmp_path), []
    (suite / "core").mkdir()
    monkeypatch.setattr(lightning_suite, "judge", lambda *given: asked.append(given) or Verdict([], [], 0, 0))
    for arguments in ([str(tmp_path)], [str(suite)], [str(suite), "loops"]):
        assert main(arguments) == 0
    monkeypatch.setenv("LIGHTNING_TESTS", str(tmp_path))
    assert main(["tuner", "-x"]) == main([]) == 0
    core = (suite, ["core"])
    assert asked == [core, core, (suite, ["loops"]), (suite, ["tuner", "-x"]), core]
    assert package_of(suite) == "lightning.pytorch"
    (suite / "conftest.py").write_text("import pytorch_lightning.accelerators\n")
    assert package_of(suite) == "pytorch_lightning"


def test_without_a_suite_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_TESTS", raising=False)
    assert main([]) == 2


@pytest.mark.slow
@pytest.mark.skipif("LIGHTNING_TESTS" not in os.environ, reason="no checkout of Lightning's tests")
def test_lightnings_own_tests_pass_beside_a_monitor() -> None:
    suite = suite_there_is()
    assert suite is not None
    assert main([str(suite)]) == 0
