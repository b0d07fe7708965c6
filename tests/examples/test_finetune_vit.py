"""The vision example: it learns, and its subspaces move."""

from __future__ import annotations

import pytest

from lightning_geo import load_history

pytestmark = pytest.mark.slow


def test_learns_digits(run, accuracy, tmp_path):
    printed = run("finetune_vit.py", "--limit", 720, "--epochs", 6, "--every-n-steps", 46, alone=True)
    value, examples = accuracy(printed)
    assert examples == 180
    assert value > 0.5  # chance is 0.1
    history = load_history(tmp_path / "finetune_vit" / "version_0")
    assert history.steps.tolist() == [0, 46, 92, 138]
    assert history["drift.query"][-1].mean() > 0.1
