"""The vision example: it learns, and its subspaces move."""

from __future__ import annotations

from lightning_geo import load_history


def test_learns_digits(run, accuracy, tmp_path):
    printed = run("finetune_vit.py", "--epochs", 3, "--every-n-steps", 45)
    value, examples = accuracy(printed)
    assert examples == 360
    assert value > 0.5  # chance is 0.1
    history = load_history(tmp_path / "finetune_vit" / "version_0")
    assert history.steps.tolist() == [0, 45, 90, 135]
    assert history["drift.query"][-1].mean() > 0.1


def test_limit(run, accuracy):
    assert accuracy(run("finetune_vit.py", "--max-steps", 2, "--limit", 40))[1] == 10
