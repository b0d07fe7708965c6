"""The gates example: every head is counted once, and the pictures are there."""

from __future__ import annotations

import re

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def test_every_head_has_a_gate(run, tmp_path):
    printed = run("gates.py", "--steps", 2, "--length", 32)
    sizes = re.findall(r"^(\w+), (\d+) heads$", printed, re.MULTILINE)
    assert sizes == [("BertModel", "72"), ("GPT2LMHeadModel", "16")]
    rows = re.findall(r"^ +(\d)((?: +\d+){8})$", printed, re.MULTILINE)
    counts = [sum(map(int, row.split())) for _, row in rows]
    assert counts == [12] * 6 + [4] * 4
    for name in ("gates_bert.png", "gates_gpt.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200
