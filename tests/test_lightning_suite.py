"""The program that runs Lightning's own tests beside a monitor finds what a monitor would break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import lightning_suite
from lightning_suite import Verdict, main, suite_there_is

SUITE = """
import os
import pytest
import pytorch_lightning as pl
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

def trainer(path, **options):
    return pl.Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu", default_root_dir=path, **options)

def fit(path, module):
    runner = trainer(path)
    runner.fit(module, DataLoader(torch.randn(8, 4), batch_size=2))
    return runner

def test_trains(tmp_path):
    fit(tmp_path, Boring())

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


@pytest.mark.slow
def test_it_finds_what_fails_and_what_trains_differently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "test_made_up.py").write_text(SUITE)
    assert main([str(tmp_path)]) == 1
    at = "trainer/test_made_up.py::test_"
    assert capsys.readouterr().out.splitlines() == [
        f"fails beside a monitor: {at}wants_no_monitor",
        f"trains differently beside a monitor: {at}is_trained_differently",
        "5 tests pass beside a callback that does nothing. Beside a monitor 1 of them fail; of 2 fits those "
        "of 1 tests end differently",
    ]


def test_without_a_fault_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([Verdict([], [], 2, 3), Verdict(["a"], [], 2, 3), Verdict([], ["a"], 2, 3)])
    monkeypatch.setattr(lightning_suite, "judge", lambda *_: next(verdicts))
    assert [main([str(tmp_path)]) for _ in range(3)] == [0, 1, 1]


def test_without_a_suite_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_TESTS", raising=False)
    assert main([]) == 2


@pytest.mark.slow
@pytest.mark.skipif("LIGHTNING_TESTS" not in os.environ, reason="no checkout of Lightning's tests")
def test_lightnings_own_tests_pass_beside_a_monitor() -> None:
    suite = suite_there_is()
    assert suite is not None
    assert main([str(suite)]) == 0
