"""LoRA beside full fine-tuning: fewer trained weights, the same probe and the same start."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lightning_geo import load_history

pytestmark = pytest.mark.slow

SMALL = ("--max-steps", 3, "--every-n-steps", 1, "--limit", 60, "--length", 16, "--batch-size", 8)


def test_starts_where_full_fine_tuning_starts(run, accuracy, tmp_path):
    printed = run("finetune_lora.py", *SMALL, "--lora-rank", 4)
    accuracy(printed)
    trained, every = re.search(r"Trained parameters: ([\d,]+) of ([\d,]+)", printed).groups()
    assert 0 < int(trained.replace(",", "")) < 0.02 * int(every.replace(",", ""))
    run("finetune_bert.py", *SMALL)
    lora, full = (load_history(tmp_path / name / "version_0") for name in ("finetune_lora", "finetune_bert"))
    assert lora.metadata["probe_fingerprint"][0] == full.metadata["probe_fingerprint"][0]
    # an adapter begins as zero; the two part with the first update
    for metric in ("entropy", "effective_rank.value"):
        np.testing.assert_allclose(lora[metric][0], full[metric][0], rtol=1e-4)
        assert np.abs(lora[metric][-1] - full[metric][-1]).max() > 1e-4
