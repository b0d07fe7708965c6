"""The examples without Lightning, small: the record, and a checkpoint that is gone on from."""

from __future__ import annotations

import pytest

from lightning_geo import load_history

pytestmark = pytest.mark.slow

SMALL = ("--max-steps", 3, "--every-n-steps", 2, "--limit", 60, "--length", 16, "--batch-size", 8)


def test_plain_loop(run, accuracy, tmp_path):
    printed = run("plain_loop.py", *SMALL)
    assert accuracy(printed)[1] == 15
    assert load_history(tmp_path / "plain_loop").steps.tolist() == [0, 2, 3]


def test_finetune_bert_trainer(run, accuracy, tmp_path):
    printed = run("finetune_bert_trainer.py", *SMALL, "--save-steps", 3)
    assert accuracy(printed)[1] == 15
    output = tmp_path / "finetune_bert_trainer"
    (folder,) = (output / "runs").iterdir()
    history = load_history(folder)
    assert history.steps.tolist() == [0, 2, 3]
    assert (output / "checkpoint-3" / "lightning_geo-geometry.pt").exists()
    run("finetune_bert_trainer.py", *SMALL, "--max-steps", 4, "--resume")
    resumed = load_history(next(other for other in (output / "runs").iterdir() if other != folder))
    assert resumed.steps.tolist() == [4]
    assert {*resumed.metadata["probe_fingerprint"]} == {*history.metadata["probe_fingerprint"]}
