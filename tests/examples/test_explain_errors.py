"""Mispredictions of a saved model, traced to its heads."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.slow

SMALL = ("--limit", 24, "--length", 16)


def test_errors_are_traced_and_checked(run, tmp_path):
    run("finetune_bert.py", "--max-steps", 3, "--batch-size", 8, *SMALL, "--save", tmp_path / "model")
    printed = run("explain_errors.py", tmp_path / "model", *SMALL, "--draws", 2, "--references", 8)
    page = tmp_path / "explanation.html"
    wrong, whole = re.search(r"^(\d+) of (\d+) texts are mispredicted", printed, re.MULTILINE).groups()
    assert 0 < int(wrong) <= int(whole) == 6
    assert re.search(r"most blamed heads corrects \d+, 5 random ones \d+\.\d", printed)
    assert page.read_text(encoding="utf-8").count("<section>") == int(wrong)
