"""From training to a smaller model, in one program."""

from __future__ import annotations

import re

import pytest
import torch

pytestmark = pytest.mark.slow

SMALL = ("--max-steps", 3, "--limit", 24, "--length", 16, "--batch-size", 8)


def test_half_of_the_heads_go(run, tmp_path):
    printed = run("prune_heads.py", *SMALL, "--seeds", 2)
    assert re.search(r"^36 +50 % ", printed, re.MULTILINE)
    assert "36 heads removed" in printed
    folder = tmp_path / "prune_heads" / "version_0"
    assert (folder / "prune_heads.png").stat().st_size > 10_000
    model = torch.load(folder / "pruned.pt", weights_only=False)
    widths = [layer.attention.self.query.out_features for layer in model.bert.encoder.layer]
    assert 36 * 32 <= sum(widths) <= (36 + 5) * 32  # a layer without heads keeps a silent one
